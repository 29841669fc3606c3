"""Compares what serves each device with the definition in float64: `python -m ddf check`."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from . import extension, fallback, operators, reference, report

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
RESULTS = ('output', 'input', 'channel_filter', 'spatial_filter')  # the output, then what the gradients are of


@dataclass(frozen=True)
class Case:
    """Sizes and settings of one call.

    Attributes:
        size: (B, C, H, W).
        channels_last: The layout of all four maps; contiguous otherwise.
        filters: 'own' for each image, of 'batch 1' for all of them, or 'expanded' from batch 1 (stride 0).
    """

    size: tuple[int, int, int, int]
    kernel_size: int
    dilation: int = 1
    stride: int = 1
    head: int = 1
    kernel_combine: str = 'mul'
    channels_last: bool = False
    norm_gain: float | None = None
    filters: str = 'own'

    @property
    def settings(self) -> tuple[int, int, int, str, float | None]:
        return self.dilation, self.stride, self.head, self.kernel_combine, self.norm_gain

    def tensors(self, dtype: torch.dtype, device: str = 'cpu') -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The same random grad_output, input, channel_filter, spatial_filter at every call."""
        generator = torch.Generator().manual_seed(0)
        batch, channels, height, width = self.size
        filters = batch if self.filters == 'own' else 1
        taps = self.kernel_size**2
        grid = reference.output_size(height, self.stride), reference.output_size(width, self.stride)
        shapes = (
            (batch, channels, *grid),
            self.size,
            (filters, channels, self.kernel_size, self.kernel_size),
            (filters, self.head * taps, *grid),
        )
        grad, input, channel, spatial = (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes
        )
        if self.channels_last:
            grad, input, spatial = (map.contiguous(memory_format=torch.channels_last) for map in (grad, input, spatial))
        if self.filters == 'expanded':
            channel, spatial = (filter.expand(batch, -1, -1, -1) for filter in (channel, spatial))
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
    Case((2, 3, 19, 21), 15),
    Case((1, 2, 16, 18), 15, stride=2, kernel_combine='add', channels_last=True),
    Case((2, 3, 12, 20), 3, channels_last=True),
    Case((1, 2, 9, 33), 5, stride=2, channels_last=True),
    Case((2, 12, 11, 13), 3, head=4, channels_last=True),
    Case((2, 72, 10, 12), 3, stride=2, head=2, kernel_combine='add', channels_last=True),
    Case((3, 8, 14, 14), 3, filters='batch 1'),
    Case((3, 8, 13, 11), 5, stride=2, head=2, kernel_combine='add', channels_last=True, filters='batch 1'),
    Case((3, 8, 14, 14), 3, filters='expanded'),
    Case((3, 6, 13, 11), 3, head=3, kernel_combine='add', channels_last=True, filters='expanded'),
    Case((2, 8, 14, 14), 3, norm_gain=1 / 3),
    Case((2, 8, 13, 11), 3, stride=2, head=2, kernel_combine='add', channels_last=True, norm_gain=2.0),
    Case((3, 8, 9, 11), 5, dilation=2, head=2, norm_gain=0.5, filters='batch 1'),
    Case((3, 4, 9, 11), 7, kernel_combine='add', norm_gain=-0.5, filters='expanded'),
)


def tolerance(dtype: torch.dtype) -> float:
    """Allowed `error`: that of sums in float64, else in float32, whatever their order."""
    return 1e-14 if dtype == torch.float64 else 1e-6


def errors(case: Case, dtype: torch.dtype, device: str, implementation: ModuleType = operators) -> list[float]:
    """The `error` of each of RESULTS, by the operators or by another module with their functions."""
    exact = evaluate(reference, [tensor.double() for tensor in case.tensors(dtype)], case.settings)
    tensors = case.tensors(dtype, device)
    found = evaluate(implementation, tensors, case.settings)
    _, input, _, spatial = (reference.memory_format_of(tensor) for tensor in tensors)
    formats = (input, input, torch.contiguous_format, spatial)
    return [
        error(result, expected, dtype, memory_format) for result, expected, memory_format in zip(found, exact, formats)
    ]


