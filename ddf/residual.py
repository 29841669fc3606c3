"""What surrounds the filters in a residual block, without the detours that torch takes on a CPU.

BatchNorm, the sum with the shortcut and ReLU are three calls of torch, which read and write the largest map of a block
seven times; in evaluation `torch.ops.ddf.add_residual_` does so three times. torch.compile makes one pass of the layers
itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import guards
from .branches import is_plain, is_pointwise
from .reference import memory_format_of
from .schemas import add_residual_


def add_residual(
    x: Tensor, norm: nn.Module, activation: nn.Module, shortcut: Tensor, downsample: nn.Module | None
) -> Tensor | None:
    """activation(norm(x) + downsample(shortcut)), written over x, (B, C, H, W); needs gradients to be off.

    None, and x as it was, where the layers have to be called: in training, where there is no kernel, a tracer or a
    transform looks on, the dtype is not float32 or float64, or a layer was replaced or hooked.

    Args:
        x: What nobody else reads, such as the output of a convolution.
        norm: A BatchNorm2d.
        activation: A ReLU.
        shortcut: The block's input.
        downsample: Layers through which the shortcut passes. A BatchNorm2d at the end of an nn.Sequential is part of
            the pass.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    if not (is_plain(activation, nn.ReLU) and guards.takes(x, with_gradients=False)):
        return None
    values = guards.norm_values(norm, x.shape[1])
    if values is None or not guards.are_like(x, values):
        return None
    shortcut, shortcut_values, shortcut_eps = _before_last_norm(x, shortcut, downsample)
    shortcut = shortcut.expand_as(x).contiguous(memory_format=memory_format_of(x))
    add_residual_(x, values, shortcut, shortcut_values, norm.eps, shortcut_eps)
    return x


def _before_last_norm(x: Tensor, shortcut: Tensor, downsample: Any) -> tuple[Tensor, list[Any], float]:
    """The shortcut behind its layers but a norm at their end, with that norm's values and eps; [] without one."""
    if downsample is None:
        return shortcut, [], 0.0
    if is_plain(downsample, nn.Sequential) and len(downsample) > 0:
        *layers, last = downsample
        values = guards.norm_values(last, x.shape[1])
        if values is not None and guards.are_like(x, values):
            return _through(layers, shortcut), values, last.eps
    return downsampled(shortcut, downsample), [], 0.0


def downsampled(x: Tensor, downsample: Any) -> Tensor:
    """What the layers of a shortcut give for x, (B, C, H, W).

    Of a contiguous map, of which a 1x1 convolution with a stride reads only some pixels, torch copies all into another
    layout, and in training the map's gradient from there. Here the pixels are copied first, and the convolution goes
    without a stride. The layers are called as modules wherever that shows, and under every tracer.
    """
    if type(x) is not Tensor or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return downsample(x)
    if not is_plain(downsample, nn.Sequential) or nn.modules.module._has_any_global_hook():
        return downsample(x)
    return _through(list(downsample), x)


def _through(layers: list[Any], x: Tensor) -> Tensor:
    if layers and _copies_unread_pixels(layers[0], x):
        convolution, *layers = layers
        rows, columns = convolution.stride
        x = F.conv2d(x[:, :, ::rows, ::columns].contiguous(), convolution.weight, convolution.bias)
    for layer in layers:
        x = layer(x)
    return x


def _copies_unread_pixels(convolution: Any, x: Tensor) -> bool:
    return (
        x.device.type == 'cpu'
        and x.is_contiguous()
        and is_plain(convolution, nn.Conv2d)
        and is_pointwise(convolution)
        and convolution.stride != (1, 1)
    )
