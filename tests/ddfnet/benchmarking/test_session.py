"""Rows in turns, each in its own process; what one of them does leaves the others alone."""

import dataclasses

import pytest
import torch

from ddfnet.benchmarking import session as session_module
from ddfnet.benchmarking.processes import WorkerFailure
from ddfnet.benchmarking.progress import Progress
from ddfnet.benchmarking.results import Row, Table
from ddfnet.benchmarking.session import Session
from ddfnet.benchmarking.subjects import Job
from ddfnet.config import BenchmarkConfig, InferenceConfig
from ddfnet.errors import UserError
from ddfnet.memory import OutOfMemory
from tests.ddfnet.benchmarking.stand_ins import StandIn, interrupted_at_second_call

NAMES = ['a', 'b', 'c']


def table(*names: str, batch_size: int = 8) -> Table:
    return Table('title', [Row(Job(name, batch_size), name, place) for place, name in enumerate(names or NAMES)])


@pytest.fixture
def measure(monkeypatch):
    """Measures tables with stand-ins that follow a script, and returns their class, which holds the log."""

    def run(*tables: Table, script=None, budget=None) -> type[StandIn]:
        workers = StandIn.fresh(script)
        monkeypatch.setattr(session_module, 'WorkerProcess', workers)
        config = InferenceConfig(benchmark=BenchmarkConfig(min_time=0.3))
        with Session(config, torch.device('cpu'), Progress()) as session:
            for each in tables:
                session.measure(each, budget)
        return workers

    return run


def deadly(error: Exception) -> Exception:
    error.deadly = True  # type: ignore[attr-defined]
    return error


def test_rows_are_timed_in_turns(measure):
    measured = table()
    workers = measure(measured)
    assert [name for _, method, name in workers.log if method == 'time'] == NAMES * 3
    assert [len(row.times) for row in measured.rows] == [3, 3, 3]
    assert all(row.in_turns for row in measured.rows)
    assert sorted(number for number, method, _ in workers.log if method == 'close') == [0, 1, 2]


def test_a_process_serves_one_row_of_all_tables(measure):
    workers = measure(table(), table())
    assert {(number, name) for number, method, name in workers.log} == {(0, 'a'), (1, 'b'), (2, 'c')}


@pytest.mark.parametrize('method', ['build', 'prepare', 'time'])
@pytest.mark.parametrize('ending', [lambda error: error, deadly], ids=['error', 'death'])
def test_failure_of_a_row_is_its_own(measure, method, ending):
    first, second = table(), table()
    script = {('b', method): ending(WorkerFailure('it broke', 'Traceback'))}
    measure(first, second, script=script)
    for measured in (first, second):
        assert [len(row.times) for row in measured.rows] == [3, 0, 3]
        assert [row.failed for row in measured.rows] == [False, True, False]
        assert measured.rows[1].notes() == ['it broke']
        assert measured.ratio(measured.rows[1]) is None
        assert measured.ratio(measured.rows[2]) == 1


@pytest.mark.parametrize('ending', [lambda error: error, deadly], ids=['error', 'death'])
def test_row_without_memory_beside_the_others_is_tried_alone(measure, ending):
    def prepare(job: Job, batch_size: int, may_halve: bool):
        if not may_halve:
            raise ending(OutOfMemory('no memory'))
        return dataclasses.replace(StandIn._prepare(job, batch_size, may_halve), batch_size=2)

    measured = table()
    workers = measure(measured, script={('b', 'prepare'): prepare})
    assert [len(row.times) for row in measured.rows] == [3, 3, 3]
    assert [row.in_turns for row in measured.rows] == [True, False, True]
    assert measured.rows[1].notes() == [
        'out of memory at batch 8: timed at 2',
        'timed alone, not in turns with the others: together they do not fit into memory',
    ]
    assert measured.ratio(measured.rows[1]) == pytest.approx(4)
    methods = [(method, name) for _, method, name in workers.log]
    assert methods.index(('drop', 'c')) < [at for at, found in enumerate(methods) if found == ('prepare', 'b')][1]


