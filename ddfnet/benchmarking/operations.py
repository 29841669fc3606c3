"""The DDF operation, what it replaces, and plain formulations of it, as subjects to time."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf import DDFPack, check, ddf, reference
from ddfnet.benchmarking.subjects import Job, Work, compile_if
from ddfnet.config import BenchmarkConfig
from ddfnet.counting import count_gmacs, count_params
from ddfnet.models.build import check_cpp_compiler
from ddfnet.precision import Precision

LABELS = {
    'conv': 'convolution',
    'depthwise': 'depthwise convolution',
    'module': 'DDF module',
    'ddf': 'DDF operation',
    'unfold': 'unfold',
    'shifted': 'shifted sum',
    'compiled': 'compiled shifted sum',
}
_MODULES = ('conv', 'depthwise', 'module')
_PATTERN = 999_983  # prime, so that images differ
_CHANNEL_STEP = 15  # odd, so that every lane of a vector has its turn
_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def unfolded(input: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> Tensor:
    """The operation ('mul', stride 1, one head) by `torch.nn.functional.unfold`; shapes are those of `ddf.ddf`."""
    batch, channels, height, width = input.shape
    kernel_size = channel_filter.shape[-1]
    columns = F.unfold(input, kernel_size, padding=kernel_size // 2)
    columns = columns.view(batch, channels, kernel_size**2, height * width)
    weights = channel_filter.reshape(batch, channels, -1, 1) * spatial_filter.reshape(batch, 1, kernel_size**2, -1)
    return (columns * weights).sum(2).view(input.shape)


def shifted(input: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> Tensor:
    """The operation ('mul', stride 1, one head) as a sum of shifted products."""
    return reference.forward(input, channel_filter, spatial_filter, 1, 1, 1, 'mul')


class Operation:
    """One operation on maps of one size, with or without filters of its own."""

    def __init__(self, job: Job, config: BenchmarkConfig, precision: Precision) -> None:
        assert job.shape is not None
        self.config = config
        self.precision = precision
        self.name = job.name
        self.channels, *self.map_size = job.shape[1:]
        self.input_size: tuple[int, ...] = job.shape[1:]
        if job.name == 'compiled' and precision.device.type == 'cpu':
            check_cpp_compiler('the compiled shifted sum')
        self.function = self._function()
        self.params = count_params(self.function) if isinstance(self.function, nn.Module) else 0
        self.gmacs = self._count()

    def work(self, batch_size: int, compiled: bool) -> Work:
        """Forward, or forward and backward of a random gradient; maps and filters are random."""
        function = self.function
        if self.name == 'compiled' and compiled:
            function = torch.compile(function, dynamic=False)
        function = compile_if(function, compiled and self.name != 'compiled', self.config)
        inputs = self._inputs(batch_size)
        leaves = [*inputs, *(self.function.parameters() if isinstance(self.function, nn.Module) else ())]
        grad_output = self._random(batch_size, self.channels, *self.map_size) if self.config.train else None
        for leaf in leaves:
            leaf.requires_grad_(grad_output is not None)
        run = (
            self._forward(function, inputs)
            if grad_output is None
            else self._step(function, leaves, inputs, grad_output)
        )

        def held() -> list[Tensor]:
            grads = [leaf.grad for leaf in leaves if leaf.grad is not None]
            return [*leaves, *grads, *([] if grad_output is None else [grad_output])]

        if self.name in _MODULES:
            return Work(run, held)
        return Work(run, held, lambda: _error(run, inputs, grad_output), _TOLERANCES[inputs[0].dtype])

    def _function(self) -> Callable[..., Tensor]:
        settings: dict[str, Any] = {'kernel_size': self.config.kernel_size, 'padding': self.config.kernel_size // 2}
        if self.name == 'conv':
            module: nn.Module = nn.Conv2d(self.channels, self.channels, bias=False, **settings)
        elif self.name == 'depthwise':
            module = nn.Conv2d(self.channels, self.channels, groups=self.channels, bias=False, **settings)
        elif self.name == 'module':
            module = DDFPack(self.channels, self.config.kernel_size)
        else:
            return {'ddf': self._ddf, 'unfold': unfolded, 'shifted': shifted, 'compiled': shifted}[self.name]
        return self.precision.place(module.train(self.config.train))

    def _ddf(self, input: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> Tensor:
        return ddf(input, channel_filter, spatial_filter, self.config.kernel_size)

    def _count(self) -> float:
        """Of one map. The plain formulations compute what the operation computes, so they count as it does."""
        function = self.function if self.name in _MODULES else self._ddf
        inputs = self._inputs(1)
        with self.precision.autocast():
            return count_gmacs(lambda: function(*inputs))

    def _inputs(self, batch_size: int) -> list[Tensor]:
        """The map (B, C, H, W) and, for what has no filters of its own, channel and spatial filter."""
        input = self._random(batch_size, self.channels, *self.map_size)
        if self.name in _MODULES:
            return [input]
        kernel_size = self.config.kernel_size
        channel_filter = self._random(batch_size, self.channels, kernel_size, kernel_size, laid_out=False)
        return [input, channel_filter, self._random(batch_size, kernel_size**2, *self.map_size)]

    def _random(self, *shape: int, laid_out: bool = True) -> Tensor:
        """In the layout and the precision that maps have inside of a network.

        A pattern that is copied: drawing every value would take most of the time for the largest maps.
        """
        dtype = self.precision.amp_dtype or self.precision.model_dtype
        values = torch.empty(shape, device=self.precision.device, dtype=dtype)
        pattern = torch.randn(min(values.numel(), _PATTERN), device=values.device, dtype=values.dtype)
        for part in values.view(-1).split(len(pattern)):
            part.copy_(pattern[: len(part)])
        return self.precision.lay_out(values) if laid_out else values

    def _forward(self, function: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], Iterable[Tensor]]:
        @torch.inference_mode()
        def run() -> Iterable[Tensor]:
            with self.precision.autocast():
                return (function(*inputs),)

        return run

    def _step(
        self, function: Callable[..., Tensor], leaves: list[Tensor], inputs: list[Tensor], grad_output: Tensor
    ) -> Callable[[], Iterable[Tensor]]:
        def run() -> Iterable[Tensor]:
            for leaf in leaves:
                leaf.grad = None
            with self.precision.autocast():
                output = function(*inputs)
            output.backward(grad_output)
            return (output, *(input.grad for input in inputs if input.grad is not None))

        return run


@torch.no_grad()
def _error(run: Callable[[], Iterable[Tensor]], inputs: list[Tensor], grad_output: Tensor | None) -> float:
    """Largest relative error of the first and the last image, against the definition in float64.

    Of a forward pass every 15th channel is compared: the definition takes seconds for a large map.
    """
    with torch.set_grad_enabled(grad_output is not None):
        results = run()
    ends = [0, -1]
    arguments: Any = [tensor[ends].cpu().double() for tensor in inputs]
    settings: Any = (1, 1, 1, 'mul')
    if grad_output is None:
        results = [result[:, ::_CHANNEL_STEP] for result in results]
        arguments = [argument[:, ::step] for argument, step in zip(arguments, (_CHANNEL_STEP, _CHANNEL_STEP, 1))]
        expected = [reference.forward(*arguments, *settings)]
    else:
        expected = check.evaluate(reference, [grad_output[ends].cpu().double(), *arguments], settings)
    return max(relative_error(result[ends], right) for result, right in zip(results, expected, strict=True))


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """The largest error, relative to the largest exact value; infinite for NaN. `exact` is on the CPU, in float64."""
    difference = (actual.cpu().double() - exact).abs().max() / exact.abs().max()
    return difference.nan_to_num(nan=float('inf')).item()
