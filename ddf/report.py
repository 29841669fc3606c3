"""What `python -m ddf check` adds to its comparison: the environment, derivatives by differences, and latencies."""

import contextlib
import logging
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import nvcc
from .functional import ddf

_TIMED_SIZE = {'cpu': (1, 64, 56, 56)}  # (B, C, H, W)
_TIMED_SIZE_ELSEWHERE = (32, 256, 56, 56)
_SECONDS = 0.3  # of measuring, per row


def environment() -> str:
    """A line on the machine: versions and threads."""
    return (
        f'Python {platform.python_version()}, torch {torch.__version__}, {platform.system()} {platform.machine()}, '
        f'{torch.get_num_threads()} threads'
    )


def gpus(stamp: Mapping[str, str]) -> list[str]:
    """Lines on the GPUs that torch sees: names, capabilities, memory, versions of CUDA; none without such a GPU.

    `stamp` is what the loaded library says of itself: a GPU that its kernels do not run on is noted.
    """
    if not torch.cuda.is_available():
        return []
    lines, notes = [], []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f'{properties.major}.{properties.minor}'
        memory = properties.total_memory / 2**30
        lines.append(f'cuda:{index} {properties.name}, compute capability {capability}, {memory:.1f} GiB')
        compiled = stamp.get('architectures')
        if compiled and not nvcc.runs_on(compiled.split(','), capability):
            notes.append(
                f'note: the CUDA kernels, compiled for {compiled}, do not run on cuda:{index}; '
                f'`TORCH_CUDA_ARCH_LIST={capability} python -m {__package__} build` compiles them for it'
            )
    return [*lines, f'CUDA of torch {torch.version.cuda}, of the driver {_driver_version()}', *notes]


def gradients_agree(device: str) -> str:
    """'' where `torch.autograd.gradcheck` in float64 passes for both combinations, else what it says."""
    generator = torch.Generator().manual_seed(0)
    for kernel_combine in ('mul', 'add'):
        for settings in ((3, 1, 1, 1), (3, 2, 2, 2)):  # kernel_size, dilation, stride, head
            grid = (4, 5) if settings[2] == 1 else (2, 3)
            shapes = (2, 4, 4, 5), (2, 4, 3, 3), (2, 9 * settings[3], *grid)
            tensors = [
                torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_()
                for shape in shapes
            ]
            arguments: Any = (*tensors, *settings, kernel_combine)
            try:
                torch.autograd.gradcheck(ddf, arguments, fast_mode=True)
            except RuntimeError as error:
                return f'gradcheck {settings} {kernel_combine}: {str(error).strip().splitlines()[0]}'
    return ''


def latencies(device: str) -> Iterator[str]:
    """Lines of a table: the median times in ms of the operation and of convolutions on one float32 map, 3x3 kernels.

    Forward only and with the backward pass; by torch.utils.benchmark, which synchronises around the timed loop.
    """
    size = _TIMED_SIZE.get(device, _TIMED_SIZE_ELSEWHERE)
    yield f'median ms on {device}, float32, {"x".join(map(str, size))}, 3x3 kernels:'
    yield f'{"":24}{"forward":>10}{"with backward":>16}'
    batch, channels, *_ = size
    arguments = {
        'ddf': ((batch, channels, 3, 3), (batch, 9, *size[2:])),
        'depthwise convolution': ((channels, 1, 3, 3),),
        'convolution': ((channels, channels, 3, 3),),
    }
    for name, shapes in arguments.items():
        input, *weights = (torch.randn(shape, device=device, requires_grad=True) for shape in (size, *shapes))
        groups = channels if name == 'depthwise convolution' else 1
        times = _forward_and_training(name, input, weights, groups)
        yield f'{name:24}{times[0]:10.3f}{times[1]:16.3f}'


def _forward_and_training(name: str, input: Tensor, weights: list[Tensor], groups: int) -> tuple[float, float]:
    def forward() -> Tensor:
        if name == 'ddf':
            return ddf(input, weights[0], weights[1])
        return F.conv2d(input, weights[0], padding=1, groups=groups)

    grad_output = torch.randn_like(forward())

    def train() -> Any:
        return torch.autograd.grad(forward(), (input, *weights), grad_output)

    with torch.no_grad():
        forward_time = _median_ms(forward)
    return forward_time, _median_ms(train)


def _median_ms(function: Any) -> float:
    with _quiet_about_toolkit():
        from torch.utils.benchmark import Timer
    threads = torch.get_num_threads()
    timer = Timer('function()', globals={'function': function}, num_threads=threads)
    return timer.blocked_autorange(min_run_time=_SECONDS).median * 1e3


@contextlib.contextmanager
def _quiet_about_toolkit() -> Iterator[None]:
    """torch.utils.benchmark imports torch's builder of extensions, which warns of a toolkit without a GPU."""
    logger = logging.getLogger('torch.utils.cpp_extension')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _driver_version() -> str:
    read = getattr(torch._C, '_cuda_getDriverVersion', None)  # absent from builds without CUDA
    version = read() if read else 0
    return f'{version // 1000}.{version % 1000 // 10}' if version else 'unknown'
