"""Measures tables row by row, each row in a process of its own, the processes in turns.

Taking turns, a machine that gets slower or faster meanwhile favours no row. Rows that together do not fit into memory
are timed one after another instead.
"""

import time
from typing import Any

import torch

from ddfnet.benchmarking.budget import PASSES, Budget
from ddfnet.benchmarking.processes import WorkerFailure, WorkerProcess
from ddfnet.benchmarking.progress import Progress
from ddfnet.benchmarking.results import Row, Table
from ddfnet.config import InferenceConfig
from ddfnet.errors import UserError
from ddfnet.memory import OutOfMemory

_ROUNDS = 5
_SHARE_OF_MEMORY = 0.8


class Session:
    """The processes of all rows. A row that comes again, in the next table, is measured in the same process."""

    def __init__(self, config: InferenceConfig, device: torch.device, progress: Progress) -> None:
        self._config = config
        self._device = device
        self._progress = progress
        self._workers: dict[int, WorkerProcess] = {}

    def __enter__(self) -> 'Session':
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def environment(self) -> dict[str, Any]:
        """What measurements depend on, as a worker finds it."""
        return self._worker(0).call('environment')

    def measure(self, table: Table, budget: Budget | None = None) -> None:
        """Fills the rows in. Whatever stops it, an interruption included, the rows keep what was measured.

        Args:
            budget: Leaves rows out, if need be.
        """
        self._progress.start(table.title, len(table.rows))
        if budget is not None:
            budget.choose(table)
        for row in table.rows:
            if not row.left_out:
                self._say('building', table, row)
                row.built = self._ask(row, 'build', row.job)
        if budget is not None:
            budget.choose(table)
        built = [row for row in table.rows if row.built is not None and not row.left_out]
        together = built if _fit_together(built) else []
        for row in together:
            row.in_turns = True
        self._prepare_and_time(table, together)
        for row in built:
            if not row.times and not row.details:
                row.in_turns = len(built) == 1
                self._measure_alone(table, row)

    def _measure_alone(self, table: Table, row: Row) -> None:
        """A model halves its batch until it fits; maps are of the size that was asked for."""
        is_model = row.job.shape is None
        batch_size = row.job.batch_size
        while batch_size:
            row.problem = ''
            self._prepare_and_time(table, [row], batch_size, may_halve=is_model)
            smaller = (row.prepared.batch_size if row.prepared else batch_size) // 2
            killed = row.position not in self._workers  # one that lives has tried smaller batches itself
            ran_out = not row.times and not row.details and (row.prepared is not None or killed)
            batch_size = smaller if is_model and ran_out else 0

    def _prepare_and_time(
        self, table: Table, rows: list[Row], batch_size: int | None = None, may_halve: bool = False
    ) -> None:
        """Rows that do not fit into memory, or fail, stay without times."""
        for row in rows:
            self._say('warming up', table, row)
            start = time.monotonic()
            row.prepared = self._ask(row, 'prepare', row.job, batch_size or row.job.batch_size, may_halve)
            row.prepare_seconds = time.monotonic() - start
        self._time(table, [row for row in rows if row.prepared is not None])
        for row in rows:
            if row.position in self._workers:
                self._ask(row, 'drop')

    def _time(self, table: Table, rows: list[Row]) -> None:
        min_time = self._config.benchmark.min_time
        for turn in range(_ROUNDS):
            for row in rows:
                if row.problem or (len(row.times) >= PASSES and sum(row.times) >= min_time):
                    continue
                self._say(f'round {turn + 1} of {_ROUNDS},', table, row)
                row.times += self._ask(row, 'time', min_time / _ROUNDS) or []

    def _say(self, what: str, table: Table, row: Row) -> None:
        self._progress.show(f'{what} {row.label} ({row.position + 1} of {len(table.rows)})')

    def _ask(self, row: Row, method: str, *arguments: Any) -> Any:
        """The worker's answer; None where it has none, with the reason in the row."""
        worker = self._worker(row.position)
        try:
            return worker.call(method, *arguments)
        except UserError as error:
            row.problem, row.mistaken = str(error), not row.dispensable
        except OutOfMemory as error:
            row.problem = str(error)
        except WorkerFailure as error:
            row.problem, row.details = str(error), error.details or str(error)
        if not worker.is_alive:
            del self._workers[row.position]
        return None

    def _worker(self, position: int) -> WorkerProcess:
        if position not in self._workers:
            self._workers[position] = WorkerProcess(self._config, self._device)
        return self._workers[position]


def _fit_together(rows: list[Row]) -> bool:
    """Whether the memory suffices for all at once, as far as that is known; false for a single row, which is alone."""
    built = [row.built for row in rows if row.built is not None]
    needed = [each.needed for each in built if each.needed is not None]
    free = [each.free for each in built if each.free is not None]
    return len(built) > 1 and (not needed or not free or sum(needed) <= _SHARE_OF_MEMORY * min(free))
