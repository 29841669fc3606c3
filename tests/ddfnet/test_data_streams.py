"""Streamed sets, on small shards of webdataset: every image once in validation, epochs that repeat in training."""

import csv
import io
import json
import logging
import os
import signal
import sys
import tarfile
import types
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddfnet.config import load_train_config
from ddfnet.data import StreamSettings, create_validation_loader, loaders
from ddfnet.data.streams import KeyedStream
from ddfnet.training import engine, monitor
from ddfnet.training.command import main as train_main
from ddfnet.validation import main as validate_main
from tests.ddfnet.conftest import TINY_MODEL
from tests.ddfnet.test_data import CPU, INPUT, opened, train_loader
from tests.ddfnet.test_distributed import last_line, run, torchrun

pytest.importorskip('webdataset')
TRAIN_SHARDS, VALIDATION_SHARDS = (20, 30, 25, 21), (10, 13, 9, 15)
FLAGS = ['--dataset', 'wds/shards', *TINY_MODEL, '--num-classes', '96', '--device', 'cpu']
ONE_EPOCH = ['-b', '16', '--epochs', '1', '--warmup-epochs', '0', '--cooldown-epochs', '0', '--no-tensorboard']


@pytest.fixture
def shards(tmp_path) -> Path:
    """A folder of shards whose images all have labels of their own: in `cls` counted up, in `json` counted down."""
    splits = {'train': TRAIN_SHARDS, 'validation': VALIDATION_SHARDS}
    info = {split: write_shards(tmp_path / 'shards', split, counts) for split, counts in splits.items()}
    (tmp_path / 'shards' / 'info.json').write_text(json.dumps({'splits': info}))
    return tmp_path / 'shards'


def write_shards(folder: Path, split: str, counts: tuple[int, ...]) -> dict:
    folder.mkdir(exist_ok=True)
    names = [f'{split}-{number}.tar' for number in range(len(counts))]
    label = 0
    for name, count in zip(names, counts, strict=True):
        with tarfile.open(folder / name, 'w') as tar:
            for _ in range(count):
                add(tar, f'{label:03d}.png', png(label))
                add(tar, f'{label:03d}.cls', str(label).encode())
                add(tar, f'{label:03d}.json', json.dumps({'left': sum(counts) - 1 - label}).encode())
                label += 1
    return {'name': split, 'num_samples': sum(counts), 'filenames': names, 'shard_lengths': counts}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new('RGB', (12, 10), (grey, 0, 0)).save(file, 'PNG')
    return file.getvalue()


def state(folder: Path, count: int) -> None:
    """Has the validation set state `count` images."""
    info = json.loads((folder / 'info.json').read_text())
    info['splits']['validation']['num_samples'] = count
    (folder / 'info.json').write_text(json.dumps(info))


def labels_of(batches) -> list[int]:
    return torch.cat([targets for _, targets in batches]).tolist()


@pytest.mark.parametrize('workers', ['0', '2'])
def test_validation_reads_every_image_once(shards, workers):
    flags = ['--dataset', 'wds/shards', shards, '-j', workers]
    loader = create_validation_loader(
        opened(*flags, split='validation'), load_train_config([*map(str, flags)]).data, 8, INPUT, CPU
    )
    assert sorted(labels_of(loader)) == list(range(47))


