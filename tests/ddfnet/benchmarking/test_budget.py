"""Which rows are measured where there is not time, or not memory, for all."""

import time

import pytest

from ddfnet.benchmarking.budget import Budget
from ddfnet.benchmarking.results import Row, Table
from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Built

NAMES = ('slow', 'quick', 'middling')
SECONDS = {'slow': 0.4, 'quick': 0.004, 'middling': 0.04}


def tables(*sides: int) -> list[Table]:
    return [
        Table(f'{side}', [Row(Job(name, 1, (1, 1, side, side)), name, place) for place, name in enumerate(NAMES)])
        for side in sides
    ]


def built(seconds: float, needed: int | None = None) -> Built:
    return Built((1, 1, 1), 0, 0.0, seconds, setup_seconds=0.0, needed=needed, free=1000)


def measured(table: Table) -> Table:
    for row in table.rows:
        row.built, row.times = built(10 * SECONDS[row.label]), [SECONDS[row.label]]
    return table


def chosen(*sides: int, budget: float) -> list[list[str]]:
    """Labels of the rows that are measured, by table, where each takes as long as its pixels say."""
    found = tables(*sides)
    keeper = Budget(found, time.monotonic() + budget, min_time=0.1)
    for table in found:
        keeper.choose(table)
        scale = table.rows[0].job.shape[2] ** 2 / sides[0] ** 2
        for row in table.rows:
            if not row.left_out:
                row.built = built(SECONDS[row.label] * scale)
        keeper.choose(table)
    return [[row.label for row in table.rows if not row.left_out] for table in found]


def test_everything_where_there_is_time():
    assert chosen(1, 2, 4, budget=1000) == [list(NAMES)] * 3


def test_nothing_of_the_first_table_is_left_out():
    assert chosen(1, 2, budget=0) == [list(NAMES), []]


def test_quick_rows_of_large_maps_come_before_slow_rows_of_small_ones():
    """In seconds: quick 0.5, 0.5, 1.0; middling 0.8, 1.8, 6.2; slow 4.0, 14.8, 58."""
    assert chosen(1, 2, 4, budget=3.5) == [list(NAMES), ['quick', 'middling'], ['quick']]
    assert chosen(1, 2, 4, budget=10) == [list(NAMES), ['quick', 'middling'], ['quick', 'middling']]
    assert chosen(1, 2, 4, budget=25) == [list(NAMES), list(NAMES), ['quick', 'middling']]


def test_left_out_rows_say_how_long_they_would_take():
    first, second = tables(1, 2)
    budget = Budget([first, second], time.monotonic() + 1, min_time=0.1)
    measured(first)
    budget.choose(second)
    slow = second.rows[0]
    assert slow.problem == 'left out: it would take about 15 s, more than the budget allows'
    assert slow.expected == pytest.approx(0.4 + 9 * 1.6)
    assert not second.left_out
    budget = Budget([first, second], time.monotonic(), min_time=0.1)
    budget.choose(second)
    assert second.left_out == 'left out: it would take about 17 s, more than the budget allows'


def test_compiling_takes_its_time_again():
    first, second = tables(1, 2)
    measured(first)
    first.rows[1].prepare_seconds = 12
    Budget([first, second], time.monotonic() + 9, min_time=0.1).choose(second)
    assert [row.left_out for row in second.rows] == [True, True, False]
    assert second.rows[1].expected == pytest.approx(12 + 6 * (0.016 - 0.004) + 0.1)


def test_a_trial_corrects_what_smaller_maps_made_believe():
    first, second = tables(1, 2)
    budget = Budget([first, second], time.monotonic() + 10, min_time=0.1)
    measured(first)
    second.rows[0].built = built(0.1)
    budget.choose(second)
    assert not second.rows[0].left_out


def test_maps_that_do_not_fit_into_memory_take_no_time_from_others():
    first, second = tables(1, 2)
    measured(first)
    first.rows[0].built = built(0.4, needed=400)
    Budget([first, second], time.monotonic() + 1000, min_time=0.1).choose(second)
    slow = second.rows[0]
    assert slow.problem.startswith('does not fit into memory: about 0.0 GB needed')
    assert (slow.left_out, slow.expected) == (True, 0.0)
    assert not second.rows[1].left_out


def test_models_halve_their_batch_instead():
    first, second = (Table(str(size), [Row(Job('a', size), 'a', 0)]) for size in (1, 4))
    first.rows[0].built = built(0.1, needed=400)
    Budget([first, second], time.monotonic() + 1000, min_time=0.1).choose(second)
    assert not second.rows[0].left_out
