"""The operators `torch.ops.ddf.*`: schemas, shapes for tracing, gradients, autocast.

The plain-torch reference serves every backend; the compiled library, loaded afterwards, takes precedence where it has
a kernel. Shapes are those of `ddf.reference`. The three operators close over each other: the gradients of each are
sums of the same three, so derivatives of any order exist.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import extension, reference

_FILTERS = 'Tensor channel_filter, Tensor spatial_filter'
_SETTINGS = 'int dilation, int stride, int head, str kernel_combine'

library = torch.library.Library('ddf', 'DEF')
library.define(f'forward(Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
library.define(f'input_gradient(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
library.define(f'filter_gradients(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> (Tensor, Tensor)')


def _fallback(kernel: Callable) -> Callable:
    """The reference as the kernel of every device that has no compiled one; says so once, since it is slower."""

    def run(*arguments: Any) -> Any:
        _warn_of_fallback(arguments[0].device.type)
        return kernel(*arguments)

    return run


@functools.cache
def _warn_of_fallback(device_type: str) -> None:
    if not extension.reference_is_wanted():
        warnings.warn(
            f'ddf has no compiled kernel for {device_type!r} here and runs on plain torch, which is slower: '
            f'`python -m {__package__}` says why and how to mend it',
            stacklevel=2,
        )


library.impl('forward', _fallback(reference.forward), 'CompositeExplicitAutograd')
library.impl('input_gradient', _fallback(reference.input_gradient), 'CompositeExplicitAutograd')
library.impl('filter_gradients', _fallback(reference.filter_gradients), 'CompositeExplicitAutograd')

forward = torch.ops.ddf.forward.default
input_gradient = torch.ops.ddf.input_gradient.default
filter_gradients = torch.ops.ddf.filter_gradients.default


@torch.library.register_fake('ddf::forward', lib=library)
def _forward_shape(
    input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, dilation: int, stride: int, *_: Any
) -> Tensor:
    height, width = (reference.output_size(size, stride) for size in input.shape[-2:])
    return _empty((*input.shape[:2], height, width), like=input)


@torch.library.register_fake('ddf::input_gradient', lib=library)
def _input_gradient_shape(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
    return _empty(input.shape, like=input)


@torch.library.register_fake('ddf::filter_gradients', lib=library)
def _filter_gradients_shape(
    grad_output: Tensor, input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    return channel_filter.new_empty(channel_filter.shape), spatial_filter.new_empty(spatial_filter.shape)


def _empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    memory_format = reference.memory_format_of(like)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    """Keeps the operator's tensors and settings: its last four arguments are the settings in every schema."""
    ctx.save_for_backward(*inputs[:-4])
    ctx.settings = inputs[-4:]


def _forward_backward(ctx: Any, grad_output: Tensor) -> tuple:
    input, channel_filter, spatial_filter = ctx.saved_tensors
    arguments = (grad_output, input, channel_filter, spatial_filter, *ctx.settings)
    grad_input = grad_channel = grad_spatial = None
    if ctx.needs_input_grad[0]:
        grad_input = input_gradient(*arguments)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        grad_channel, grad_spatial = filter_gradients(*arguments)
    return grad_input, grad_channel, grad_spatial, None, None, None, None


def _input_gradient_backward(ctx: Any, grad: Tensor) -> tuple:
    # <grad, input_gradient(g, c, s)> = <g, forward(grad, c, s)>: differentiate the right-hand side
    grad_output, _, channel_filter, spatial_filter = ctx.saved_tensors
    grad_grad_output = forward(grad, channel_filter, spatial_filter, *ctx.settings)
    grad_channel, grad_spatial = filter_gradients(grad_output, grad, channel_filter, spatial_filter, *ctx.settings)
    return grad_grad_output, None, grad_channel, grad_spatial, None, None, None, None


def _filter_gradients_backward(ctx: Any, grad_channel: Tensor, grad_spatial: Tensor) -> tuple:
    # <grad_channel, gc> + <grad_spatial, gs> = <g, derivative of forward(x, c, s) along (grad_channel, grad_spatial)>
    grad_output, input, channel_filter, spatial_filter = ctx.saved_tensors
    settings = ctx.settings
    if settings[-1] == 'add':  # x * (c + s): the derivative is x * (grad_channel + grad_spatial), free of c and s
        directions = [(grad_channel, grad_spatial)]
        second_channel = second_spatial = None
    else:  # x * c * s: the derivative is x * grad_channel * s + x * c * grad_spatial
        directions = [(grad_channel, spatial_filter), (channel_filter, grad_spatial)]
        second_spatial = filter_gradients(grad_output, input, *directions[0], *settings)[1]
        second_channel = filter_gradients(grad_output, input, *directions[1], *settings)[0]
    grad_grad_output = sum(forward(input, *direction, *settings) for direction in directions)
    grad_input = sum(input_gradient(grad_output, input, *direction, *settings) for direction in directions)
    return grad_grad_output, grad_input, second_channel, second_spatial, None, None, None, None


torch.library.register_autograd('ddf::forward', _forward_backward, setup_context=_save, lib=library)
torch.library.register_autograd('ddf::input_gradient', _input_gradient_backward, setup_context=_save, lib=library)
torch.library.register_autograd('ddf::filter_gradients', _filter_gradients_backward, setup_context=_save, lib=library)


def _register_autocast(device_type: str, dispatch_key: str) -> None:
    """Under an active region the operation runs in the region's dtype, float64 excepted, as torch's convolutions do."""

    def cast_and_forward(input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, *settings: Any) -> Tensor:
        tensors: tuple[Tensor, ...] = (input, channel_filter, spatial_filter)
        if all(tensor.dtype != torch.float64 for tensor in tensors):
            dtype = torch.get_autocast_dtype(device_type)
            tensors = tuple(tensor.to(dtype) for tensor in tensors)
        with torch.autocast(device_type, enabled=False):
            return forward(*tensors, *settings)

    library.impl('forward', cast_and_forward, dispatch_key)


_register_autocast('cpu', 'AutocastCPU')
_register_autocast('cuda', 'AutocastCUDA')
_register_autocast('mps', 'AutocastMPS')
