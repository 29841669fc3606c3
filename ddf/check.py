"""Compares what serves each device with the definition in float64: `python -m ddf check`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from . import extension, operators, reference

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
RESULTS = ('output', 'input', 'channel_filter', 'spatial_filter')  # the output, then what the gradients are of


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call; `size` is (B, C, H, W)."""

    size: tuple[int, int, int, int]
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    head: int = 1
    kernel_combine: str = 'mul'
    channels_last: bool = False

    @property
    def settings(self) -> tuple[int, int, int, str]:
        return self.dilation, self.stride, self.head, self.kernel_combine

    def tensors(self, dtype: torch.dtype, device: str = 'cpu') -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same random grad_output, input, channel_filter, spatial_filter at every call."""
        generator = torch.Generator().manual_seed(0)
        batch, channels, height, width = self.size
        taps = self.kernel_size**2
        grid = reference.output_size(height, self.stride), reference.output_size(width, self.stride)
        shapes = (
            (batch, channels, *grid),
            self.size,
            (batch, channels, self.kernel_size, self.kernel_size),
            (batch, self.head * taps, *grid),
        )
        grad, input, channel, spatial = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes
        )
        if self.channels_last:
            grad, input = (map.contiguous(memory_format=torch.channels_last) for map in (grad, input))
        return grad, input, channel, spatial


CASES = (
    Case((2, 8, 14, 14), 3),
    Case((2, 8, 14, 14), 3, kernel_combine='add'),
    Case((2, 6, 9, 11), 1, head=2),
    Case((1, 6, 15, 13), 3, stride=2, head=3),
    Case((2, 8, 13, 17), 3, dilation=2, channels_last=True),
    Case((2, 4, 17, 10), 5, stride=3, kernel_combine='add', channels_last=True),
    Case((1, 4, 7, 70), 7, dilation=3, stride=2, head=2, kernel_combine='add'),
    Case((3, 4, 1, 1), 7, dilation=100),
    Case((1, 64, 56, 56), 3),
)


def tolerance(dtype: torch.dtype) -> float:
    """Allowed error, relative to the largest element of the exact result: rounding, and of sums in float32 or wider."""
    return torch.finfo(dtype).eps * (1 if dtype.itemsize == 2 else 64)


def errors(case: Case, dtype: torch.dtype, device: str) -> list[float]:
    """Errors of RESULTS relative to the largest element of each; infinite for a wrong shape, dtype or memory format."""
    exact = _evaluate(reference, [tensor.double() for tensor in case.tensors(dtype)], case)
    tensors = case.tensors(dtype, device)
    found = _evaluate(operators, tensors, case)
    formats = (reference.memory_format_of(tensors[1]),) * 2 + (torch.contiguous_format,) * 2
    return [
        _error(result, expected, dtype, memory_format) for result, expected, memory_format in zip(found, exact, formats)
    ]


def _evaluate(implementation: ModuleType, tensors: Sequence[Tensor], case: Case) -> list[Tensor]:
    return [
        implementation.forward(*tensors[1:], *case.settings),
        implementation.input_gradient(*tensors, *case.settings),
        *implementation.filter_gradients(*tensors, *case.settings),
    ]


def _error(result: Tensor, expected: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> float:
    if result.shape != expected.shape or result.dtype != dtype or not result.is_contiguous(memory_format=memory_format):
        return float('inf')
    if result.numel() == 0:
        return 0.0
    difference = (result.cpu().double() - expected).abs().max()
    error = (difference / expected.abs().max().clamp(min=torch.finfo(dtype).tiny)).item()
    return error if error == error else float('inf')  # NaN


def main() -> int:
    """Prints the largest error of every device and dtype, and returns the exit status."""
    info = extension.build_info()
    print(str(info).splitlines()[0])
    if info.path is None:
        print('No compiled library is loaded: what is checked is plain torch.', *info.notes, sep='\n')
    print(f'{"device":8}{"dtype":10}{"allowed":>10}' + ''.join(f'{name:>16}' for name in RESULTS))
    failures = []
    for device in _devices():
        for dtype in DTYPES:
            failures += _check(device, dtype)
    for failure in failures:
        print(f'DISAGREES: {failure}', file=sys.stderr)
    print(f'{len(CASES)} cases per line: {"all agree" if not failures else f"{len(failures)} disagree"}')
    return 1 if failures else 0


def _devices() -> Iterator[str]:
    yield 'cpu'
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        yield accelerator.type


def _check(device: str, dtype: torch.dtype) -> list[str]:
    """Prints the line of one device and dtype; returns the cases that disagree."""
    name = str(dtype).removeprefix('torch.')
    if device == 'mps' and dtype == torch.float64:
        print(f'{device:8}{name:10}{"no such dtype there":>30}')
        return []
    allowed = tolerance(dtype)
    found = {case: errors(case, dtype, device) for case in CASES}
    largest = map(max, zip(*found.values()))
    print(f'{device:8}{name:10}{allowed:10.1e}' + ''.join(f'{error:16.1e}' for error in largest))
    return [
        f'{device} {name} {case}: {dict(zip(RESULTS, values))}'
        for case, values in found.items()
        if max(values) > allowed
    ]
