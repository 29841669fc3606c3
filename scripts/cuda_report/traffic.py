"""Bytes that the kernels must move and do move, what holds them back, and the times that follow. 3 by 3 kernels.

Formulas follow the tiles of ddf/csrc/cuda/tiling.h; how many blocks there are, and so how often they read a filter,
is what the launch code answers (`launches.Recorder`).
"""

import dataclasses
import math

from .launches import TAPS, Launch, Work

_COLUMNS = 8  # kTileColumns of ddf/csrc/cuda/tiling.h
_REACH = 1  # of a 3 by 3 kernel


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a multiprocessor holds, from NVIDIA's CUDA programming guide (technical specifications)."""

    threads: int
    blocks: int
    shared: int
    reserved: int  # of shared memory, for each block
    granularity: int  # in which shared memory is given out


LIMITS = {
    '7.5': Limits(1024, 16, 64 << 10, 0, 256),
    '8.0': Limits(2048, 32, 164 << 10, 1 << 10, 128),
    '9.0': Limits(2048, 32, 228 << 10, 1 << 10, 128),
    '10.0': Limits(2048, 32, 228 << 10, 1 << 10, 128),
}


REGISTERS = 1 << 16  # of a multiprocessor, of every architecture here


def blocks_by_registers(registers: int, threads: int) -> int:
    """Blocks of `threads` whose registers a multiprocessor holds."""
    of_warp = math.ceil(registers * 32 / 256) * 256
    return REGISTERS // of_warp // 4 * 4 // math.ceil(threads / 32)  # warps are given to four schedulers


def occupancy(architecture: str, registers: int, threads: int, shared: int) -> float:
    """The share of a multiprocessor's threads that can be resident, for a kernel's registers and a launch's block."""
    limits = LIMITS[architecture]
    warps = math.ceil(threads / 32)
    by_registers = blocks_by_registers(registers, threads)
    taken = math.ceil((shared + limits.reserved) / limits.granularity) * limits.granularity
    by_shared = limits.shared // taken if taken else limits.blocks
    blocks = min(limits.blocks, limits.threads // (warps * 32), by_registers, by_shared)
    return blocks * warps * 32 / limits.threads


def forward_bytes(work: Work) -> int:
    """That forward, and as well the gradient of the input, must move: each tensor once."""
    batch, channels, height, width = work.size
    pixels = math.prod(work.out_size[2:])
    elements = channels * height * width + channels * pixels + TAPS * (channels + pixels)
    return work.element * batch * elements


def filter_gradient_bytes(work: Work) -> int:
    """That the gradients of both filters must move: the maps and filters read, the gradients written."""
    batch, channels, height, width = work.size
    pixels = math.prod(work.out_size[2:])
    elements = channels * height * width + channels * pixels + 2 * TAPS * (channels + pixels)
    return work.element * batch * elements


def gather_traffic(work: Work, launch: Launch) -> int:
    """Bytes between L2 cache and multiprocessors in forward with stride 1, each once for every block that needs it."""
    batch, channels, height, width = work.size
    if launch.kernel.name == 'gather_planes':
        tile = launch.threads * launch.kernel.numbers[1]  # pixels in linear order
        halo = _REACH * (width + 1)
        tiles = math.ceil(height * width / tile)
        source = sum(
            min(height * width, (index + 1) * tile + halo) - max(0, index * tile - halo) for index in range(tiles)
        )
    else:
        rows = _tile_rows(work, launch)
        tiles = math.ceil(height / rows) * math.ceil(width / _COLUMNS)
        source = _touched(height, rows) * _touched(width, _COLUMNS)
    groups = launch.blocks // (batch * tiles)
    elements = channels * (source + height * width + tiles * TAPS) + groups * TAPS * height * width
    return work.element * batch * elements


def _touched(size: int, tile: int) -> int:
    """Rows, or columns, of the source that the tiles along one dimension read, summed over the tiles."""
    return sum(min(size, begin + tile + _REACH) - max(0, begin - _REACH) for begin in range(0, size, tile))


def _tile_rows(work: Work, launch: Launch) -> int:
    """From the shared memory of a block: factors of two accumulators for each pixel, and the channels' taps."""
    vector = launch.kernel.numbers[1]
    for rows in (8, 4, 2, 1):
        left = launch.shared - TAPS * rows * _COLUMNS * 8
        lanes, rest = divmod(left, TAPS * 4 * vector)
        if rest == 0 and lanes - 1 in (1, 2, 4, 8, 16, 32) and _cuts(work, launch, rows, (lanes - 1) * vector):
            return rows
    raise ValueError(f'no tile of {launch} is known')


def _cuts(work: Work, launch: Launch, rows: int, block_channels: int) -> bool:
    batch, channels, height, width = work.size
    tiles = math.ceil(height / rows) * math.ceil(width / _COLUMNS)
    return launch.blocks == batch * tiles * math.ceil(channels / block_channels)


def inductor_traffic(work: Work) -> int:
    """The same of the shifted sum that inductor fuses: every output reads the taps of its pixel's filter anew.

    The nine shifted reads of the map, and the channel's taps, count once: neighbours find them in the L1 cache.
    """
    batch, channels, height, width = work.size
    pixels = math.prod(work.out_size[2:])
    elements = channels * height * width + channels * pixels + TAPS * channels + TAPS * channels * pixels
    return work.element * batch * elements


def official_least(work: Work) -> tuple[int, int, int]:
    """Bytes of memory that the official kernels move at least: forward, gradients of the input, and of the filters.

    Each tensor once, and for halves the casts around the kernels: these read halves and write float32 before forward;
    the result stays float32, and so does its gradient, while the other gradients are cast back.
    """
    if work.dtype == 'float32':
        return forward_bytes(work), forward_bytes(work), filter_gradient_bytes(work)
    batch, channels = work.size[:2]
    source, result = math.prod(work.size), math.prod(work.out_size)
    filters = batch * TAPS * (channels + math.prod(work.out_size[2:]))
    cast = work.element + 4  # bytes of an element that is cast
    return (
        (cast + 4) * (source + filters) + 4 * result,
        (4 + cast) * source + 4 * (result + filters),
        4 * (source + result + filters) + (4 + cast) * filters,
    )


def multiply_adds(work: Work) -> int:
    """Of forward: the two filters' taps are combined, and then applied."""
    return 2 * TAPS * math.prod(work.out_size)


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Published rates of an accelerator: memory in bytes/s, float32 multiply-adds per second."""

    name: str
    bandwidth: float
    multiply_adds: float


GPUS = (Gpu('A100 80GB SXM', 2.039e12, 19.5e12 / 2), Gpu('H100 SXM', 3.35e12, 67e12 / 2))
FRACTION = 0.8  # of the published bandwidth: assumed, not measured


def memory_ms(gpu: Gpu, moved: float) -> float:
    """The time that `moved` bytes take at FRACTION of the published bandwidth."""
    return moved / (FRACTION * gpu.bandwidth) * 1e3


def arithmetic_ms(gpu: Gpu, work: Work) -> float:
    """The time of forward's multiply-adds at the published rate."""
    return multiply_adds(work) / gpu.multiply_adds * 1e3
