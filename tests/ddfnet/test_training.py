"""Runs of train.py and validate.py from their flags to their files, in one process."""

import csv
import json
import tarfile

import pytest
import timm
import torch
import yaml

from ddfnet import validation
from ddfnet.training import command
from ddfnet.training.checkpoint import Best
from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN


def train(run_command, output, *flags) -> int:
    return run_command(command.main, *TINY_RUN, '--output', output, *flags)


def weights(path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)['state_dict']


def assert_same_weights(path, other) -> None:
    state, other_state = weights(path), weights(other)
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def test_run_leaves_what_it_promises(run_command, tmp_path):
    assert train(run_command, tmp_path, '--experiment', 'a') == 0
    run = tmp_path / 'a'
    names = {path.name.split('.tfevents')[0] for path in run.iterdir()}
    assert names == {
        'args.yaml', 'summary.csv', 'curves.png', 'last.pth.tar', 'model_best.pth.tar', 'events.out',
        'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar',
    }  # fmt: skip
    with open(run / 'summary.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['epoch'] for row in rows] == ['0', '1', '2']
    assert all(float(row['validation/top5']) >= float(row['validation/top1']) for row in rows)
    settings = yaml.safe_load((run / 'args.yaml').read_text())
    assert settings['num_classes'] == 10
    assert settings['validation_batch_size'] == 16
    checkpoint = torch.load(run / 'last.pth.tar', weights_only=True)
    assert checkpoint['epoch'] == 2
    assert checkpoint['arch'] == 'ddf_mul_resnet26'
    assert checkpoint['args'] == settings | {'experiment': 'a', 'output': str(tmp_path)}
    assert checkpoint['metric'] == float(rows[-1]['validation/top1'])
    model = timm.create_model('ddf_mul_resnet26', num_classes=10, in_chans=1, channels=(8, 8, 16, 16))
    timm.models.load_checkpoint(model, str(run / 'last.pth.tar'))


def test_settings_repeat_the_run(run_command, tmp_path):
    train(run_command, tmp_path, '--experiment', 'a', '--epochs', '1', '--warmup-epochs', '0', '--lr-base', '0.3')
    assert run_command(command.main, '-c', tmp_path / 'a' / 'args.yaml', '--experiment', 'b') == 0
    assert_same_weights(tmp_path / 'a' / 'last.pth.tar', tmp_path / 'b' / 'last.pth.tar')


@pytest.mark.parametrize('flags', [[], ['--model-ema', '--model-ema-decay', '0.9', '--amp', '--sched-on-updates']])
def test_resumed_run_equals_an_undisturbed_one(run_command, tmp_path, monkeypatch, flags):
    flags = [*flags, '--drop-path', '0.2', '--train-num-samples', '48']
    assert train(run_command, tmp_path, '--experiment', 'whole', *flags) == 0
    whole_epoch = command.train_epoch

    def stop_in_the_second_epoch(components, progress, *arguments):
        if progress.epoch == 1:
            raise KeyboardInterrupt
        return whole_epoch(components, progress, *arguments)

    monkeypatch.setattr(command, 'train_epoch', stop_in_the_second_epoch)
    assert train(run_command, tmp_path, '--experiment', 'cut', *flags) == 130
    monkeypatch.undo()
    assert train(run_command, tmp_path, '--experiment', 'cut', '--resume', 'auto', *flags) == 0
    assert_same_weights(tmp_path / 'whole' / 'last.pth.tar', tmp_path / 'cut' / 'last.pth.tar')
    summaries = [(tmp_path / name / 'summary.csv').read_text() for name in ('whole', 'cut')]
    assert summaries[0] == summaries[1]


def test_existing_run_is_refused_and_finished_run_is_left(run_command, tmp_path, capsys):
    flags = ['--experiment', 'a', '--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '16']
    assert train(run_command, tmp_path, *flags, '--resume', 'auto') == 0
    before = (tmp_path / 'a' / 'last.pth.tar').stat().st_mtime_ns
    assert train(run_command, tmp_path, *flags) == 2
    assert f'the run folder {tmp_path / "a"} exists' in capsys.readouterr().err
    assert train(run_command, tmp_path, *flags, '--resume', 'auto') == 0
    assert (tmp_path / 'a' / 'last.pth.tar').stat().st_mtime_ns == before


def test_validation_takes_everything_from_the_checkpoint(run_command, tmp_path, capsys):
    train(run_command, tmp_path, '--experiment', 'a', '--val-num-samples', '899', '--mean', '0.3', '--std', '0.4')
    row = (tmp_path / 'a' / 'summary.csv').read_text().splitlines()[-1].split(',')
    capsys.readouterr()
    results_file = tmp_path / 'results.csv'
    checkpoint = tmp_path / 'a' / 'last.pth.tar'
    assert run_command(validation.main, '--checkpoint', checkpoint, '--results-file', results_file, '-j', '0') == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result['count'] == 899
    assert result['img_size'] == 32
    assert result['top1'] == pytest.approx(float(row[4]), abs=1e-4)
    assert result['top1'] + result['top1_err'] == pytest.approx(100)
    with open(results_file, newline='') as file:
        assert next(csv.DictReader(file))['top1'] == str(result['top1'])


def test_gradient_accumulation_equals_the_larger_batch(run_command, tmp_path):
    """BatchNorm sees other batches, so the model is one without: the losses must then agree to rounding."""
    flags = [
        '--no-aug', '--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32',
        '--model', 'vit_tiny_patch16_224',
    ]  # fmt: skip
    kwargs = ['--model-kwargs', 'img_size=32', 'patch_size=8', 'embed_dim=24', 'depth=1', 'num_heads=2']
    assert train(run_command, tmp_path, '--experiment', 'a', *flags, '-b', '16', *kwargs) == 0
    assert train(run_command, tmp_path, '--experiment', 'b', *flags, '-b', '8', '--grad-accum-steps', '2', *kwargs) == 0
    state, other = (weights(tmp_path / name / 'last.pth.tar') for name in 'ab')
    for key in state:
        torch.testing.assert_close(state[key], other[key], rtol=1e-4, atol=1e-6)


def test_image_folders_train(run_command, tmp_path, image_tree, capsys):
    root = image_tree(classes=3, per_class=4)
    flags = [
        *TINY_MODEL,
        '--in-chans',
        '3',
        '--epochs',
        '1',
        '--warmup-epochs',
        '0',
        '--cooldown-epochs',
        '0',
        '-b',
        '4',
    ]
    output = tmp_path / 'out'
    assert run_command(command.main, root, *flags, '-j', '0', '--output', output, '--experiment', 'a') == 0
    capsys.readouterr()
    assert run_command(validation.main, root, '--checkpoint', output / 'a' / 'last.pth.tar', '-j', '0') == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['count'] == 12
    (root / 'val' / 'digit2').rename(root / 'val' / 'digit7')
    assert run_command(command.main, root, *flags, '-j', '0', '--output', output, '--experiment', 'b') == 2
    assert 'different classes' in capsys.readouterr().err
    assert not (output / 'b').exists()


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'ddf_mul_resnet5'], "unknown model 'ddf_mul_resnet5': did you mean ddf_mul_resnet50"),
        (['--pretrained'], "cannot build model 'ddf_mul_resnet26': No pretrained weights"),
        (['--initial-checkpoint', '/nowhere.pth'], 'checkpoint not found: /nowhere.pth'),
        (['--resume', '/nowhere.pth'], 'checkpoint to resume not found: /nowhere.pth'),
        (['--resume', 'auto'], '--resume auto needs --experiment NAME'),
        (['--device', 'cuda:99'], "device 'cuda:99' cannot be used here"),
        (['--num-classes', '4'], 'the data has 10 classes, more than num-classes 4'),
        (['--mean', '0.5', '0.5'], 'mean takes one value, or one per channel (1), got [0.5, 0.5]'),
        (['--model', 'resnet18.nonsense'], "model 'resnet18.nonsense': Invalid pretrained tag"),
        (
            ['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=1'],
            'does not take a batch of 16 images of 1 x 32',
        ),
        (['-b', '1'], 'does not take a batch of 1 images'),
        (['--dataset', 'digitz'], "unknown data set 'digitz': expected 'digits'"),
        (['--opt', 'adamv'], "unknown optimiser 'adamv' (did you mean adam"),
        (['--opt', 'fusedsgd'], "optimiser 'fusedsgd' needs NVIDIA's apex"),
        (['--opt', 'lookahead_fusedadam'], "optimiser 'lookahead_fusedadam' needs NVIDIA's apex"),
        (['--opt', 'bnbadam'], "optimiser 'bnbadam' needs bitsandbytes"),
        (['--opt', 'adamw', '--opt-kwargs', 'nonsense=1'], "cannot build optimiser 'adamw'"),
        (['--model-kwargs', 'nonsense=1'], "cannot build model 'ddf_mul_resnet26'"),
    ],
)
def test_mistakes_end_with_one_line_and_status_2(run_command, tmp_path, capsys, flags, message):
    assert train(run_command, tmp_path / 'out', *flags) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith('error: ')
    assert message in error
    assert not (tmp_path / 'out').exists()


