"""A module in one call of the compiled library: where values are wanted, or values and their gradients in reverse mode.

On a CPU the branches are many short calls of torch, and the map is read by each of them. `torch.ops.ddf.dynamic_filter`
takes the map and the weights of both branches, and keeps the filters in the processor's cache; `ddf.fused_training` has
the gradients. There are no rules for other derivatives and for transforms: the layers of the branches serve wherever
more is wanted. Without gradients graphs of torch.compile hold the call, exported ones the layers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import guards
from .branches import ChannelBranch, has_plain_layers, plain_logits
from .filter_norm import FilterNorm
from .fused_training import filter_and_record
from .guards import is_plain
from .pointwise import is_pointwise
from .schemas import dynamic_filter


def filter_predicting(
    x: Tensor,
    spatial_branch: Any,
    channel_branch: Any,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
    before: tuple[nn.Module, nn.Module] | None = None,
    after: tuple[nn.Module, nn.Module] | None = None,
) -> Tensor | None:
    """(B, C, H, W), filtered with what the branches predict from it, to (B, C, Ho, Wo).

    None where the layers have to be called: there is no kernel, gradients may be wanted and there are other layers
    around, a tracer or a transform looks on, or a layer was replaced, changed or hooked.

    Args:
        before: A BatchNorm2d in evaluation and a ReLU, through which x passes first.
        after: The same for the output.
    """
    with_gradients = torch.is_grad_enabled()
    if with_gradients and not (before is None and after is None):
        return None
    if not guards.takes(x, with_gradients):
        return None
    logits = plain_logits(spatial_branch)
    if logits is None or not is_plain(channel_branch, ChannelBranch):
        return None
    layers: tuple[Any, ...] = tuple(channel_branch)
    if not has_plain_layers(layers):
        return None
    convolution, norm_gain = logits
    _, squeeze, _, excite, norm = layers
    if not (is_plain(convolution, nn.Conv2d) and is_pointwise(convolution) and is_plain(norm, FilterNorm)):
        return None
    if convolution.stride != (stride, stride) or norm.mean is not None or x.shape[1] != convolution.in_channels:
        return None
    weights = [
        *(convolution.weight, convolution.bias, squeeze.weight, squeeze.bias),
        *(excite.weight, excite.bias, norm.std),
    ]
    first_norm, last_norm = (_norm_values(layers, x) for layers in (before, after))
    if first_norm is None or last_norm is None or not guards.are_like(x, weights):
        return None
    settings = norm.kernel_size, dilation, stride, head, kernel_combine, norm_gain
    if with_gradients:
        return filter_and_record(x, weights, settings)
    eps = [0.0 if layers is None else layers[0].eps for layers in (before, after)]
    return dynamic_filter(x, *weights, *settings, first_norm, last_norm, *eps)


def _norm_values(layers: tuple[Any, Any] | None, x: Tensor) -> list[Any] | None:
    """Those of a norm in evaluation with a ReLU behind it."""
    if layers is None:
        return []
    norm, activation = layers
    return guards.norm_values(norm, x) if is_plain(activation, nn.ReLU) else None
