"""Workers that answer at once, for tests of what is done with the answers."""

import itertools
from collections.abc import Callable
from typing import Any

from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Built, Prepared


class StandIn:
    """Answers as a WorkerProcess; each is a new process.

    `script` maps (name of the row, method) to what to do instead: an exception to raise, or a function of the arguments
    whose result is the answer. With an exception marked by `deadly`, the process is gone afterwards.
    """

    script: dict[tuple[str, str], Any]
    log: list[tuple[int, str, str]]
    numbers: itertools.count
    environment: dict[str, Any] = {  # noqa: RUF012
        'device_name': 'abacus',
        'torch': '2',
        'ddf': ['ddf'],
        'allocator': {'c_library': 'glibc', 'MALLOC_TRIM_THRESHOLD_': '1'},
        'processor': {'load_average': (0.0, 0.0, 0.0), 'usable_cores': 2},
    }

    def __init__(self, *_: Any) -> None:
        self.number = next(self.numbers)
        self.is_alive = True
        self.name = ''

    @classmethod
    def fresh(cls, script: dict[tuple[str, str], Any] | None = None) -> type['StandIn']:
        return type('Fresh', (cls,), {'script': script or {}, 'log': [], 'numbers': itertools.count()})

    def call(self, method: str, *arguments: Any) -> Any:
        if method == 'environment':
            return self.environment
        if method in ('build', 'prepare'):
            self.name = arguments[0].name
        self.log.append((self.number, method, self.name))
        answer: Callable[..., Any] = getattr(self, f'_{method}')
        instead = self.script.get((self.name, method))
        try:
            if isinstance(instead, BaseException):
                raise instead
            return (instead or answer)(*arguments)
        except BaseException as error:
            self.is_alive = not hasattr(error, 'deadly')
            raise

    def close(self) -> None:
        self.log.append((self.number, 'close', self.name))

    @staticmethod
    def _build(job: Job) -> Built:
        return Built((3, 8, 8), params=1000, gmacs=0.5, seconds=0.1, setup_seconds=0.0, needed=100, free=10**9)

    @staticmethod
    def _prepare(job: Job, batch_size: int, may_halve: bool) -> Prepared:
        return Prepared(batch_size, seconds=0.1, peak_memory=2_000_000, error=None, tolerance=0.0, graph=False)

    @staticmethod
    def _time(seconds: float) -> list[float]:
        return [0.1]

    @staticmethod
    def _drop() -> None:
        return None


def interrupted_at_second_call() -> Callable[[float], list[float]]:
    """What a script has in the place of `time`: Ctrl-C comes during its second call."""
    calls = itertools.count(1)

    def time(seconds: float) -> list[float]:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return [0.1]

    return time