def test_published_weights_that_cannot_be_had_end_with_one_line(run_command, tmp_path, capsys, monkeypatch):
    def unreachable(*arguments, **settings):
        raise FileNotFoundError('no such file\nin the cache')

    monkeypatch.setattr('timm.models._builder.load_pretrained', unreachable)
    assert train(run_command, tmp_path / 'out', '--kd-model-name', 'resnet10t') == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot get the published weights of model 'resnet10t': no such file" in error
    assert '--kd-checkpoint' in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('content', [b'', b'no checkpoint at all', b'a note\n', b'PK\x03\x04 broken zip'])
def test_unreadable_checkpoint(run_command, tmp_path, capsys, content):
    path = tmp_path / 'broken.pth.tar'
    path.write_bytes(content)
    assert run_command(validation.main, '--dataset', 'digits', '--checkpoint', path) == 2
    assert f'cannot read checkpoint {path}' in capsys.readouterr().err


def test_checkpoint_of_another_model(run_command, tmp_path, capsys):
    path = tmp_path / 'other.pth'
    torch.save(timm.create_model('resnet18', num_classes=10, in_chans=1).state_dict(), path)
    assert run_command(validation.main, '--dataset', 'digits', *TINY_MODEL, '--checkpoint', path) == 2
    assert 'do not fit model DDFResNet' in capsys.readouterr().err


