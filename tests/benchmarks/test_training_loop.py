"""benchmarks/training_loop.py: what it compares, and that it refuses loops that train otherwise."""

import pytest
import torch

from benchmarks import training_loop

from .conftest import QUICK, a_row

TINY_LOOP = training_loop.Workload(
    '--model ddf_mul_resnet26 --model-kwargs channels=(8,8,16,16) --img-size 32 -b 8 --train-num-samples 16'
)


def test_training_loops(run):
    flags = [*QUICK, '--num-threads', '1', '--visits', '2']
    status, stored = run(training_loop, [a_row('loop', TINY_LOOP, required=None)], *flags)
    assert status == 0
    (case,) = stored['rows'][0]['cases']
    assert {name: times['passes'] for name, times in case['times'].items()} == {'train.py': 4, 'bare': 4}
    assert case['value'] > 0
    assert case['note'].startswith('processor time ')
    assert case['note'].endswith('; 4 rounds')


def test_turns_of_loops_compare_neighbours_in_time():
    order = []
    turns = training_loop.take_short_turns(
        {name: lambda name=name: order.append(name) for name in ('train.py', 'bare')}, 1e-9, 3
    )
    assert order[-6:] == ['train.py', 'bare', 'bare', 'train.py', 'train.py', 'bare']
    epochs = [training_loop.Epoch(wall, 0.0) for wall in (1.0, 10.0, 100.0)]  # a machine that gets slower
    turns = {'train.py': [training_loop.Epoch(1.01 * epoch.wall, 0.0) for epoch in epochs], 'bare': epochs}
    assert training_loop._quartiles(turns, lambda epoch: epoch.wall) == pytest.approx((1.01,) * 3)


def test_loop_that_trains_otherwise_gets_no_ratio(run, monkeypatch):
    monkeypatch.setattr(training_loop, 'LabelSmoothingCrossEntropy', lambda smoothing: torch.nn.CrossEntropyLoss())
    row = a_row('loop', training_loop.Workload(f'{TINY_LOOP} --smoothing 0.2'), required=None)
    status, stored = run(training_loop, [row], *QUICK, '--num-threads', '1')
    assert status == 1
    (case,) = stored['rows'][0]['cases']
    assert case['value'] is None
    assert 'losses of the first epoch differ' in case['fault']
