"""What the machine reaches in the same run, and how much of it the operation needs.

The copy bandwidth is that of `Tensor.copy_`, read and written bytes counted. The peak is that of a large float32
matrix product, `torch.mm`: a proxy, which a good library brings close to what the FMA units could do.
"""

from dataclasses import dataclass

import torch

from benchmarks.interleaved import CPU
from ddf.check import Case
from ddf.reference import output_size
from ddfnet.timing import Pass, time_passes, warm_up

_CACHED = 4 * 2**20
_LARGE = 256 * 2**20
_MATRIX = 1024
_FLOPS_PER_FMA = 2


@dataclass(frozen=True)
class Limits:
    """Bytes and FLOPs per second.

    Attributes:
        cached_bandwidth: Of a copy of 2 MiB, source and target together 4 MiB.
        memory_bandwidth: Of a copy of 256 MiB.
        peak: Of a product of two 1024 x 1024 matrices in float32.
    """

    cached_bandwidth: float
    memory_bandwidth: float
    peak: float

    def __str__(self) -> str:
        return (
            f'copy {self.cached_bandwidth / 1e9:.1f} GB/s in cache (2 MiB), {self.memory_bandwidth / 1e9:.1f} GB/s in '
            f'memory (256 MiB); peak, by torch.mm in float32: {self.peak / 1e9:.0f} GFLOP/s'
        )


def measure_limits(seconds: float) -> Limits:
    """Each by the fastest of passes that take `seconds` in total: a limit is not what noise leaves of it."""
    matrix = torch.randn(_MATRIX, _MATRIX)
    return Limits(
        _CACHED / _fastest(copy_pass(_CACHED), seconds),
        2 * _LARGE / _fastest(copy_pass(2 * _LARGE), seconds),
        2 * _MATRIX**3 / _fastest(lambda: torch.mm(matrix, matrix), seconds),
    )


def copy_pass(moved: int) -> Pass:
    """A copy that reads and writes `moved` bytes together."""
    source = torch.ones(max(1, moved // 8))
    target = torch.zeros_like(source)
    return lambda: target.copy_(source)


def moved_bytes(case: Case, itemsize: int = 4) -> int:
    """Bytes that a forward pass moves at least: every element of input, filters and output once."""
    batch, channels, height, width = case.size
    outputs = _pixels(case)
    taps = case.kernel_size**2
    elements = channels * height * width + channels * taps + case.head * taps * outputs + channels * outputs
    return batch * elements * itemsize


def flops(case: Case) -> int:
    """Work of a forward pass in the units of the peak: 4 per tap of each output.

    A tap takes two instructions that could each be an FMA of 2 FLOPs: one that combines the two filters, by a
    multiplication ('mul') or an addition ('add'), and the FMA itself. Taps beyond the border are counted, too.
    """
    batch, channels, *_ = case.size
    return 2 * _FLOPS_PER_FMA * case.kernel_size**2 * batch * channels * _pixels(case)


def _pixels(case: Case) -> int:
    height, width = (output_size(size, case.stride) for size in case.size[2:])
    return height * width


def _fastest(run: Pass, seconds: float) -> float:
    return min(time_passes(run, seconds, CPU, warm_up(run, CPU, seconds)))
