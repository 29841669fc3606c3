"""The operators `torch.ops.ddf.*`: kernels, shapes for tracing, autocast; gradients, vmap and FLOPs from their modules.

The plain-torch reference serves every backend; the compiled library, loaded afterwards, takes precedence where it has
a kernel. Shapes are those of `ddf.reference`, signatures those of `ddf.schemas`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import derivatives, fallback, flops, reference, transforms
from .schemas import filter_gradients, forward, input_gradient, library

_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

__all__ = ['filter_gradients', 'forward', 'input_gradient']


def _fallback(kernel: Callable) -> Callable:
    """The reference as the kernel of every device that has no compiled one; says so once, since it is slower."""

    def run(*arguments: Any) -> Any:
        *grad_output, input, channel_filter, spatial_filter = arguments[:-5]
        _check(grad_output, input, channel_filter, spatial_filter, *arguments[-5:])
        return fallback.run(kernel, input.device.type, *arguments)

    return run


def _check(
    grad_output: list[Tensor],
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
    norm_gain: float | None,
) -> None:
    """Refuses what a direct call of torch.ops may bring and broadcasting would hide, as the compiled kernels do."""
    tensors = (input, channel_filter, spatial_filter, *grad_output)
    _require(all(tensor.dim() == 4 for tensor in tensors), 'expected tensors of 4 dimensions')
    _require(
        len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1, 'expected tensors of one dtype and device'
    )
    _require(input.dtype in _DTYPES, 'expected float64, float32, float16 or bfloat16')
    _require(kernel_combine in ('mul', 'add'), "kernel_combine must be 'mul' or 'add'")
    batch, channels, height, width = input.shape
    size = channel_filter.shape[-1]
    _require(min(dilation, stride, head) >= 1, 'dilation, stride and head must be at least 1')
    _require(channels % head == 0, 'head must divide the channels')
    _require(
        size % 2 == 1 and (size > 1 or norm_gain is None), 'the kernel size must be odd, with norm_gain at least 3'
    )
    grid = reference.output_size(height, stride), reference.output_size(width, stride)
    for filter, shape in ((channel_filter, (channels, size, size)), (spatial_filter, (head * size**2, *grid))):
        _require(
            filter.shape[0] in (1, batch) and filter.shape[1:] == shape, f'a filter must have shape (B or 1, *{shape})'
        )
    _require(
        all(grad.shape == (batch, channels, *grid) for grad in grad_output),
        'grad_output must have shape (B, C, Ho, Wo)',
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(f'ddf: {message}')


def _forward_shape(
    input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, dilation: int, stride: int, *_: Any
) -> Tensor:
    height, width = (reference.output_size(size, stride) for size in input.shape[-2:])
    return _empty((*input.shape[:2], height, width), like=input)


def _input_gradient_shape(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _empty(input.shape, like=input)


def _filter_gradients_shape(
    grad_output: Tensor, input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return channel_filter.new_empty(channel_filter.shape), _empty(spatial_filter.shape, like=spatial_filter)


def _dynamic_filter_shape(input: Tensor, *weights_and_settings: Any) -> Tensor:
    *weights, _, _, stride, _, _, _, input_norm, output_norm, _, _ = weights_and_settings
    _require_one_device(input, *weights, *input_norm, *output_norm)
    height, width = (reference.output_size(size, stride) for size in input.shape[-2:])
    return _empty((*input.shape[:2], height, width), like=input)


def _predictions_shape(input: Tensor, *weights_and_settings: Any) -> tuple[Tensor, ...]:
    output = _dynamic_filter_shape(input, *weights_and_settings, [], [], 0.0, 0.0)
    _, spatial_bias, _, squeeze_bias, _, _, scale = weights_and_settings[:7]
    logits = _empty((input.shape[0], spatial_bias.numel(), *output.shape[-2:]), like=input)
    counts = (input.shape[1], squeeze_bias.numel(), scale.numel())
    return output, logits, *(input.new_empty((input.shape[0], count)) for count in counts)


def _dynamic_filter_gradients_shape(grad_output: Tensor, input: Tensor, *weights_and_others: Any) -> tuple[Tensor, ...]:
    return _empty(input.shape, like=input), *(weight.new_empty(weight.shape) for weight in weights_and_others[:7])


def _normalized_sum_shape(
    output: Tensor,
    map: Tensor,
    norm: list[Tensor],
    shortcut: Tensor | None,
    shortcut_norm: list[Tensor],
    *_: Any,
) -> None:
    _require_one_device(output, map, *norm, *([] if shortcut is None else [shortcut]), *shortcut_norm)


def _normalized_sum_gradients_shape(
    grad_output: Tensor, output: Tensor, norm: list[Tensor], shortcut_norm: list[Tensor], adds_shortcut: bool
) -> tuple[Tensor, ...]:
    _require_one_device(grad_output, output, *norm, *shortcut_norm)
    shapes = [output.shape, *[output.shape[1:2]] * 2]
    shortcut_shapes = shapes if shortcut_norm else [output.shape if adds_shortcut else (0,), (0,), (0,)]
    return tuple(
        _empty(shape, like=output) if len(shape) == 4 else output.new_empty(shape)
        for shape in (*shapes, *shortcut_shapes)
    )


def _batch_statistics_shape(
    map: Tensor, running_mean: Tensor, running_variance: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    _require_one_device(map, running_mean, running_variance)
    return map.new_empty(map.shape[1]), map.new_empty(map.shape[1])


def _require_one_device(*tensors: Tensor) -> None:
    devices = {tensor.device for tensor in tensors}
    _require(len(devices) == 1, 'expected tensors of one device, values of norms included')


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    memory_format = reference.memory_format_of(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _autocast(device_type: str) -> Callable:
    """Under an active region the operation runs in the region's dtype, float64 excepted, as torch's convolutions do."""

    def cast_and_forward(input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *settings: Any) -> Tensor:
        tensors: tuple[Tensor, ...] = (input, channel_filter, spatial_filter)
        if all(tensor.dtype != torch.float64 for tensor in tensors):
            dtype = torch.get_autocast_dtype(device_type)
            tensors = tuple(tensor.to(dtype) for tensor in tensors)
        with torch.autocast(device_type, enabled=False):
            return forward(*tensors, *settings)

    return cast_and_forward


def _register(library: torch.library.Library) -> None:
    for name, kernel, shape in (
        ('forward', reference.forward, _forward_shape),
        ('input_gradient', reference.input_gradient, _input_gradient_shape),
        ('filter_gradients', reference.filter_gradients, _filter_gradients_shape),
    ):
        library.impl(name, _fallback(kernel), 'CompositeExplicitAutograd')
        torch.library.register_fake(f'ddf::{name}', shape, lib=library)
    torch.library.register_fake('ddf::dynamic_filter', _dynamic_filter_shape, lib=library)
    torch.library.register_fake('ddf::dynamic_filter_predictions', _predictions_shape, lib=library)
    torch.library.register_fake('ddf::dynamic_filter_gradients', _dynamic_filter_gradients_shape, lib=library)
    torch.library.register_fake('ddf::normalized_sum_', _normalized_sum_shape, lib=library)
    torch.library.register_fake('ddf::normalized_sum_gradients', _normalized_sum_gradients_shape, lib=library)
    torch.library.register_fake('ddf::batch_statistics_', _batch_statistics_shape, lib=library)
    for device_type, dispatch_key in (('cpu', 'AutocastCPU'), ('cuda', 'AutocastCUDA'), ('mps', 'AutocastMPS')):
        library.impl('forward', _autocast(device_type), dispatch_key)
    derivatives.register(library)
    transforms.register(library)
    flops.register()


if library is not None:
    _register(library)