def test_memory_that_runs_out_while_timed_halves_the_batch(measure):
    batches = []

    def prepare(job: Job, batch_size: int, may_halve: bool):
        batches.append(batch_size)
        return StandIn._prepare(job, batch_size, may_halve)

    def run_out(seconds: float) -> list[float]:
        if batches[-1] > 2:
            raise OutOfMemory('no memory')
        return [0.1]

    measured = table()
    measure(measured, script={('b', 'prepare'): prepare, ('b', 'time'): run_out})
    assert batches == [8, 8, 4, 2]
    assert [row.batch_size for row in measured.rows] == [8, 2, 8]
    assert all(row.times for row in measured.rows)
    measured = table()
    measure(measured, script={('b', 'time'): OutOfMemory('no memory')})
    assert measured.rows[1].notes()[0] == 'no memory'


def test_process_killed_for_its_memory_halves_the_batch(measure):
    batches = []

    def prepare(job: Job, batch_size: int, may_halve: bool):
        batches.append(batch_size)
        if batch_size > 2:
            raise deadly(OutOfMemory('the process was killed'))
        return StandIn._prepare(job, batch_size, may_halve)

    measured = table()
    measure(measured, script={('b', 'prepare'): prepare})
    assert batches == [8, 8, 4, 2]
    assert [row.batch_size for row in measured.rows] == [8, 2, 8]
    assert measured.rows[1].notes()[0] == 'out of memory at batch 8: timed at 2'
    measured = table()
    measure(measured, script={('b', 'prepare'): deadly(OutOfMemory('the process was killed'))})
    assert measured.rows[1].notes() == ['the process was killed']


def test_rows_that_do_not_fit_together_follow_each_other(measure):
    def build(job: Job):
        return dataclasses.replace(StandIn._build(job), needed=400, free=1000)

    measured = table()
    workers = measure(measured, script={(name, 'build'): build for name in NAMES})
    methods = [(method, name) for _, method, name in workers.log if method in ('prepare', 'drop')]
    assert methods == [(method, name) for name in NAMES for method in ('prepare', 'drop')]
    assert not any(row.in_turns for row in measured.rows)


def test_single_row_needs_no_company(measure):
    measured = table('a')
    measure(measured)
    assert measured.rows[0].notes() == []
    assert measured.ratio(measured.rows[0]) == 1


def test_maps_keep_their_batch(measure):
    def prepare(job: Job, batch_size: int, may_halve: bool):
        assert not may_halve
        raise OutOfMemory('does not fit')

    measured = Table('title', [Row(Job('a', 8, (8, 4, 5, 5)), 'a', 0), Row(Job('b', 8, (8, 4, 5, 5)), 'b', 1)])
    measure(measured, script={('a', 'prepare'): prepare})
    assert measured.rows[0].notes() == ['does not fit']
    assert not measured.rows[0].failed
    assert measured.rows[1].times


def test_rows_left_out_before_their_trial_are_not_built(measure):
    class Chooser:
        calls = 0

        def choose(self, table: Table) -> None:
            self.calls += 1
            table.rows[self.calls].leave_out('left out', 1.0)

    measured = table()
    workers = measure(measured, budget=Chooser())
    assert [len(row.times) for row in measured.rows] == [3, 0, 0]
    assert {name for _, method, name in workers.log if method == 'build'} == {'a', 'c'}
    assert {name for _, method, name in workers.log if method == 'prepare'} == {'a'}
    assert [row.notes() for row in measured.rows] == [[], ['left out'], ['left out']]
    assert not any(row.failed for row in measured.rows)


@pytest.mark.parametrize('dispensable', [False, True])
def test_mistake_in_a_row_is_its_own(measure, dispensable):
    measured = table()
    measured.rows[1].dispensable = dispensable
    measure(measured, script={('b', 'build'): UserError('it does not take such images')})
    assert [len(row.times) for row in measured.rows] == [3, 0, 3]
    assert measured.rows[1].notes() == ['it does not take such images']
    assert [row.mistaken for row in measured.rows] == [False, not dispensable, False]


def test_interruption_keeps_the_times(measure):
    measured = table()
    with pytest.raises(KeyboardInterrupt):
        measure(measured, script={('b', 'time'): interrupted_at_second_call()})
    assert [len(row.times) for row in measured.rows] == [2, 1, 1]
