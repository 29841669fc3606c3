"""inference_time.py: its tables, and what it refuses."""

import itertools

import pytest
import torch

from ddfnet import inference_time
from ddfnet.timing import Candidate, time_candidates


def test_operation_table(run_command, capsys):
    flags = ['--device', 'cpu', '--channels', '8', '-b', '2', '--sizes', '5', '7', '--min-time', '0.01']
    assert run_command(inference_time.main, *flags) == 0
    output = capsys.readouterr().out
    assert output.count('2 x 8 x 5 x 5, kernel 3') == 1
    for row in ('convolution', 'depthwise convolution', 'DDF module', 'DDF operation'):
        assert sum(line.startswith(f'{row}  ') for line in output.splitlines()) == 2


@pytest.mark.parametrize('precision', [[], ['--amp', '--channels-last']])
def test_model_table(run_command, capsys, precision):
    flags = ['--model', 'ddf_mul_resnet26', 'resnet26', '--device', 'cpu', '-b', '1', '--img-size', '32']
    assert run_command(inference_time.main, *flags, '--min-time', '0.01', *precision) == 0
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert [row.split()[0] for row in rows] == ['ddf_mul_resnet26', 'resnet26']
    assert rows[0].endswith('1.00')


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'ddf_mul_resnet2'], "unknown model 'ddf_mul_resnet2': did you mean ddf_mul_resnet26"),
        (['--kernel-size', '2'], '--kernel-size: expected an odd number of at least 3, got 2'),
        (['--device', 'abacus'], "device 'abacus' cannot be used here"),
    ],
)
def test_mistakes(run_command, capsys, flags, message):
    assert run_command(inference_time.main, *flags) == 2
    assert message in capsys.readouterr().err


def test_medians_of_passes_taken_in_turns(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr('ddfnet.timing.time.perf_counter', lambda: clock[0])
    order: list[str] = []

    def candidate(name: str, durations: list[float]) -> Candidate:
        passes = itertools.cycle(durations)

        def run() -> None:
            order.append(name)
            clock[0] += next(passes)

        return Candidate(name, run, samples=4)

    candidates = [candidate('even', [2.0]), candidate('spiky', [1.0] * 9 + [100.0])]
    even, spiky = time_candidates(candidates, 20.0, torch.device('cpu'))
    assert (even.name, even.median, even.samples_per_s) == ('even', 2.0, 2.0)
    assert spiky.median == 1.0
    assert sum(first != second for first, second in itertools.pairwise(order)) >= 9
