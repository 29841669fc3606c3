"""Times passes on a device, and says in a few numbers what came out."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Pass = Callable[[], Any]

_SHORT_S = 0.1
_WARM_UP_PASSES = 30
_PASSES_IN_FLIGHT = 200
_CAPTURE_WARM_UP = 3


@dataclass(frozen=True)
class Statistics:
    """Seconds per pass: median and percentiles, interpolated, of so many passes."""

    passes: int
    median: float
    p10: float
    p90: float
    p99: float

    @classmethod
    def of(cls, times: Sequence[float]) -> 'Statistics':
        """Of at least one time."""
        cuts = statistics.quantiles(times, n=100, method='inclusive') if len(times) > 1 else list(times) * 99
        return cls(len(times), statistics.median(times), cuts[9], cuts[89], cuts[98])


def time_passes(run: Pass, seconds: float, device: torch.device, estimate: float) -> list[float]:
    """Times of single passes, in seconds, until they add up to `seconds`; at least one.

    Passes that are estimated to be short follow an untimed one: after other work their caches are cold.
    """
    if estimate < _SHORT_S:
        run()
    if device.type == 'cuda':
        return _time_by_events(run, seconds, estimate)
    times = [time_once(run, device)]
    while sum(times) < seconds:
        times.append(time_once(run, device))
    return times


def time_once(run: Pass, device: torch.device) -> float:
    """Seconds of one pass by the clock; the device is waited for before and after."""
    synchronize(device)
    start = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - start


def warm_up(run: Pass, device: torch.device, seconds: float) -> float:
    """Runs passes until they settle, and returns the seconds of the last one.

    On the CPU the allocator has settled when a pass touches no new memory. At least two passes are run, then no more
    than fit into `seconds`.
    """
    start = time.perf_counter()
    for number in range(_WARM_UP_PASSES):
        faults = _page_faults()
        last = time_once(run, device)
        settled = number >= 2 and device.type == 'cpu' and _page_faults() - faults < 8
        if number >= 1 and (settled or time.perf_counter() - start > seconds):
            break
    return last


def synchronize(device: torch.device) -> None:
    """Waits for the work of an accelerator."""
    if device.type != 'cpu':
        torch.accelerator.synchronize(device)


def capture(run: Pass) -> Pass:
    """The pass as a CUDA graph to replay. Raises RuntimeError where the pass cannot be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_CAPTURE_WARM_UP):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def _time_by_events(run: Pass, seconds: float, estimate: float) -> list[float]:
    """Times on the GPU's own clock. Passes are queued without waiting, so that the GPU is not idle between them."""
    times: list[float] = []
    while not times or sum(times) < seconds:
        mean = sum(times) / len(times) if times else estimate
        count = min(max(1, round((seconds - sum(times)) / max(mean, 1e-7))), _PASSES_IN_FLIGHT)
        pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(count)]
        for start, end in pairs:
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        times += [start.elapsed_time(end) / 1e3 for start, end in pairs]
    return times


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0
