"""What surrounds the filters in a residual block, without the detours that torch takes on a CPU.

BatchNorm, the sum with the shortcut and ReLU are three calls of torch, which read and write the largest map of a block
seven times; in evaluation `torch.ops.ddf.normalized_sum_` does so three times. torch.compile makes one pass of the
layers itself. `ddf.batch_norm` has the training.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import guards
from .batch_norm import train_rectified_sum
from .guards import is_plain
from .pointwise import is_pointwise, pointwise, read_pixels
from .reference import memory_format_of
from .schemas import normalized_sum_


def add_residual(
    x: Tensor, norm: Any, activation: nn.Module, shortcut: Tensor, downsample: nn.Module | None
) -> Tensor | None:
    """activation(norm(x) + downsample(shortcut)) for x of (B, C, H, W), in evaluation without gradients or in training.

    None where the layers have to be called: there is no kernel, gradients are wanted in evaluation, a tracer, a
    transform or autocast looks on, the dtype is not float32 or float64, or a layer was replaced or hooked.

    Args:
        x: What nobody else reads, such as the output of a convolution: in evaluation it is written over.
        norm: A BatchNorm2d.
        activation: A ReLU.
        shortcut: The block's input.
        downsample: Layers through which the shortcut passes. A BatchNorm2d at the end of an nn.Sequential is part of
            the pass.
    """
    training = norm.training
    if not guards.takes_eagerly(x, activation, training):
        return None
    values = guards.norm_values(norm, x, training)
    if values is None:
        return None
    shortcut, shortcut_norm = _before_last_norm(x, shortcut, downsample, training)
    if shortcut.shape != x.shape:
        if shortcut_norm is not None:
            shortcut, shortcut_norm = shortcut_norm(shortcut), None
        shortcut = shortcut.expand_as(x)
    shortcut = shortcut.contiguous(memory_format=memory_format_of(x))
    if training:
        return train_rectified_sum(x, norm, shortcut, shortcut_norm)
    shortcut_values = [] if shortcut_norm is None else guards.values_of(shortcut_norm)
    eps = 0.0 if shortcut_norm is None else shortcut_norm.eps
    normalized_sum_(x, x, values, shortcut, shortcut_values, norm.eps, eps)
    return x


def _before_last_norm(
    x: Tensor, shortcut: Tensor, downsample: Any, training: bool
) -> tuple[Tensor, nn.BatchNorm2d | None]:
    """The shortcut behind its layers but a norm at their end, and that norm."""
    if downsample is None:
        return shortcut, None
    if is_plain(downsample, nn.Sequential) and len(downsample) > 0:
        *layers, last = downsample
        if guards.norm_values(last, x, training) is not None:
            return _through(layers, shortcut), last
    return downsampled(shortcut, downsample), None


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
        x = F.conv2d(read_pixels(x, convolution).contiguous(), convolution.weight, convolution.bias)
    for layer in layers:
        x = pointwise(x, layer)
    return x


def _copies_unread_pixels(convolution: Any, x: Tensor) -> bool:
    return (
        x.device.type == 'cpu'
        and x.is_contiguous()
        and is_plain(convolution, nn.Conv2d)
        and is_pointwise(convolution)
        and convolution.stride != (1, 1)
    )
