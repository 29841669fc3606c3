"""`--dry-run` on every recipe: it prints what would run, and leaves nothing."""

import struct
from pathlib import Path

import pytest
import yaml

from ddfnet.config import load_train_config
from ddfnet.training import command
from tests.ddfnet.conftest import TINY_RUN

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.yaml'))
SMALL = ['-b', '4', '--grad-accum-steps', '1', '-vb', '4', '-j', '0', '--device', 'cpu']


def fashion_mnist(root):
    """A few images in the files of Fashion-MNIST."""
    raw = root / 'FashionMNIST' / 'raw'
    raw.mkdir(parents=True)
    for split, count in (('train', 8), ('t10k', 4)):
        labels = [number % 10 for number in range(count)]
        images = bytes(range(count)) * (28 * 28)
        (raw / f'{split}-images-idx3-ubyte').write_bytes(struct.pack('>4i', 0x803, count, 28, 28) + images)
        (raw / f'{split}-labels-idx1-ubyte').write_bytes(struct.pack('>2i', 0x801, count) + bytes(labels))
    return root


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_recipe(run_command, tmp_path, image_tree, capsys, path):
    flags = [*SMALL, '-c', path, '--output', tmp_path / 'out']
    dataset = load_train_config(['-c', str(path), 'DATA']).data.dataset
    if dataset == 'torch/fashion_mnist':
        flags += [fashion_mnist(tmp_path / 'data')]
    elif not dataset:
        flags += [image_tree(classes=2, per_class=4), '--img-size', '64']
        flags += ['--model-kwargs', 'channels=(8,8,16,16)', 'layers=(1,1,1,1)']  # tests of models have them whole
    assert run_command(command.main, *flags, '--dry-run') == 0
    settings, _, rest = capsys.readouterr().out.partition('\n\n')
    assert yaml.safe_load(settings)['model'] == load_train_config(['-c', str(path), 'DATA']).model.model
    for part in (
        ' M parameters, ',
        ' GMACs at ',
        ' steps per epoch of 4 images',
        '\nlearning rate ',
        '\none step: loss ',
    ):
        assert part in rest
    assert not (tmp_path / 'out').exists()


def test_schedule_and_size_are_those_of_the_run(run_command, tmp_path, capsys):
    assert run_command(command.main, *TINY_RUN, '--output', tmp_path, '--dry-run') == 0
    settings, _, rest = capsys.readouterr().out.partition('\n\n')
    lines = rest.splitlines()
    assert '6 steps per epoch of 16 images, 3 epochs' in lines
    row = next(index for index, line in enumerate(lines) if line.startswith('epoch '))
    shown = dict(zip(lines[row].split()[1:], map(float, lines[row + 1].split()[2:])))
    assert run_command(command.main, *TINY_RUN, '--output', tmp_path, '--experiment', 'a') == 0
    summary = (tmp_path / 'a' / 'summary.csv').read_text().splitlines()[1:]
    ran = {cells[0]: float(cells[2]) for cells in (line.split(',') for line in summary)}
    assert shown == pytest.approx(ran, rel=5e-3)
    assert yaml.safe_load((tmp_path / 'a' / 'args.yaml').read_text()) == {
        **yaml.safe_load(settings),
        'output': str(tmp_path),
    }


def test_loss_that_is_no_number_is_a_mistake(run_command, tmp_path, capsys):
    flags = ['--output', tmp_path / 'out', '--dry-run', '--mean', '1e38', '--std', '1e-38']
    assert run_command(command.main, *TINY_RUN, *flags) == 2
    assert 'the loss of the first step is nan' in capsys.readouterr().err


def test_learning_rate_of_a_plateau_is_not_foretold(run_command, tmp_path, capsys):
    flags = ['--output', tmp_path / 'out', '--dry-run', '--sched', 'plateau', '--warmup-epochs', '0']
    assert run_command(command.main, *TINY_RUN, *flags) == 0
    assert 'learning rate 0.02 at the start, then as the validation metric says' in capsys.readouterr().out


def test_checkpoint_to_go_on_from_is_read(run_command, tmp_path, capsys):
    flags = [*TINY_RUN, '--output', tmp_path / 'out']
    damaged = tmp_path / 'damaged.pth.tar'
    damaged.write_bytes(b'half of a checkpoint')
    assert run_command(command.main, *flags, '--dry-run', '--resume', damaged) == 2
    assert 'error: cannot read checkpoint' in capsys.readouterr().err
    assert run_command(command.main, *flags, '--experiment', 'a', '--epochs', '1', '--warmup-epochs', '0') == 0
    before = (tmp_path / 'out' / 'a' / 'last.pth.tar').read_bytes()
    capsys.readouterr()
    assert run_command(command.main, *flags, '--experiment', 'a', '--resume', 'auto', '--dry-run') == 0
    assert f'going on from {tmp_path / "out" / "a" / "last.pth.tar"}' in capsys.readouterr().out
    assert (tmp_path / 'out' / 'a' / 'last.pth.tar').read_bytes() == before


def test_folder_without_a_name_is_marked(run_command, tmp_path, capsys):
    marked = ', named by the time at which a run starts: --experiment gives a name'
    for name in ([], ['--experiment', 'a']):
        assert run_command(command.main, *TINY_RUN, '--output', tmp_path, '--dry-run', *name) == 0
        assert (marked in capsys.readouterr().out) != bool(name)
