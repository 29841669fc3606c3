"""Tables of what was measured, and what was not and why."""

import dataclasses
from typing import Any

from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Built, Prepared
from ddfnet.timing import Statistics


@dataclasses.dataclass
class Row:
    """One subject on one batch.

    Attributes:
        position: Its place in the table; rows at the same place of several tables share a process.
        times: Seconds of single passes.
        prepare_seconds: What it took to compile, warm up and compare it.
        problem: Why there are no times; '' where there are, or will be.
        details: The traceback where the problem is a failure of the program.
        in_turns: Whether its passes were timed in turns with those of the other rows.
        left_out: Whether it was not tried for lack of time or memory; `problem` says so.
        expected: Seconds that measuring it would have taken, where it was left out for them.
        dispensable: Whether the user did not name it, so that it may be impossible without anybody's mistake.
        mistaken: Whether the problem is a mistake of the user.
    """

    job: Job
    label: str
    position: int
    built: Built | None = None
    prepared: Prepared | None = None
    times: list[float] = dataclasses.field(default_factory=list)
    prepare_seconds: float = 0.0
    problem: str = ''
    details: str = ''
    in_turns: bool = False
    left_out: bool = False
    expected: float = 0.0
    dispensable: bool = False
    mistaken: bool = False

    @property
    def statistics(self) -> Statistics | None:
        return Statistics.of(self.times) if self.times else None

    @property
    def batch_size(self) -> int:
        """Images per pass, as timed; as asked for where nothing was timed."""
        return self.prepared.batch_size if self.prepared else self.job.batch_size

    @property
    def seconds_per_sample(self) -> float | None:
        return Statistics.of(self.times).median / self.batch_size if self.times else None

    @property
    def differs(self) -> bool:
        """Whether its results are not those of the definition."""
        prepared = self.prepared
        return prepared is not None and prepared.error is not None and not prepared.error <= prepared.tolerance

    @property
    def failed(self) -> bool:
        """Whether the program is to blame: for a problem that is not a matter of memory, or for wrong results."""
        return bool(self.details) or self.differs

    def leave_out(self, problem: str, expected: float) -> None:
        self.left_out, self.problem, self.expected = True, problem, expected

    def notes(self) -> list[str]:
        """What the user should know about the row, a sentence each."""
        found = [self.problem] if self.problem else []
        if self.prepared is not None:
            if self.batch_size < self.job.batch_size:
                found.append(f'out of memory at batch {self.job.batch_size}: timed at {self.batch_size}')
            if self.differs:
                error, tolerance = self.prepared.error, self.prepared.tolerance
                found.append(
                    f'its results differ from the definition by {error:.1e} (at most {tolerance:.0e}): no ratio'
                )
            if self.times and not self.in_turns:
                found.append('timed alone, not in turns with the others: together they do not fit into memory')
            if self.prepared.note:
                found.append(self.prepared.note)
        return found


@dataclasses.dataclass
class Table:
    """Rows that are compared with one of them.

    Attributes:
        left_out: Why none of them was measured; '' where they were.
    """

    title: str
    rows: list[Row]
    left_out: str = ''

    @property
    def base(self) -> Row:
        """What the others are compared with: the first row, or the first that was timed where it was not."""
        return next((row for row in self.rows if row.times), self.rows[0])

    def ratio(self, row: Row) -> float | None:
        """Time per image over that of `base`; None where one of them is missing or wrong."""
        first, this = self.base.seconds_per_sample, row.seconds_per_sample
        if first is None or this is None or row.differs or self.base.differs:
            return None
        return this / first

    def records(self) -> list[dict[str, Any]]:
        """A flat dictionary per row, in plain types: seconds, bytes, 10^9 multiply-adds per image."""
        return [self._record(row) for row in self.rows]

    def _record(self, row: Row) -> dict[str, Any]:
        built, prepared, statistics = row.built, row.prepared, row.statistics
        per_sample = row.seconds_per_sample
        return {
            'table': self.title,
            'name': row.job.name,
            'label': row.label,
            'batch_size': row.batch_size,
            'input_size': 'x'.join(map(str, built.input_size)) if built else None,
            'passes': statistics.passes if statistics else 0,
            'median_s': statistics.median if statistics else None,
            'p10_s': statistics.p10 if statistics else None,
            'p90_s': statistics.p90 if statistics else None,
            'p99_s': statistics.p99 if statistics else None,
            'samples_per_s': 1 / per_sample if per_sample else None,
            'peak_memory_bytes': prepared.peak_memory if prepared else None,
            'gmacs': built.gmacs if built else None,
            'params': built.params if built else None,
            'ratio': self.ratio(row),
            'ratio_to': self.base.label,
            'error': prepared.error if prepared else None,
            'cuda_graph': prepared.graph if prepared else None,
            'in_turns': row.in_turns,
            'notes': '; '.join([*([self.left_out] if self.left_out else []), *row.notes()]),
        }
