"""The parent's side of a worker: starts its process, asks it, and tells how it ended.

Workers are forked from one server process that has torch and timm imported and has computed nothing (spawned where the
system has no such server). The server starts with the allocator's settings: malloc's own would return large blocks to
the system after each pass, and page faults would be timed with the pass.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from ddfnet.benchmarking import environment, worker
from ddfnet.config import InferenceConfig
from ddfnet.control_groups import memory_kills
from ddfnet.errors import UserError
from ddfnet.memory import OutOfMemory

_PATIENCE_S = 2
_SIGKILL = 9  # which Windows has no name for


class WorkerFailure(Exception):
    """A worker could not do what it was asked; `details` is its traceback, '' where the process died."""

    def __init__(self, message: str, details: str = '') -> None:
        super().__init__(message)
        self.details = details


class WorkerProcess:
    """A process of its own for a row."""

    def __init__(self, config: InferenceConfig, device: torch.device) -> None:
        with _allocator_settings():
            context: Any = _context()
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=worker.serve, args=(theirs, config, device), daemon=True)
            self._process.start()
        theirs.close()
        self._kills_before = memory_kills()

    @property
    def is_alive(self) -> bool:
        return not self._connection.closed

    def call(self, method: str, *arguments: Any) -> Any:
        """The result of a method of `worker.Worker`.

        Raises:
            UserError: A mistake the user can mend.
            OutOfMemory: The worker ran out of memory, or was killed, as far as is known for that.
            WorkerFailure: Anything else; where the process died, it is no longer alive afterwards.
        """
        try:
            self._connection.send((method, arguments))
            outcome, value, details = self._connection.recv()
        except (EOFError, OSError):
            self._fail()
        self._kills_before = memory_kills()
        if outcome == 'mistake':
            raise UserError(value)
        if outcome == 'memory':
            raise OutOfMemory(value)
        if outcome == 'failure':
            raise WorkerFailure(value, details)
        return value

    def close(self) -> None:
        """Ends the process: an idle one ends by itself, one that is busy is killed."""
        self._connection.close()
        self._process.join(_PATIENCE_S)
        self._process.kill()
        self._process.join()

    def _fail(self) -> NoReturn:
        self._process.join()
        self._connection.close()
        status = self._process.exitcode
        if status == -_SIGKILL:
            self._fail_killed()
        raise WorkerFailure(f'the process died ({_in_words(status)})')

    def _fail_killed(self) -> NoReturn:
        """By the system for its memory, or by somebody else: known where the system counts what it kills."""
        before, after = self._kills_before, memory_kills()
        if before is None or after is None:
            raise OutOfMemory('the process was killed (signal 9), probably out of memory')
        if after > before:
            raise OutOfMemory('the system killed the process (signal 9), out of memory')
        raise WorkerFailure('the process was killed (signal 9), and not by the system for its memory')


def _in_words(status: int | None) -> str:
    if status is None or status >= 0:
        return f'exit status {status}'
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f'signal {-status}'


def _context() -> Any:
    if 'forkserver' not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context('spawn')
    from multiprocessing import forkserver

    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([worker.__name__])
    with _deaf_to_ctrl_c():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Ctrl-C is ignored meanwhile, and by the processes started meanwhile for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _allocator_settings() -> Iterator[None]:
    """Puts the settings, save those that the user made, into the environment that new processes get."""
    added = {name: value for name, value in environment.ALLOCATOR.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
