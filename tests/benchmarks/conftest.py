"""How the tests run a benchmark: on rows of their own, for no longer than it takes to compute something."""

import json
import os
from collections.abc import Callable

import pytest
import torch

from benchmarks import model, network, op, roofline, training_loop
from benchmarks.requirements import Row

QUICK = ['--num-threads', '2', '--seconds', '0.001', '--rounds', '2']


@pytest.fixture
def run(monkeypatch, tmp_path) -> Callable[..., tuple[int, dict]]:
    """Runs a benchmark on small limits and the given rows; gives its exit status and its JSON."""
    monkeypatch.setattr(roofline, '_LARGE', 2**16)
    monkeypatch.setattr(roofline, '_MATRIX', 32)
    monkeypatch.setattr(network, '_SMALL', (2, 3, 32, 32))
    monkeypatch.delattr(os, 'execve')
    threads = torch.get_num_threads()

    def run_it(script, rows: list[Row], *flags: str) -> tuple[int, dict]:
        target = tmp_path / 'x.json'
        names = {op: 'OPERATION_ROWS', model: 'MODEL_ROWS', training_loop: 'LOOP_ROWS'}
        monkeypatch.setattr(script, names[script], tuple(rows))
        monkeypatch.setattr('sys.argv', ['command', *flags, '--json', str(target)])
        try:
            status = script.main()
        except SystemExit as exit_:
            status = exit_.code
        return status, json.loads(target.read_text()) if target.exists() else {}

    yield run_it
    torch.set_num_threads(threads)


def a_row(measure: str, *cases: object, required: float | None = 1e9, aim: float | None = 1e9) -> Row:
    return Row(measure, f'the row {measure}', measure, required, aim, cases)
