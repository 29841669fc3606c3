"""Measures tables row by row, each row in a process of its own, the processes in turns.

Taking turns, a machine that gets slower or faster meanwhile favours no row. Rows that together do not fit into memory
are timed one after another instead.
"""

import time
from typing import Any

import torch

from ddfnet.benchmarking.memory import OutOfMemory
from ddfnet.benchmarking.processes import WorkerFailure, WorkerProcess
from ddfnet.benchmarking.progress import Progress
from ddfnet.benchmarking.results import Row, Table
from ddfnet.config import InferenceConfig
from ddfnet.errors import UserError

_ROUNDS = 5
_PASSES = 3
_WARM_UPS = 5
_SHARE_OF_MEMORY = 0.8


class Session:
    """The processes of all rows. A row that comes again, in the next table, is measured in the same process."""

    def __init__(self, config: InferenceConfig, device: torch.device, progress: Progress) -> None:
        self._config = config
        self._device = device
        self._progress = progress
        self._workers: dict[int, WorkerProcess] = {}
        self._left_out: set[int] = set()

    def __enter__(self) -> 'Session':
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()

    def environment(self) -> dict[str, Any]:
        """What measurements depend on, as a worker finds it."""
        return self._worker(0).call('environment')

    def measure(self, table: Table, deadline: float | None = None) -> None:
        """Fills the rows in. Whatever stops it, an interruption included, the rows keep what was measured.

        Args:
            deadline: Value of time.monotonic() after which the table should not end; where a trial says that it would,
                the rows that take longest are left out, and out of tables of larger maps too.

        Raises:
            UserError: A row cannot be built, by a mistake of the user; nothing of the table was timed.
        """
        self._progress.stage(f'{table.title}: {len(table.rows)} rows')
        for row in table.rows:
            if row.job.shape is not None and row.position in self._left_out:
                row.left_out, row.problem = True, 'left out: larger than the one above'
                continue
            self._progress.show(f'{table.title}: building {row.label}')
            row.built = self._ask(row, 'build', row.job)
        if deadline is not None:
            self._leave_out(table, deadline)
        built = [row for row in table.rows if row.built is not None and not row.left_out]
        together = built if _fit_together(built) else []
        for row in together:
            row.in_turns = True
        self._prepare_and_time(table, together)
        for row in built:
            if not row.times and not row.details:
                row.in_turns = len(built) == 1
                self._measure_alone(table, row)

    def _leave_out(self, table: Table, deadline: float) -> None:
        """Leaves as many rows as end before the deadline, the quickest; the table is left out where none does."""
        remaining = deadline - time.monotonic()
        slowest_last = sorted((row for row in table.rows if row.built is not None), key=self._duration)
        for row in slowest_last:
            seconds = self._duration(row)
            remaining -= seconds
            if remaining < 0:
                row.left_out = True
                row.problem = f'left out: it would take about {seconds:.0f} s, more than is left of the budget'
                self._left_out.add(row.position)
        if all(row.left_out for row in table.rows):
            table.left_out = next(iter(slowest_last), table.rows[0]).problem

    def _measure_alone(self, table: Table, row: Row) -> None:
        """A model halves its batch until it fits; maps are of the size that was asked for."""
        is_model = row.job.shape is None
        batch_size = row.job.batch_size
        while batch_size:
            row.problem = ''
            self._prepare_and_time(table, [row], batch_size, may_halve=is_model)
            ran_out_while_timed = row.prepared is not None and not row.times and not row.details
            batch_size = row.batch_size // 2 if is_model and ran_out_while_timed else 0

    def _prepare_and_time(
        self, table: Table, rows: list[Row], batch_size: int | None = None, may_halve: bool = False
    ) -> None:
        """Rows that do not fit into memory, or fail, stay without times."""
        for row in rows:
            self._progress.show(f'{table.title}: warming up {row.label}')
            row.prepared = self._ask(row, 'prepare', row.job, batch_size or row.job.batch_size, may_halve)
        self._time(table, [row for row in rows if row.prepared is not None])
        for row in rows:
            if row.position in self._workers:
                self._ask(row, 'drop')

    def _time(self, table: Table, rows: list[Row]) -> None:
        min_time = self._config.benchmark.min_time
        for turn in range(_ROUNDS):
            for row in rows:
                if row.problem or (len(row.times) >= _PASSES and sum(row.times) >= min_time):
                    continue
                self._progress.show(f'{table.title}: round {turn + 1} of {_ROUNDS}, {row.label}')
                row.times += self._ask(row, 'time', min_time / _ROUNDS) or []

    def _duration(self, row: Row) -> float:
        """Seconds that a row will take, by its trial."""
        assert row.built is not None
        return _WARM_UPS * row.built.seconds + max(_PASSES * row.built.seconds, self._config.benchmark.min_time)

    def _ask(self, row: Row, method: str, *arguments: Any) -> Any:
        """The worker's answer; None where it has none, with the reason in the row."""
        worker = self._worker(row.position)
        try:
            return worker.call(method, *arguments)
        except UserError as error:
            if not row.dispensable:
                raise
            row.problem = str(error)
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
