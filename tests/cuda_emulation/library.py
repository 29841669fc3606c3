"""The CUDA kernels of ddf/csrc/cuda compiled for this CPU by the emulation, and the operators made of them.

`forward`, `input_gradient` and `filter_gradients` take what `torch.ops.ddf.*` take, on the CPU. Results and workspace
hold NaN before the kernels write.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddf import build, reference

HERE = Path(__file__).parent
CUDA = Path(build.CSRC) / 'cuda'
FLAGS = (
    *('-std=c++20', '-fPIC', '-fvisibility=hidden', '-DDDF_ADJUSTABLE_LIMITS', '-ffp-contract=off'),
    *(
        '-fno-strict-aliasing',
        '-Wall',
        '-Wno-unknown-pragmas',
        '-Wno-maybe-uninitialized',
        '-Wno-unused-variable',
        '-Wno-class-memaccess',
    ),
)
OPTIMISED = ('-O1', '-mf16c') if platform.machine() == 'x86_64' else ('-O1',)
DTYPES = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}


class Array(ctypes.Structure):
    """`ddf::Array` of ddf/csrc/call.h."""

    _fields_ = (
        ('data', ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ('batch', 'channel', 'row', 'column')),
    )


class Call(ctypes.Structure):
    """`ddf::Call` of ddf/csrc/call.h."""

    _fields_ = (
        ('dtype', ctypes.c_int),
        ('combine', ctypes.c_int),
        *((name, ctypes.c_int64) for name in ('batch', 'channels', 'height', 'width')),
        *((name, ctypes.c_int64) for name in ('kernel_size', 'dilation', 'stride', 'head')),
        *((name, ctypes.c_int64) for name in ('out_height', 'out_width', 'channel_batch', 'spatial_batch')),
        ('normalize', ctypes.c_bool),
        ('norm_gain', ctypes.c_double),
        *((name, Array) for name in ('input', 'channel_filter', 'spatial_filter', 'output')),
        *((name, Array) for name in ('grad_input', 'grad_channel', 'grad_spatial')),
        ('threads', ctypes.c_int64),
        ('parallel_for', ctypes.c_void_p),
    )


def compile_library(
    path: Path, flags: Sequence[str] = OPTIMISED, engine: str = 'fibers.cpp', cuda: Path = CUDA, here: Path = HERE
) -> None:
    """Compiles the kernels under `cuda` with an engine of the emulation under `here` into a library."""
    sources = [*sorted(cuda.glob('*.cu')), here / 'common.cpp', here / engine]
    compiler = [*build.find_compiler(), *FLAGS, *flags, f'-I{here / "include"}']
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:

        def compile_one(source: Path) -> str:
            object_file = f'{folder}/{source.name}.o'
            _run([*compiler, '-x', 'c++', '-c', '-o', object_file, source])
            return object_file

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        _run([*compiler, '-shared', '-o', f'{folder}/library', *objects])
        os.replace(f'{folder}/library', path)


def cached_library(cache: Path, *arguments: Any, **settings: Any) -> Path:
    """`compile_library` into a folder that keeps one for every state of the sources."""
    sources = sorted([*CUDA.parent.glob('*.h'), *CUDA.iterdir(), *HERE.glob('*.*'), *HERE.glob('include/*')])
    state = hashlib.sha256(repr((arguments, settings, FLAGS, OPTIMISED, platform.platform())).encode())
    for source in sources:
        if source.suffix != '.py' or source.name == 'library.py':
            state.update(source.name.encode() + source.read_bytes())
    path = cache / f'{state.hexdigest()[:16]}.so'
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        compile_library(path, *arguments, **settings)
    return path


def _run(command: Sequence[object]) -> None:
    words = [str(word) for word in command]
    result = subprocess.run(words, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f'{" ".join(words)}\n{result.stderr[:4000]}'


class Fault(RuntimeError):
    """What the emulation, or a launch, found wrong."""


class Emulation:
    """The operators of one compiled library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for name in ('forward', 'input_gradient', 'filter_gradients'):
            getattr(self._library, f'ddf_{name}').restype = ctypes.c_char_p
        self._library.ddf_filter_gradients_workspace.restype = ctypes.c_int64
        self._library.ddf_launches.restype = ctypes.c_int64
        self._library.ddf_set_limits.argtypes = (ctypes.c_int64,) * 3
        self.set_limits()

    @property
    def launches(self) -> int:
        """Kernels started so far."""
        return self._library.ddf_launches()

    def set_limits(self, blocks: int = 1024, offset: int = 2**31 - 1, grid: int = 2**31 - 1) -> None:
        """Blocks wanted of a launch, the largest 32-bit index, and the largest grid (tiling.h)."""
        self._library.ddf_set_limits(blocks, offset, grid)

    @contextmanager
    def limits(self, **limits: int) -> Iterator[None]:
        """`set_limits` for a while."""
        self.set_limits(**limits)
        try:
            yield
        finally:
            self.set_limits()

    def forward(self, input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *settings: Any) -> Tensor:
        call = make_call(input, channel_filter, spatial_filter, *settings)
        output = _poisoned((call.batch, call.channels, call.out_height, call.out_width), input)
        call.output = array_of(output)
        self._check(self._library.ddf_forward(ctypes.byref(call)))
        return output

    def input_gradient(self, grad_output: Tensor, input: Tensor, *arguments: Any) -> Tensor:
        call = make_call(input, *arguments)
        grad_input = _poisoned(input.shape, input)
        call.output, call.grad_input = array_of(grad_output), array_of(grad_input)
        self._check(self._library.ddf_input_gradient(ctypes.byref(call)))
        return grad_input

    def filter_gradients(
        self, grad_output: Tensor, input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *settings: Any
    ) -> tuple[Tensor, Tensor]:
        call = make_call(input, channel_filter, spatial_filter, *settings)
        grad_channel = channel_filter.new_full(channel_filter.shape, float('nan'))
        grad_spatial = _poisoned(spatial_filter.shape, spatial_filter)
        call.output = array_of(grad_output)
        call.grad_channel, call.grad_spatial = array_of(grad_channel), array_of(grad_spatial)
        size = self._library.ddf_filter_gradients_workspace(ctypes.byref(call))
        storage = torch.full((size + 256,), 255, dtype=torch.uint8)  # NaN in every dtype
        workspace = ctypes.c_void_p(-(-storage.data_ptr() // 256) * 256)
        self._check(self._library.ddf_filter_gradients(ctypes.byref(call), workspace))
        return grad_channel, grad_spatial

    @staticmethod
    def _check(message: bytes | None) -> None:
        if message is not None:
            raise Fault(message.decode())


def make_call(
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
    norm_gain: float | None,
) -> Call:
    batch, channels, height, width = input.shape
    return Call(
        dtype=DTYPES[input.dtype],
        combine=('mul', 'add').index(kernel_combine),
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        kernel_size=channel_filter.shape[-1],
        dilation=dilation,
        stride=stride,
        head=head,
        out_height=reference.output_size(height, stride),
        out_width=reference.output_size(width, stride),
        channel_batch=channel_filter.shape[0],
        spatial_batch=spatial_filter.shape[0],
        normalize=norm_gain is not None,
        norm_gain=1.0 if norm_gain is None else norm_gain,
        input=array_of(input),
        channel_filter=array_of(channel_filter),
        spatial_filter=array_of(spatial_filter),
    )


def array_of(tensor: Tensor) -> Array:
    """As library.cpp does it: no stride where there is one image or channel."""
    strides = [stride if dim > 1 or size > 1 else 0 for dim, (size, stride) in
               enumerate(zip(tensor.shape, tensor.stride()))]  # fmt: skip
    return Array(tensor.data_ptr(), *strides)


def _poisoned(shape: Sequence[int], like: Tensor) -> Tensor:
    memory_format = reference.memory_format_of(like)
    return torch.empty(shape, dtype=like.dtype, memory_format=memory_format).fill_(float('nan'))
