"""Data sets, their mistakes, and order and augmentation that depend on keys alone."""

import subprocess
import sys

import pytest
import torch

from ddfnet.config import load_train_config
from ddfnet.data import TrainLoader, class_names, create_validation_loader, open_dataset
from ddfnet.data.images import FewerSamples
from ddfnet.data.keyed import KeyedSampler
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.training import command
from tests.ddfnet.conftest import TINY_MODEL

CPU = Processes(torch.device('cpu'))
INPUT = {
    'input_size': (1, 16, 16), 'mean': (0.3,), 'std': (0.35,), 'interpolation': 'bilinear', 'crop_pct': 1.0,
    'crop_mode': None,
}  # fmt: skip


def opened(*flags, split='train', in_chans=1, **settings):
    return open_dataset(load_train_config([*map(str, flags)]).data, split, in_chans=in_chans, **settings)


def train_loader(*flags: str, dataset=None, processes: Processes = CPU) -> TrainLoader:
    config = load_train_config(['--dataset', 'digits', '-b', '32', *flags])
    dataset = dataset or opened('--dataset', 'digits', num_samples=128)
    return TrainLoader(
        dataset, config.data, config.batch, config.augmentation, config.loss, INPUT, 10, config.run.seed, processes
    )


def test_digits_are_split_as_in_scikit_learns_example():
    train, validation = (opened('--dataset', 'digits', split=split) for split in ('train', 'validation'))
    assert (len(train), len(validation)) == (898, 899)
    image, label = validation[0]
    assert (image.mode, image.size, label) == ('L', (8, 8), 8)
    assert image.getextrema() == (0, 255)
    assert opened('--dataset', 'digits', in_chans=3)[0][0].mode == 'RGB'
    assert class_names(train) == [str(digit) for digit in range(10)]


def test_fewer_samples_keep_every_class():
    sorted_by_class = [label for label in range(10) for _ in range(7)]
    few = FewerSamples(sorted_by_class, 12)
    assert {few[index] for index in range(len(few))} == set(range(10))
    assert len(opened('--dataset', 'digits', split='validation', num_samples=50)) == 50
    with pytest.raises(UserError, match='has 899: ask for fewer'):
        opened('--dataset', 'digits', split='validation', num_samples=900)


