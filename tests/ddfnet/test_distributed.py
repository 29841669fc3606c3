"""Real processes over gloo: gradients, training and validation in two against one."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN

ROOT = Path(__file__).parents[2]
# waiting threads of one process must not take the other's core
ENVIRONMENT = os.environ | {'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'PYTHON': sys.executable}


def run(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)


def torchrun(processes: int, *words: object) -> subprocess.CompletedProcess:
    launcher = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', processes]
    return run(*launcher, *words)


def last_line(result: subprocess.CompletedProcess) -> str:
    assert result.returncode == 0, result.stderr
    return result.stdout.strip().splitlines()[-1]


def test_averaged_gradients_are_those_of_the_joined_batch(tmp_path):
    flags = [*TINY_RUN, '--no-aug', '--smoothing', '0']
    alone = run(sys.executable, '-m', 'tests.ddfnet.gradients', tmp_path / '1.pt', *flags, '-b', '32')
    assert alone.returncode == 0, alone.stderr
    two = torchrun(2, '-m', 'tests.ddfnet.gradients', tmp_path / '2.pt', *flags, '-b', '16')
    assert two.returncode == 0, two.stderr
    expected, gradients = torch.load(tmp_path / '1.pt'), torch.load(tmp_path / '2.pt')
    assert expected.keys() == gradients.keys()
    alive = [name for name, gradient in expected.items() if gradient.abs().max() > 0]
    assert len(alive) > 0.9 * len(expected)  # a hidden unit or two may be dead
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12)


def test_two_processes_train_into_one_folder_and_validate_exactly(tmp_path):
    script = ROOT / 'scripts' / 'distributed_train.sh'
    flags = [*TINY_RUN, '--epochs', '2', '--val-num-samples', '51', '-b', '8', '--model-ema', '--output', tmp_path]
    result = run(script, 2, *flags, '--experiment', 'two')
    assert result.returncode == 0, result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ['two']
    # 96 images over two processes of 8: six steps an epoch, reported once
    assert result.stdout.count('[   6/6]') == 2
    resumed = run(script, 2, *flags, '--experiment', 'two', '--resume', 'auto')
    assert 'finished' in last_line(resumed)
    checkpoint = tmp_path / 'two' / 'last.pth.tar'
    validate = ['--checkpoint', checkpoint, '--num-samples', '51', '-b', '8', '-j', '0', '--device', 'cpu']
    alone = json.loads(last_line(run(sys.executable, 'validate.py', *validate)))
    sharded = json.loads(last_line(torchrun(2, 'validate.py', *validate)))
    assert alone['count'] == sharded['count'] == 51
    assert (alone['top1'], alone['top5']) == (sharded['top1'], sharded['top5'])
    assert alone['loss'] == pytest.approx(sharded['loss'], abs=1e-5)
    with open(tmp_path / 'two' / 'summary.csv', newline='') as file:
        row = list(csv.DictReader(file))[-1]
    average = json.loads(last_line(run(sys.executable, 'validate.py', *validate, '--use-ema')))
    assert float(row['ema/loss']) == pytest.approx(average['loss'], abs=1e-5)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['0'], 'usage:'),
        (['two'], 'usage:'),
        (['2', '/nowhere', '--model', 'ddf_mul_resnet50'], '/nowhere does not exist'),
        (['2', '--dataset', 'digits', '--epochss', '3'], 'did you mean --epochs?'),
        (['2', '--dataset', 'digits', '-b', '500'], 'one optimiser step takes 1000 images'),
        (['2', *TINY_MODEL, '--dataset', 'digits', '--resume', 'auto'], 'needs --experiment NAME'),
    ],
)
def test_launcher_stops_at_mistakes(words, message):
    result = run(ROOT / 'scripts' / 'distributed_train.sh', *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert 'torch.distributed' not in result.stderr


def test_two_launches_do_not_collide(tmp_path):
    script = ROOT / 'scripts' / 'distributed_train.sh'
    flags = [*TINY_RUN, '--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32', '-b', '16']
    launches = [
        subprocess.Popen(
            [str(word) for word in (script, 1, *flags, '--output', tmp_path, '--experiment', name)],
            cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for name in ('a', 'b')
    ]  # fmt: skip
    assert [launch.wait(timeout=300) for launch in launches] == [0, 0]
    weights = [torch.load(tmp_path / name / 'last.pth.tar', weights_only=True)['state_dict'] for name in ('a', 'b')]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