def test_checkpoint_with_a_namespace_opens(run_command, tmp_path, capsys):
    """The official release and timm keep an argparse.Namespace in theirs."""
    import argparse

    model = timm.create_model('ddf_mul_resnet26', num_classes=10, in_chans=1)
    path = tmp_path / 'official.pth.tar'
    torch.save({'arch': 'ddf_mul_resnet26', 'state_dict': model.state_dict(), 'args': argparse.Namespace(lr=0.1)}, path)
    flags = ['--dataset', 'digits', '--in-chans', '1', '--img-size', '32', '--num-samples', '20', '-j', '0']
    assert run_command(validation.main, *flags, '--num-classes', '10', '--checkpoint', path) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['count'] == 20


def test_diverged_run_stops_and_keeps_its_last_state(run_command, tmp_path, capsys):
    flags = ['--experiment', 'a', '--lr', '1e20', '--warmup-epochs', '0', '--train-num-samples', '96']
    assert train(run_command, tmp_path, *flags) == 2
    assert 'optimiser steps in a row were no finite numbers' in capsys.readouterr().err


def test_nan_is_never_best():
    best = Best()
    assert not best.improves(float('nan'), 0, smaller_is_better=True)
    assert best.improves(3.0, 1, smaller_is_better=True)
    assert not best.improves(float('nan'), 2, smaller_is_better=True)
    assert not best.improves(None, 3, smaller_is_better=True)
    assert best.improves(2.0, 4, smaller_is_better=True)
    assert not best.improves(4.0, 5, smaller_is_better=True)
    assert (best.metric, best.epoch) == (2.0, 4)


def test_resume_from_a_checkpoint_elsewhere_with_a_new_optimiser(run_command, tmp_path, capsys):
    flags = ['--train-num-samples', '16', '--warmup-epochs', '0']
    assert train(run_command, tmp_path, *flags, '--experiment', 'a', '--epochs', '1') == 0
    checkpoint = tmp_path / 'a' / 'last.pth.tar'
    resume = ['--resume', checkpoint, '--epochs', '2', '--opt', 'adamw']
    assert train(run_command, tmp_path, *flags, *resume, '--experiment', 'b') == 2
    assert 'give --no-resume-opt' in capsys.readouterr().err
    assert train(run_command, tmp_path, *flags, *resume, '--experiment', 'b', '--no-resume-opt') == 0
    assert torch.load(tmp_path / 'b' / 'last.pth.tar', weights_only=True)['epoch'] == 1
    assert [line.split(',')[0] for line in (tmp_path / 'b' / 'summary.csv').read_text().splitlines()] == ['epoch', '1']
    assert train(run_command, tmp_path, *flags, '--resume', checkpoint, '--epochs', '2') == 0  # goes on in its folder
    rows = (tmp_path / 'a' / 'summary.csv').read_text().splitlines()
    assert [row.split(',')[0] for row in rows] == ['epoch', '0', '1']