@pytest.mark.parametrize('world_size', [1, 2, 3])
def test_order_covers_the_epoch_once_over_all_ranks(world_size):
    ranks = [KeyedSampler(100, 12, seed=7, rank=rank, world_size=world_size) for rank in range(world_size)]
    keys = [list(rank) for rank in ranks]
    assert {len(part) for part in keys} == {96 // world_size}
    joined = sorted(key for part in keys for key in part)
    assert [position for _, position, _ in joined] == list(range(96))
    assert len({index for _, _, index in joined}) == 96
    alone = sorted(KeyedSampler(100, 12, seed=7))
    assert joined == alone


def test_order_depends_on_seed_and_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = KeyedSampler(100, 10, seed)
        sampler.set_epoch(epoch)
        return [index for _, _, index in sampler]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


@pytest.mark.parametrize('flags', [[], ['--no-prefetcher'], ['--mixup', '0.4', '--cutmix', '1']])
def test_augmentation_has_no_history(flags):
    """The batches of an epoch are the same after other epochs, and read by any number of workers."""
    flags = ['--reprob', '0.8', '--aa', 'rand-m7-mstd0.5-inc1', *flags]
    straight = list(train_loader('-j', '0', *flags).epoch(1))
    later = train_loader('-j', '2', *flags)
    for _ in later.epoch(0):
        pass
    torch.rand(3)
    for (images, targets), (later_images, later_targets) in zip(straight, later.epoch(1), strict=True):
        assert torch.equal(images, later_images)
        assert torch.equal(targets, later_targets)
    other_seed = next(train_loader('-j', '0', '--seed', '1', *flags).epoch(1))[0]
    assert not torch.equal(straight[0][0], other_seed)


def test_ranks_read_their_share_of_the_same_images():
    alone = next(train_loader('-j', '0').epoch(0))[0]
    shares = [
        next(train_loader('-j', '0', '-b', '16', processes=Processes(CPU.device, rank, 2)).epoch(0))[0]
        for rank in range(2)
    ]
    assert torch.equal(alone[0::2], shares[0])
    assert torch.equal(alone[1::2], shares[1])


def test_mixing_ends_at_its_epoch():
    loader = train_loader('-j', '0', '--mixup', '1', '--mixup-off-epoch', '1', '--smoothing', '0')
    mixed = [next(loader.epoch(epoch))[1].max(dim=1).values.min().item() for epoch in (0, 1)]
    assert mixed[0] < 1
    assert mixed[1] == 1


def test_too_few_images_for_a_step():
    with pytest.raises(UserError, match=r'takes 256 images \(batch-size 64 x grad-accum-steps 4 x 1 processes\)'):
        train_loader('-b', '64', '--grad-accum-steps', '4')


def test_image_folders(image_tree):
    root = str(image_tree(classes=3, per_class=4))
    train = opened(root, in_chans=3)
    validation = opened(root, split='validation', in_chans=3)
    assert class_names(train) == class_names(validation) == ['digit0', 'digit1', 'digit2']
    assert len(train) == len(validation) == 12
    assert validation[11][1] == 2
    assert opened(f'{root}/val', split='validation')[0][0].mode == 'L'
    config = load_train_config([root, '-j', '0'])
    batches = list(create_validation_loader(validation, config.data, 5, {**INPUT, 'input_size': (3, 16, 16)}, CPU))
    assert torch.cat([targets for _, targets in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_missing_data_is_named(tmp_path, image_tree):
    root = image_tree()
    cases = {
        (str(tmp_path / 'nowhere'), 'train'): 'nowhere does not exist',
        (str(root / 'train'), 'train'): "split 'train' not found in .* got digit0, digit1, digit2",
        (str(root), 'test'): "split 'test' not found in .* got train, val",
        (str(root / 'train' / 'digit0'), 'validation'): 'holds no folders: expected one folder per class',
    }
    for (folder, split), message in cases.items():
        with pytest.raises(UserError, match=message):
            opened(folder, split=split, in_chans=3)
    (tmp_path / 'empty' / 'train' / 'cat').mkdir(parents=True)
    with pytest.raises(UserError, match='Found 0 images'):
        opened(tmp_path / 'empty', in_chans=3)
    with pytest.raises(UserError, match='cannot open data set'):
        opened('--dataset', 'torch/nonsense', root, in_chans=3)


def test_process_that_leaves_its_workers_behind_ends(tmp_path):
    """Workers that ignore SIGTERM must not hold up a process that fails with its loader still in use."""
    program = """
import torch
from ddfnet.config import load_train_config
from ddfnet.data import create_validation_loader, open_dataset
from ddfnet.distributed import Processes

data = load_train_config(['--dataset', 'digits', '-j', '1']).data
settings = dict(input_size=(1, 8, 8), interpolation='bilinear', mean=(0,), std=(1,), crop_pct=1.0, crop_mode=None)
loader = create_validation_loader(
    open_dataset(data, 'validation', in_chans=1), data, 8, settings, Processes(torch.device('cpu'))
)
batches = iter(loader)
next(batches)
raise SystemExit(7)
"""
    result = subprocess.run([sys.executable, '-c', program], timeout=50, check=False, capture_output=True, text=True)
    assert result.returncode == 7, result.stderr


@pytest.mark.parametrize(
    ('name', 'package'),
    [('hfds/x', 'datasets'), ('hfids/x', 'datasets'), ('TFDS/x', 'tensorflow_datasets'), ('wds/x', 'webdataset')],
)
def test_missing_package_is_one_line(run_command, tmp_path, monkeypatch, capsys, name, package):
    monkeypatch.setattr('ddfnet.data.datasets.find_spec', lambda module: None)
    flags = [tmp_path, *TINY_MODEL, '--dataset', name, '--device', 'cpu', '--output', tmp_path / 'out']
    assert run_command(command.main, *flags) == 2
    found = capsys.readouterr()
    assert found.out == ''
    expected = f'data set {name!r} needs the package {package}, which is not installed: pip install {package}'
    assert found.err == f'error: {expected}\n'
