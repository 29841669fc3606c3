"""Measures how long forward passes take: candidates in turns, so that a machine that drifts favours none."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

_ROUNDS = 5


@dataclass(frozen=True)
class Candidate:
    """Something to time: `run()` is one forward pass of `samples` images."""

    name: str
    run: Callable[[], Any]
    samples: int


@dataclass(frozen=True)
class Timing:
    """Median seconds of one forward pass, and images per second at that median."""

    name: str
    median: float
    samples_per_s: float


@torch.inference_mode()
def time_candidates(candidates: Sequence[Candidate], min_time: float, device: torch.device) -> list[Timing]:
    """Times every candidate for at least `min_time` seconds, in turns, warm-up excluded; the device is waited for."""
    times: list[list[float]] = [[] for _ in candidates]
    for candidate in candidates:
        _time_once(candidate, device)
    for _ in range(_ROUNDS):
        for candidate, measured in zip(candidates, times):
            measured += _time_for(candidate, min_time / _ROUNDS, device)
    medians = [statistics.median(measured) for measured in times]
    return [
        Timing(candidate.name, median, candidate.samples / median) for candidate, median in zip(candidates, medians)
    ]


def _time_for(candidate: Candidate, seconds: float, device: torch.device) -> list[float]:
    """Times of single passes, in seconds; the first after another candidate ran is left out, its caches are cold."""
    _time_once(candidate, device)
    times = [_time_once(candidate, device)]
    while sum(times) < seconds:
        times.append(_time_once(candidate, device))
    return times


def _time_once(candidate: Candidate, device: torch.device) -> float:
    start = time.perf_counter()
    candidate.run()
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start
