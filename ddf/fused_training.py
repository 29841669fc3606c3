"""The gradients of a module that runs in one call: `ddf.fused` says when.

In reverse mode, once, they are one call of the compiled library, too. Where gradients are to have derivatives of their
own, or a transform looks on, torch differentiates the layers.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import guards, reference
from .schemas import dynamic_filter_gradients, dynamic_filter_predictions, forward

_WEIGHTS = 7  # of spatial layer, squeeze and excite, each with a bias, and the scale of the channel filter's FilterNorm


def filter_and_record(x: Tensor, weights: list[Tensor], settings: tuple) -> Tensor:
    """`torch.ops.ddf.dynamic_filter` without norms, differentiable.

    Args:
        x: (B, C, H, W), contiguous or channels_last, float32 or float64, on a CPU.
        weights: In the order of the operator's arguments, as the module's layers have them.
        settings: The operator's, from kernel_size to norm_gain.
    """
    return _DynamicFilter.apply(x, *weights, settings)


class _DynamicFilter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_and_settings: Any) -> Tensor:
        *weights, ctx.settings = weights_and_settings
        output, *predictions = dynamic_filter_predictions(x, *weights, *ctx.settings)
        ctx.save_for_backward(x, *weights, *predictions)
        ctx.set_materialize_grads(False)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None) -> tuple:
        if grad_output is None:
            return (None,) * (_WEIGHTS + 2)
        saved = ctx.saved_tensors
        if guards.wants_values_alone(grad_output):
            return *dynamic_filter_gradients(grad_output, *saved, *ctx.settings), None
        arguments = saved[: _WEIGHTS + 1]
        return *_gradients_of_layers(grad_output, arguments, ctx.settings, ctx.needs_input_grad), None


def _gradients_of_layers(
    grad_output: Tensor, arguments: tuple[Tensor, ...], settings: tuple, needed: tuple[bool, ...]
) -> list[Tensor | None]:
    with torch.enable_grad():
        output = _filtered_by_layers(*arguments, settings=settings)
    wanted = [argument for argument, is_needed in zip(arguments, needed) if is_needed]
    grads = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=torch.is_grad_enabled()))
    return [next(grads) if is_needed else None for is_needed in needed[: len(arguments)]]


def _filtered_by_layers(x: Tensor, *weights: Tensor, settings: tuple) -> Tensor:
    """What the module's layers do."""
    spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, scale = weights
    kernel_size, dilation, stride, *others = settings
    batch, channels = x.shape[:2]
    logits = F.conv2d(x, spatial_weight, spatial_bias, stride)  # (B, head * k**2, Ho, Wo)
    hidden = F.relu(F.linear(x.mean((2, 3)), squeeze_weight.flatten(1), squeeze_bias))  # (B, C * se_ratio)
    taps = F.linear(hidden, excite_weight.flatten(1), excite_bias)[..., None, None]  # (B, C * k**2, 1, 1)
    channel_filter = reference.normalise(taps, channels, 1.0).flatten(1) * scale
    shape = batch, channels, kernel_size, kernel_size
    return forward(x, channel_filter.view(shape), logits, dilation, stride, *others)
