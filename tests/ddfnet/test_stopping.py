"""Runs that a signal stops within an epoch, and that go on as if nothing had happened."""

import json
import os
import signal

import pytest
import torch

from ddfnet.config import load_train_config
from ddfnet.config.values import interval
from ddfnet.errors import UserError
from ddfnet.training import command, engine
from ddfnet.training.stopping import Interval
from tests.ddfnet.conftest import TINY_RUN


def train(run_command, output, *flags) -> int:
    return run_command(command.main, *TINY_RUN, '--epochs', '2', '--output', output, *flags)


def assert_same_state(path, other) -> None:
    first, second = (torch.load(name / 'last.pth.tar', weights_only=True) for name in (path, other))
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(first[key][name], second[key][name]) for name in first[key])
    assert first['run'] == second['run']
    assert (path / 'summary.csv').read_text() == (other / 'summary.csv').read_text()


@pytest.fixture(scope='module')
def flags() -> list[str]:
    return [
        '--drop-path',
        '0.2',
        '--model-ema',
        '--model-ema-decay',
        '0.9',
        '--sched-on-updates',
        '--warmup-epochs',
        '1',
    ]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory, flags):
    folder = tmp_path_factory.mktemp('undisturbed')
    with pytest.MonkeyPatch.context() as patch:
        words = ['train.py', *TINY_RUN, '--epochs', '2', *flags, '--output', str(folder), '--experiment', 'a']
        patch.setattr('sys.argv', words)
        assert command.main() == 0
    return folder / 'a'


@pytest.mark.parametrize(
    ('number', 'step', 'workers', 'status'),
    [('SIGTERM', 2, 0, 143), ('SIGTERM', 9, 2, 143), ('SIGUSR1', 7, 0, 138), ('SIGINT', 6, 0, 130)],
)
def test_stopped_run_goes_on_exactly(
    run_command, tmp_path, monkeypatch, flags, undisturbed, number, step, workers, status
):
    """Step 6 is the last of the first epoch, so that its validation is what the signal stops."""
    flags = [*flags, '--experiment', 'a', '-j', str(workers)]
    whole, steps = engine._optimizer_step, []

    def step_and_signal(*arguments):
        result = whole(*arguments)
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), getattr(signal, number))
        return result

    monkeypatch.setattr(engine, '_optimizer_step', step_and_signal)
    handler = signal.getsignal(signal.SIGTERM)
    assert train(run_command, tmp_path, *flags) == status
    assert signal.getsignal(signal.SIGTERM) is handler
    stopped = json.loads((tmp_path / 'a' / 'stopped.json').read_text())
    assert stopped['signal'] == getattr(signal, number)
    assert stopped['epoch'] * 6 + stopped['step'] == step
    # who counts epochs alone repeats the unfinished one
    assert torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)['epoch'] == stopped['epoch'] - 1
    monkeypatch.undo()
    assert train(run_command, tmp_path, *flags, '--resume', 'auto') == 0
    assert not (tmp_path / 'a' / 'stopped.json').exists()
    assert_same_state(undisturbed, tmp_path / 'a')


def test_checkpoint_interval_saves_within_epochs(run_command, tmp_path, monkeypatch, flags, undisturbed):
    flags = [*flags, '--experiment', 'a', '--recovery-interval', '4']
    whole, steps = engine._optimizer_step, []

    def fail_at_the_eleventh(*arguments):
        if len(steps) == 10:
            raise RuntimeError('power cut')
        steps.append(1)
        return whole(*arguments)

    monkeypatch.setattr(engine, '_optimizer_step', fail_at_the_eleventh)
    with pytest.raises(RuntimeError, match='power cut'):
        train(run_command, tmp_path, *flags)
    run = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)['run']
    assert (run['epoch'], run['step'], run['position'], run['updates']) == (1, 2, 32, 8)
    monkeypatch.undo()
    assert train(run_command, tmp_path, *flags, '--resume', 'auto') == 0
    assert_same_state(undisturbed, tmp_path / 'a')


def test_interval():
    now = [0.0]
    every = Interval(*interval('1.5m'), clock=lambda: now[0])
    due = []
    for now[0] in (60, 89, 91, 120, 182):
        due.append(every.due(1))
    assert due == [False, False, True, False, True]
    assert [step for step in range(1, 7) if Interval(*interval('3')).due(step)] == [3, 6]
    assert not Interval(*interval('0')).due(300)


@pytest.mark.parametrize('text', ['soon', '10s', '-3', '1.5'])
def test_interval_is_checked(text):
    with pytest.raises(UserError, match='--checkpoint-interval: expected a number of optimiser steps such as 300'):
        load_train_config(['--dataset', 'digits', f'--checkpoint-interval={text}'])
