"""What of several tables is measured where there is not time for everything."""

import itertools
import math
import time
from collections.abc import Sequence

from ddfnet.benchmarking.results import Row, Table
from ddfnet.memory import does_not_fit

PASSES = 3
_WARM_UPS = 6
_OVERHEAD_S = 0.4
_TOO_LONG = 'left out: it would take about {:.0f} s, more than the budget allows'


class Budget:
    """Shares the time until `end`, a value of time.monotonic(), among tables that grow in size.

    Of the first table nothing is left out. Of the others what takes least is measured first, where a row counts double
    that is the second quickest, threefold the third, and so on: the quick rows of large maps are worth more than the
    slow ones of small maps. How long a row takes is known from the last table that has it, scaled by size.

    Args:
        min_time: Seconds that each row is timed for, at least.
    """

    def __init__(self, tables: Sequence[Table], end: float, min_time: float) -> None:
        self._tables = tables
        self._end = end
        self._min_time = min_time

    def choose(self, table: Table) -> None:
        """Leaves rows of the table out, for what is known: once before trials of its rows, and again after them."""
        remaining = self._end - time.monotonic()
        for row, seconds, problem in [] if table is self._tables[0] else self._by_worth(table):
            if not problem and seconds <= remaining:
                remaining -= seconds
            elif any(row is each for each in table.rows):
                row.leave_out(problem or _TOO_LONG.format(seconds), 0.0 if problem else seconds)
        if all(row.left_out for row in table.rows):
            table.left_out = _TOO_LONG.format(sum(row.expected for row in table.rows))

    def _by_worth(self, table: Table) -> list[tuple[Row, float, str]]:
        """Rows of this table and of those that follow; the seconds they take; why they do not fit into memory."""
        count = next(number for number, each in enumerate(self._tables) if each is table)
        tried = [row for each in self._tables[: count + 1] for row in each.rows if row.built is not None]
        known = {row.position: row for row in tried}
        quickest_first = sorted(known.values(), key=lambda row: _seconds(row) / _size(row))
        found = []
        for (number, one), each in itertools.product(enumerate(quickest_first, 1), self._tables[count:]):
            row = each.rows[one.position]
            growth = _size(row) / _size(one)
            seconds = self._duration(one, growth)
            if not row.left_out:
                found.append((number * seconds, (row, seconds, _memory_problem(one, growth))))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _duration(self, known: Row, growth: float) -> float:
        assert known.built is not None
        seconds = _seconds(known) * growth
        timed = max(PASSES * seconds, self._min_time)
        known_passes = known.built.setup_seconds + _WARM_UPS * _seconds(known)
        overhead = max(_OVERHEAD_S, known.prepare_seconds - known_passes)  # compiling takes as long for any size
        return overhead + known.built.setup_seconds * growth + _WARM_UPS * seconds + timed


def _seconds(row: Row) -> float:
    """Of a pass: as measured, else as tried."""
    assert row.built is not None
    return row.statistics.median if row.statistics else row.built.seconds


def _size(row: Row) -> int:
    return math.prod(row.job.shape or (row.job.batch_size,))


def _memory_problem(known: Row, growth: float) -> str:
    """Of a map; a model halves its batch instead."""
    if known.built is None or known.job.shape is None:
        return ''
    needed = known.prepared.peak_memory if known.prepared else known.built.needed
    return does_not_fit(None if needed is None else int(needed * growth), known.built.free)
