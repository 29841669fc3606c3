"""Times of passes: statistics, warm-up, the clock, and CUDA's events and graphs by stand-ins."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch

from ddfnet import timing
from ddfnet.timing import Statistics, capture, time_passes, warm_up

CPU, CUDA = torch.device('cpu'), torch.device('cuda')


class Clock:
    """A clock that passes alone move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.passes = 0
        monkeypatch.setattr(timing.time, 'perf_counter', lambda: self.now)

    def lasting(self, *durations: float):
        left = itertools.chain(durations, itertools.repeat(durations[-1]))

        def run() -> None:
            self.passes += 1
            self.now += next(left)

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_statistics_interpolate():
    found = Statistics.of([float(number) for number in range(101)])
    assert (found.passes, found.median, found.p10, found.p90, found.p99) == (101, 50, 10, 90, 99)
    assert Statistics.of([3.0]) == Statistics(1, 3.0, 3.0, 3.0, 3.0)


def test_short_passes_follow_an_untimed_one(clock):
    assert time_passes(clock.lasting(9.0, 0.25), 1.0, CPU, estimate=0.01) == [0.25] * 4


def test_long_passes_are_all_timed(clock):
    assert time_passes(clock.lasting(9.0, 0.5), 1.0, CPU, estimate=9.0) == [9.0]


def test_warm_up_ends_when_no_new_memory_is_touched(clock, monkeypatch):
    faults = iter([0, 900, 1000, 1500, 1500, 1500])  # before each pass; after it from the third on
    monkeypatch.setattr(timing, '_page_faults', lambda: next(faults))
    assert warm_up(clock.lasting(4.0, 3.0, 2.0, 1.0), CPU, seconds=100.0) == 1.0
    assert clock.passes == 4


def test_warm_up_of_long_passes_is_short(clock, monkeypatch):
    monkeypatch.setattr(timing, '_page_faults', itertools.count(step=1000).__next__)
    warm_up(clock.lasting(60.0), CPU, seconds=0.5)
    assert clock.passes == 2


def test_events_time_every_pass(monkeypatch):
    """The passes of a batch are queued first and read afterwards; batches follow until the seconds are reached."""
    log: list[str] = []
    now = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.time = now[0]

        def elapsed_time(self, end: 'Event') -> float:
            log.append('read')
            return (end.time - self.time) * 1e3

    def run() -> None:
        log.append('run')
        now[0] += 0.25

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: log.append('wait'))
    assert time_passes(run, 1.0, CUDA, estimate=0.5) == [0.25] * 4
    batch = ['run', 'run', 'wait', 'read', 'read']
    assert log == batch * 2


def test_capture_warms_up_beside_the_main_stream(monkeypatch):
    log: list[str] = []
    streams = [SimpleNamespace(name=name) for name in ('main', 'side')]
    for stream in streams:
        stream.wait_stream = lambda other, own=stream.name: log.append(f'{own} waits for {other.name}')
    graph = SimpleNamespace(replay=lambda: log.append('replay'))

    @contextlib.contextmanager
    def logged(name):
        log.append(f'enter {name}')
        yield
        log.append('leave')

    monkeypatch.setattr(torch.cuda, 'Stream', lambda: streams[1])
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda: streams[0])
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: logged(stream.name))
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: graph)
    monkeypatch.setattr(torch.cuda, 'graph', lambda captured: logged('graph' if captured is graph else 'other'))
    capture(lambda: log.append('run'))()
    warm_up_log = ['side waits for main', 'enter side', 'run', 'run', 'run', 'leave', 'main waits for side']
    assert log == [*warm_up_log, 'enter graph', 'run', 'leave', 'replay']
