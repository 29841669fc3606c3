"""A module in one call of the compiled library: where values are wanted, or values and their gradients in reverse mode.

On a CPU the branches are many short calls of torch, and the map is read by each of them. `torch.ops.ddf.dynamic_filter`
takes the map and the weights of both branches, and keeps the filters in the processor's cache; `ddf.fused_training` has
the gradients. There are no rules for other derivatives and for transforms: the layers of the branches serve wherever
more is wanted. Without gradients graphs of torch.compile hold the call, exported ones the layers.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from .branches import ChannelBranch, has_plain_layers, is_plain, is_pointwise, plain_logits
from .filter_norm import FilterNorm
from .fused_training import filter_and_record
from .schemas import dynamic_filter

_DTYPES = (torch.float32, torch.float64)
_PLAIN = (nn.Parameter, Tensor)


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
    if not (_is_unobserved(with_gradients) and _is_dense(x) and has_kernel()):
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
    first_norm, last_norm = (_norm_values(layers, x.shape[1]) for layers in (before, after))
    if first_norm is None or last_norm is None or not _are_like(x, weights + first_norm + last_norm):
        return None
    settings = norm.kernel_size, dilation, stride, head, kernel_combine, norm_gain
    if with_gradients:
        return filter_and_record(x, weights, settings)
    eps = [0.0 if layers is None else layers[0].eps for layers in (before, after)]
    return dynamic_filter(x, *weights, *settings, first_norm, last_norm, *eps)


def _norm_values(layers: tuple[Any, Any] | None, channels: int) -> list[Tensor] | None:
    """Weight, bias, mean and variance of a BatchNorm in evaluation with a ReLU behind it; None where it is another."""
    if layers is None:
        return []
    norm, activation = layers
    if not (is_plain(norm, nn.BatchNorm2d) and is_plain(activation, nn.ReLU)) or norm.training:
        return None
    values = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    return values if all(type(value) in _PLAIN and value.numel() == channels for value in values) else None


@torch.compiler.assume_constant_result
def has_kernel() -> bool:
    """Whether a compiled library serves; plain torch does not know the operator."""
    return _has_kernel()


@functools.cache
def _has_kernel() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key('ddf::dynamic_filter', 'CPU')


def _is_unobserved(with_gradients: bool) -> bool:
    return not (
        forward_ad._current_level >= 0
        or torch.is_autocast_enabled('cpu')
        or torch._C._are_functorch_transforms_active()
        or _is_traced_for_others(with_gradients)
        or nn.modules.module._has_any_global_hook()
    )


def _is_traced_for_others(with_gradients: bool) -> bool:
    """Whether a tracer looks on: any but torch.compile, whose graphs stay in this process and may hold the call. With
    gradients they hold the layers, which it fuses."""
    if torch.compiler.is_dynamo_compiling():
        return with_gradients or torch.compiler.is_exporting()
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._len_torch_dispatch_stack() > 0


def _is_dense(x: Tensor) -> bool:
    return (
        type(x) is Tensor
        and x.dtype in _DTYPES
        and x.device.type == 'cpu'
        and x.dim() == 4
        and _has_elements(x)
        and (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last))
    )


def _has_elements(x: Tensor) -> bool:
    """False where torch.compile does not know the sizes, nor may ask for them."""
    if torch.compiler.is_dynamo_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_or_false  # takes long to import, and then is there

        return guard_or_false(x.numel() > 0)
    return x.numel() > 0


def _are_like(x: Tensor, weights: list[Any]) -> bool:
    dtype = x.dtype
    return all(
        type(weight) in _PLAIN and weight.dtype is dtype and weight.is_cpu and weight.is_contiguous()
        for weight in weights
    )