def test_resuming_never_overwrites_another_run(run_command, tmp_path, capsys):
    flags = ['--train-num-samples', '16', '--warmup-epochs', '0', '--epochs', '1']
    for name in 'ab':
        assert train(run_command, tmp_path, *flags, '--experiment', name) == 0
    resume = ['--resume', tmp_path / 'a' / 'last.pth.tar']
    assert train(run_command, tmp_path, *flags, *resume, '--epochs', '2', '--experiment', 'b') == 2
    assert f'the run folder {tmp_path / "b"} exists' in capsys.readouterr().err
    assert train(run_command, tmp_path, *flags, *resume, '--experiment', 'c') == 2
    assert 'nothing to train: the run would start at epoch 1, but has 1 epochs' in capsys.readouterr().err


def test_unreadable_images_stop_validation_and_are_named(run_command, tmp_path, image_tree, capsys):
    root = image_tree(classes=2, per_class=8)
    damaged = next((root / 'val' / 'digit1').iterdir())
    damaged.write_bytes(damaged.read_bytes()[:20])
    flags = [*TINY_MODEL, '--num-classes', '2', '-b', '4', root]
    for workers in ('0', '1'):
        assert run_command(validation.main, *flags, '-j', workers) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        problem, remedy = f'cannot read image {damaged} (Truncated File Read)', 'leave it out with --allow-corrupt'
        assert error == f'error: {problem}: mend or remove it, or {remedy}'


def test_one_tar_is_no_training_data(run_command, tmp_path, image_tree, capsys):
    root = image_tree(classes=2, per_class=8)
    (tmp_path / 'tars').mkdir()
    for split in ('train', 'val'):
        with tarfile.open(tmp_path / 'tars' / f'{split}.tar', 'w') as tar:
            tar.add(root / split, arcname='.')
    flags = [*TINY_MODEL, '-b', '4', '-j', '0', '--epochs', '1', '--warmup-epochs', '0', '--cooldown-epochs', '0']
    output = ['--output', tmp_path / 'out', '--experiment', 'a']
    assert run_command(command.main, tmp_path / 'tars' / 'train.tar', *flags, *output) == 2
    assert 'would be both training and validation set' in capsys.readouterr().err
    assert run_command(command.main, tmp_path / 'tars', *flags, *output) == 0
    assert weights(tmp_path / 'out' / 'a' / 'last.pth.tar')['fc.weight'].shape[0] == 2


def test_class_map_comes_from_the_checkpoint(run_command, tmp_path, image_tree, capsys):
    root = image_tree(classes=2, per_class=8)
    class_map = tmp_path / 'classes.txt'
    class_map.write_text('digit1\ndigit0\n')
    flags = [*TINY_MODEL, '-b', '4', '-j', '0', '--epochs', '2', '--warmup-epochs', '0', '--cooldown-epochs', '0']
    run_command(command.main, root, *flags, '--class-map', class_map, '--output', tmp_path / 'out', '--experiment', 'a')
    with open(tmp_path / 'out' / 'a' / 'summary.csv', newline='') as file:
        expected = float(list(csv.DictReader(file))[-1]['validation/loss'])
    capsys.readouterr()
    assert run_command(validation.main, root, '--checkpoint', tmp_path / 'out' / 'a' / 'last.pth.tar', '-j', '0') == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['loss'] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    'content', [{'state_dict': [1]}, {'state_dict': {1: torch.ones(1)}}, {'model': torch.ones(1)}, {}]
)
def test_file_that_is_no_checkpoint(run_command, tmp_path, capsys, content):
    path = tmp_path / 'odd.pth'
    torch.save(content, path)
    assert run_command(validation.main, '--dataset', 'digits', '--checkpoint', path) == 2
    assert 'is not a checkpoint' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['', 'no_such_folder/a.csv', 'a.txt'])
def test_results_file_is_checked_first(run_command, tmp_path, capsys, name):
    assert run_command(validation.main, '--dataset', 'digits', '--results-file', tmp_path / name) == 2
    assert str(tmp_path / name) in capsys.readouterr().err
