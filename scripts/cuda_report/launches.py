"""How the launch code of ddf/csrc/cuda cuts a call: kernels, blocks, threads and shared memory.

The code itself is asked: it is compiled by the emulation of tests/cuda_emulation, with an engine that runs no kernel.
"""

import ctypes
import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.cuda_emulation import library

from .compiler import Kernel, ReportError, parse_kernel

TAPS = 9  # of the 3 by 3 kernels that the report is about
DTYPES = ('float64', 'float32', 'float16', 'bfloat16')  # in the order of ddf::Dtype
BYTES = dict(zip(DTYPES, (8, 4, 2, 2)))
_ADDRESS = 1 << 20  # of every map: aligned, and never read


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel's start: `threads` and `shared` bytes are of a block."""

    kernel: Kernel
    blocks: int
    threads: int
    shared: int


@dataclasses.dataclass(frozen=True)
class Work:
    """A call of the operation with 3 by 3 kernels and one head, by its size (B, C, H, W), dtype and layout."""

    size: tuple[int, int, int, int]
    dtype: str = 'float32'
    channels_last: bool = False
    stride: int = 1

    @property
    def out_size(self) -> tuple[int, int, int, int]:
        return (*self.size[:2], *((length - 1) // self.stride + 1 for length in self.size[2:]))  # type: ignore[return-value]

    @property
    def element(self) -> int:
        """Bytes of a stored element."""
        return BYTES[self.dtype]


class Recorder:
    """Calls the launch code, whose library is kept in a folder."""

    def __init__(self, cache: Path) -> None:
        path = library.cached_library(cache, ('-O0',), 'recording.cpp')
        self._library = ctypes.CDLL(str(path))
        self._library.ddf_next_launch.restype = ctypes.c_bool
        self._library.ddf_filter_gradients_workspace.restype = ctypes.c_int64
        for name in ('forward', 'input_gradient', 'filter_gradients'):
            getattr(self._library, f'ddf_{name}').restype = ctypes.c_char_p
        self._symbols = _symbols(path)

    def forward(self, work: Work) -> list[Launch]:
        return self._launched('forward', _call(work))

    def input_gradient(self, work: Work) -> list[Launch]:
        return self._launched('input_gradient', _call(work))

    def filter_gradients(self, work: Work) -> list[Launch]:
        return self._launched('filter_gradients', _call(work), ctypes.c_void_p(_ADDRESS))

    def workspace(self, work: Work) -> int:
        """Bytes of the filters' gradients' partial sums."""
        return self._library.ddf_filter_gradients_workspace(ctypes.byref(_call(work)))

    def _launched(self, operator: str, call: library.Call, *arguments: ctypes.c_void_p) -> list[Launch]:
        failure = getattr(self._library, f'ddf_{operator}')(ctypes.byref(call), *arguments)
        if failure is not None:
            raise ReportError(f'{operator} was not launched: {failure.decode()}')
        return list(self._recorded())

    def _recorded(self) -> Iterator[Launch]:
        values = (ctypes.c_int64 * 4)()
        while self._library.ddf_next_launch(values):
            yield Launch(self._symbols[values[0]], *values[1:])


def _symbols(path: Path) -> dict[int, Kernel]:
    """Kernels by the distance of their code from that of `ddf_launches`."""
    lines = subprocess.run(['nm', str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = {words[2]: int(words[0], 16) for words in map(str.split, lines) if len(words) == 3}
    origin = addresses['ddf_launches']
    return {at - origin: kernel for symbol, at in addresses.items() if (kernel := parse_kernel(symbol))}


def _call(work: Work) -> library.Call:
    batch, channels = work.size[:2]
    out = work.out_size
    filter_map = (batch, TAPS, *out[2:])
    channel_filter = library.Array(_ADDRESS, channels * TAPS, TAPS, 3, 1)
    return library.Call(
        dtype=DTYPES.index(work.dtype),
        **dict(zip(('batch', 'channels', 'height', 'width'), work.size)),
        kernel_size=3,
        dilation=1,
        stride=work.stride,
        head=1,
        out_height=out[2],
        out_width=out[3],
        channel_batch=batch,
        spatial_batch=batch,
        norm_gain=1.0,
        channel_filter=channel_filter,
        grad_channel=channel_filter,
        **{name: _map(work.size, work.channels_last) for name in ('input', 'grad_input')},
        **{name: _map(filter_map, work.channels_last) for name in ('spatial_filter', 'grad_spatial')},
        output=_map(out, work.channels_last),
    )


def _map(size: tuple[int, int, int, int], channels_last: bool) -> library.Array:
    _, channels, height, width = size
    per_image = channels * height * width
    strides = (1, width * channels, channels) if channels_last else (height * width, width, 1)
    return library.Array(_ADDRESS, per_image, *strides)
