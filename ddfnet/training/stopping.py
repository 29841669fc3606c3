"""Signals that ask a run to stop, and the interval of its checkpoints: looked at where a run can be saved whole."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ddfnet.distributed import Processes

_SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGUSR1') if hasattr(signal, name))


class StopRequest:
    """The number of the signal that asked this process to stop, 0 for none.

    A second Ctrl-C does not wait, but where a launcher passes the first one on once more.
    """

    def __init__(self, several: bool) -> None:
        self.number = 0
        self.several = several

    def __call__(self, number: int, *_: object) -> None:
        if number == signal.SIGINT and self.number == signal.SIGINT and not self.several:
            raise KeyboardInterrupt
        self.number = number


@contextmanager
def stop_request(processes: Processes) -> Iterator[StopRequest]:
    """SIGTERM, SIGINT and SIGUSR1 only ask, meanwhile."""
    request = StopRequest(processes.distributed)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Interval:
    """Every `steps` optimiser steps, every `seconds`, or never where both are 0."""

    def __init__(self, steps: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.seconds = seconds
        self.clock = clock
        self.last = clock()

    def due(self, step: int) -> bool:
        """Whether to save after this many steps; time then counts anew."""
        if self.steps:
            return step % self.steps == 0
        if self.seconds == 0 or self.clock() - self.last < self.seconds:
            return False
        self.last = self.clock()
        return True


class Agreement:
    """What one process wants at a point that all of them pass, all do, one such point later.

    The largest of the numbers that the processes bring travels while they compute, over a gloo group of its own: the
    device is not waited for, and nobody waits for the slowest.
    """

    def __init__(self, processes: Processes, timeout_minutes: float | None) -> None:
        timeout = None if timeout_minutes is None else timedelta(minutes=timeout_minutes)
        self.group: Any = dist.new_group(backend='gloo', timeout=timeout) if processes.distributed else None
        self.values = torch.zeros(2, dtype=torch.int64)
        self.pending: Any = None

    def __call__(self, number: int, flag: bool) -> tuple[int, bool]:
        """The largest number and flag of all processes: one process's own now, those of several of the last call."""
        if self.group is None:
            return number, flag
        agreed = self.settle()
        self.values = torch.tensor([number, flag], dtype=torch.int64)
        self.pending = dist.all_reduce(self.values, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed

    def settle(self) -> tuple[int, bool]:
        """What the last call came to."""
        if self.pending is not None:
            self.pending.wait()
            self.pending = None
        number, flag = self.values.tolist()
        return number, bool(flag)
