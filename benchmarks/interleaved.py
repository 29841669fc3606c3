"""Times passes in turns, so that a machine that gets slower or faster meanwhile favours none of them."""

import os
import statistics
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch

from ddfnet.benchmarking.environment import ALLOCATOR
from ddfnet.timing import Pass, Statistics, time_passes, warm_up

CPU = torch.device('cpu')


@dataclass(frozen=True)
class Turns:
    """Seconds of single passes by subject, a list per round."""

    rounds: dict[str, list[list[float]]]

    def statistics(self, name: str) -> Statistics:
        return Statistics.of([seconds for times in self.rounds[name] for seconds in times])

    def ratio(self, name: str, baseline: str) -> float:
        """Of the medians over all rounds."""
        return self.statistics(name).median / self.statistics(baseline).median

    def spread(self, name: str, baseline: str) -> tuple[float, float]:
        """The least and the greatest ratio of the medians of one round."""
        ratios = [
            statistics.median(times) / statistics.median(others)
            for times, others in zip(self.rounds[name], self.rounds[baseline])
        ]
        return min(ratios), max(ratios)

    def __add__(self, later: 'Turns') -> 'Turns':
        """With the rounds of another visit to the same subjects."""
        return Turns({name: rounds + later.rounds[name] for name, rounds in self.rounds.items()})


@dataclass
class Visits:
    """Times cases, each as often as it is visited: a machine that is busy for seconds cannot spoil all visits of one.

    Attributes:
        seconds: Time for each subject in one visit.
        rounds: Turns that it is divided into.
    """

    seconds: float
    rounds: int
    _turns: dict[Hashable, Turns] = field(default_factory=dict)

    def take_turns(
        self, case: Hashable, passes: Mapping[str, Pass], prepare: Callable[[str], object] | None = None
    ) -> Turns:
        """The turns of all visits to a case so far, this one included; arguments as of the function."""
        turns = take_turns(passes, self.seconds, self.rounds, prepare)
        self._turns[case] = self._turns[case] + turns if case in self._turns else turns
        return self._turns[case]


def take_turns(
    passes: Mapping[str, Pass], seconds: float, rounds: int, prepare: Callable[[str], object] | None = None
) -> Turns:
    """Times every subject for about `seconds`, in so many rounds, after a warm-up of at most as long.

    Args:
        prepare: Called with the subject's name before each of its turns, untimed.
    """
    estimates = {}
    for name, run in passes.items():
        if prepare:
            prepare(name)
        estimates[name] = warm_up(run, CPU, seconds)
    times: dict[str, list[list[float]]] = {name: [] for name in passes}
    for number in range(rounds):
        for name in list(passes)[:: 1 if number % 2 == 0 else -1]:
            if prepare:
                prepare(name)
            times[name].append(time_passes(passes[name], seconds / rounds, CPU, estimates[name]))
    return Turns(times)


def restart_with_warm_allocator() -> None:
    """Starts this script again, under Linux, with an allocator that keeps its memory; returns where it already does.

    malloc's own settings return large blocks to the system after each pass, and page faults would be timed with the
    next one. Settings that the user made are kept.
    """
    missing = {name: value for name, value in ALLOCATOR.items() if name not in os.environ}
    if sys.platform != 'linux' or not missing:
        return
    settings = ' '.join(f'{name}={value}' for name, value in missing.items())
    print(f'starting again with {settings}', file=sys.stderr, flush=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})