def error(result: Tensor, exact: Tensor, dtype: torch.dtype, memory_format: torch.memory_format) -> float:
    """The largest error of any element, relative to the largest element of the exact result, which is in float64.

    In half precision the rounding of the exact result itself, up to half a unit in the last place, is no error.
    Infinite for NaN and for a wrong shape, dtype or memory format.
    """
    if result.shape != exact.shape or result.dtype != dtype or not result.is_contiguous(memory_format=memory_format):
        return float('inf')
    if result.numel() == 0:
        return 0.0
    difference = (result.cpu().double() - exact).abs()
    if dtype.itemsize == 2:
        info = torch.finfo(dtype)
        normal = exact.abs().clamp(min=info.tiny)  # below it the spacing is constant
        unit = torch.ldexp(torch.full_like(exact, info.eps), torch.frexp(normal).exponent - 1)
        difference = (difference - unit / 2).clamp(min=0)
    largest = (difference.max() / exact.abs().max().clamp(min=torch.finfo(dtype).tiny)).item()
    return largest if largest == largest else float('inf')


def evaluate(implementation: ModuleType, tensors: Sequence[Tensor], settings: tuple) -> list[Tensor]:
    """RESULTS of the operators, or of the reference: `tensors` and `settings` are those of a `Case`."""
    return [
        implementation.forward(*tensors[1:], *settings),
        implementation.input_gradient(*tensors, *settings),
        *implementation.filter_gradients(*tensors, *settings),
    ]


def main() -> int:
    """Prints a report on every device, backend and dtype, and returns the exit status."""
    info = extension.build_info()
    print(str(info).splitlines()[0])
    devices = list(_devices())
    print(report.environment(), *report.gpus(dict(info.stamp)), *fallback.notes(info.devices), sep='\n')
    if info.path is None:
        print('No compiled library is loaded: what is checked is plain torch.', *info.notes, sep='\n')
    elif info.stamp:
        print(str(info).splitlines()[-1 - len(info.notes)], *info.notes, sep='\n')
    print(f'{"device":8}{"backend":24}{"dtype":10}{"allowed":>9}' + ''.join(f'{name:>16}' for name in RESULTS))
    failures = []
    for device in devices:
        served = 'compiled' if device in info.devices else fallback.name(device).partition(' (')[0].removeprefix('the ')
        # every case of the compiled shifted sum is compiled by itself, for seconds
        cases = CASES[:2] if device not in info.devices and fallback.is_compiled(device) else CASES
        for dtype in DTYPES:
            failures += _check(device, dtype, served, operators, cases)
        for dtype in DTYPES:
            failures += _check(device, dtype, 'reference', reference, CASES)
        if device != 'mps' and (failure := report.gradients_agree(device)):
            failures.append(f'{device} {failure}')
    for failure in failures:
        print(f'DISAGREES: {failure}', file=sys.stderr)
    verdict = f'{len(failures)} disagree' if failures else 'all agree'
    print(f'up to {len(CASES)} cases per line, and gradcheck: {verdict}')
    if not failures:
        for device in devices:
            print(*report.latencies(device), sep='\n')
    return 1 if failures else 0


def _devices() -> Iterator[str]:
    yield 'cpu'
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        yield accelerator.type


def _check(
    device: str, dtype: torch.dtype, backend: str, implementation: ModuleType, cases: Sequence[Case]
) -> list[str]:
    """Prints the line of one device, backend and dtype; returns the cases that disagree."""
    name = str(dtype).removeprefix('torch.')
    start = f'{device:8}{backend:24}{name:10}'
    if device == 'mps' and dtype == torch.float64:
        print(f'{start}{"no such dtype there":>30}')
        return []
    allowed = tolerance(dtype)
    found = {case: _errors_or_reason(case, dtype, device, implementation) for case in cases}
    largest = map(max, zip(*(value for value in found.values() if not isinstance(value, str))))
    print(f'{start}{allowed:9.1e}' + ''.join(f'{value:16.1e}' for value in largest))
    return [
        f'{device} {backend} {name} {case}: {value if isinstance(value, str) else [f"{error:.1e}" for error in value]}'
        for case, value in found.items()
        if isinstance(value, str) or max(value) > allowed
    ]


def _errors_or_reason(case: Case, dtype: torch.dtype, device: str, implementation: ModuleType) -> list[float] | str:
    try:
        return errors(case, dtype, device, implementation)
    except RuntimeError as reason:
        return str(reason).partition('\n')[0]
