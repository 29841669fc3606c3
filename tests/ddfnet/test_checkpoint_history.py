"""Which epochs keep a checkpoint of their own."""

import csv
import math

import pytest
import torch

from ddfnet.training import command
from ddfnet.training.checkpoint import Best

RUN = (
    *('--dataset', 'digits', '--train-num-samples', 48, '--val-num-samples', 60, '-j', 0, '--device', 'cpu'),
    *('--model', 'test_resnet', '--img-size', 32, '-b', 8, '--warmup-epochs', 0, '--cooldown-epochs', 0, '--lr', 0.02),
)


@pytest.mark.parametrize(('smaller_is_better', 'kept'), [(False, [3, 1]), (True, [0, 2])])
def test_the_best_are_kept_and_of_equal_ones_the_later(smaller_is_better, kept):
    best = Best()
    dropped = []
    for epoch, metric in enumerate([1.0, 5.0, 2.0, 5.0, math.nan, None]):
        dropped += best.rank(metric, epoch, smaller_is_better, most=2)
    assert [epoch for epoch, _ in best.kept] == kept
    assert sorted(dropped + kept) == [0, 1, 2, 3]


def test_a_resumed_run_goes_on_with_its_history(run_command, tmp_path):
    flags = (*RUN, '--output', tmp_path, '--experiment', 'a', '--checkpoint-hist', 2)
    assert run_command(command.main, *flags, '--epochs', 3) == 0
    assert run_command(command.main, *flags, '--epochs', 5, '--resume', 'auto') == 0
    with open(tmp_path / 'a' / 'summary.csv', newline='') as file:
        top1 = {int(row['epoch']): float(row['validation/top1']) for row in csv.DictReader(file)}
    wanted = sorted(top1, key=lambda epoch: (-top1[epoch], -epoch))[:2]
    found = {path.name: torch.load(path, weights_only=True)['epoch'] for path in tmp_path.glob('a/checkpoint-*')}
    assert found == {f'checkpoint-{epoch}.pth.tar': epoch for epoch in wanted}


def test_none_are_kept_where_none_are_wanted(run_command, tmp_path):
    flags = (*RUN, '--output', tmp_path, '--experiment', 'a', '--checkpoint-hist', 0, '--epochs', 1)
    assert run_command(command.main, *flags) == 0
    assert not list(tmp_path.glob('a/checkpoint-*'))