@pytest.mark.parametrize('workers', ['0', '2'])
def test_training_epochs_repeat_and_differ(shards, workers):
    def epoch(number: int, *more: str):
        flags = ['--dataset', 'wds/shards', str(shards), '-j', workers, '-b', '8', *more]
        config = load_train_config(flags)
        stream = {'is_training': True, 'batch_size': 8, 'seed': config.run.seed}
        loader = train_loader(*flags, dataset=opened(*flags, stream=StreamSettings(**stream)))
        return loader, list(loader.epoch(number))

    loader, batches = epoch(1)
    assert len(batches) == len(loader) == loader.updates_per_epoch == 12
    assert all(images.shape == (8, 1, 16, 16) for images, _ in batches)
    assert len(set(labels_of(batches))) == 96 if workers == '0' else len(set(labels_of(batches))) > 80
    list(loader.epoch(0))
    for again in (list(loader.epoch(1)), epoch(1)[1]):
        for (images, targets), (same_images, same_targets) in zip(batches, again, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(targets, same_targets)
    assert labels_of(epoch(2)[1]) != labels_of(batches)
    assert labels_of(epoch(1, '--seed', '1')[1]) != labels_of(batches)


def test_keys_choose_image_and_target(shards):
    colour = {**INPUT, 'input_size': (3, 10, 10), 'mean': (0.0,) * 3, 'std': (1.0,) * 3}
    flags = ['--dataset', 'wds/shards', str(shards), '-j', '0', '--input-key', 'png', '--target-key', 'left']
    flags += ['--input-img-mode', 'RGB']
    images = opened(*flags, split='validation', in_chans=3)
    loader = create_validation_loader(images, load_train_config(flags).data, 8, colour, CPU)
    assert labels_of(loader) == list(range(46, -1, -1))
    images = torch.cat([images for images, _ in loader])
    assert images[:, 0, 5, 5].mul(255).round().tolist() == list(range(47))


@pytest.mark.parametrize('workers', ['0', '1'])
@pytest.mark.parametrize(
    ('key', 'message'),
    [(['--input-key', 'tiff'], 'no image of the streamed'), (['--target-key', 'right'], '--target-key: Target key')],
)
def test_keys_that_are_not_there(shards, run_command, tmp_path, capsys, key, message, workers):
    flags = [shards, *FLAGS, *ONE_EPOCH, '-j', workers, '--output', tmp_path / 'out', *key]
    assert run_command(train_main, *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert message in error


def test_too_few_shards_for_the_workers(shards, run_command, capsys):
    assert run_command(validate_main, shards, *FLAGS, '-j', '5') == 2
    assert '4 shards cannot be shared by 5 loader workers (5 workers x 1 processes)' in capsys.readouterr().err


def test_stated_images_that_are_not_there(shards, run_command, capsys):
    state(shards, 50)
    flags = [shards, *FLAGS, '-j', '0']
    assert run_command(validate_main, *flags) == 2
    assert 'states 50 images, but 47 could be read' in capsys.readouterr().err
    assert run_command(validate_main, *flags, '--allow-corrupt') == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result['count'], result['corrupt']) == (47, 3)


def test_a_stream_trains_and_goes_on(shards, run_command, tmp_path, caplog):
    flags = [shards, *FLAGS, *ONE_EPOCH, '-j', '2', '--output', tmp_path / 'out', '--experiment', 'run']
    caplog.set_level(logging.INFO, logger='ddfnet')
    assert run_command(train_main, *flags) == 0
    assert caplog.text.count('wds/shards is streamed') == 1
    assert run_command(train_main, *flags, '--epochs', '2', '--resume', 'auto') == 0
    with open(tmp_path / 'out' / 'run' / 'summary.csv', newline='') as file:
        assert [row['epoch'] for row in csv.DictReader(file)] == ['0', '1']


def test_time_to_skip_what_is_done_slows_no_rate(shards, run_command, tmp_path, monkeypatch):
    """A clock that ticks when an image is decoded alone: going on, a step takes as long as in an undisturbed epoch."""
    ticks = [0.0]
    read = KeyedStream.__iter__

    def ticking(dataset):
        for sample in read(dataset):
            ticks[0] += 1
            yield sample

    clock = types.SimpleNamespace(perf_counter=lambda: ticks[0])
    monkeypatch.setattr(KeyedStream, '__iter__', ticking)
    for module in (loaders, monitor, engine):
        monkeypatch.setattr(module, 'time', clock)
    whole, stop = engine._optimizer_step, []

    def step(*arguments):
        stop.append(1)
        if len(stop) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments)

    monkeypatch.setattr(engine, '_optimizer_step', step)
    seen = []
    read_values = monitor.Monitor._read
    monkeypatch.setattr(monitor.Monitor, '_read', lambda *given: seen.append(read_values(*given)) or seen[-1])
    flags = [shards, *FLAGS, *ONE_EPOCH, '-j', '0', '-b', '8', '--output', tmp_path / 'out', '--experiment', 'run']
    assert run_command(train_main, *flags, '--log-interval', '3') == 143
    assert run_command(train_main, *flags, '--log-interval', '3', '--resume', 'auto') == 0
    assert [values['samples_per_s'] for values in seen] == pytest.approx([1] * len(seen), rel=0.6)
    assert [values['waiting_for_data_percent'] for values in seen] == [100] * len(seen)


@pytest.mark.slow
def test_two_processes_train_and_validate_every_image_once(shards, tmp_path):
    training = torchrun(
        2, 'train.py', shards, *FLAGS, *ONE_EPOCH, '-j', '0', '--output', tmp_path / 'out', '--experiment', 'run'
    )
    assert training.returncode == 0, training.stderr
    assert '[   3/3]' in training.stdout
    flags = [shards, *FLAGS, '--checkpoint', tmp_path / 'out' / 'run' / 'last.pth.tar', '-b', '8']
    alone = json.loads(last_line(run(sys.executable, 'validate.py', *flags, '-j', '0')))
    shared = json.loads(last_line(torchrun(2, 'validate.py', *flags, '-j', '2')))
    assert alone['count'] == shared['count'] == 47
    assert (alone['top1'], alone['top5']) == (shared['top1'], shared['top5'])
