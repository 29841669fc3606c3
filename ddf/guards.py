"""Where a call of the compiled library may take the place of layers: the questions that `ddf.fused`, `ddf.residual` and
`ddf.batch_norm` share."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

_DTYPES = (torch.float32, torch.float64)
_PLAIN = (nn.Parameter, Tensor)


def takes(x: Tensor, with_gradients: bool) -> bool:
    """Whether a call may serve for the map x: it is contiguous or channels_last, in float32 or float64 and not empty,
    only values are asked for, or values and gradients, and not by a tracer, transform or global hook."""
    return _is_unobserved(with_gradients) and _is_dense(x) and has_kernel()


def takes_eagerly(x: Tensor, activation: nn.Module, training: bool) -> bool:
    """The same for a BatchNorm and what follows it, with a ReLU at the end, which graphs of torch.compile fuse.

    There are no gradients in evaluation.
    """
    return (
        not torch.compiler.is_compiling()
        and is_plain(activation, nn.ReLU)
        and takes(x, with_gradients=training)
        and (training or not torch.is_grad_enabled())
    )


@torch.compiler.assume_constant_result
def has_kernel() -> bool:
    """Whether a compiled library serves; plain torch does not know the operator."""
    return _has_kernel()


@functools.cache
def _has_kernel() -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key('ddf::dynamic_filter', 'CPU')


def wants_values_alone(grad_output: Tensor) -> bool:
    """Whether a call may give gradients: they need no derivatives of their own, and no transform looks on."""
    return not (
        torch.is_grad_enabled()
        or forward_ad._current_level >= 0
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(grad_output)  # torch.autograd.grad(is_grads_batched=True)
        or type(grad_output) is not Tensor
    )


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


def are_like(x: Tensor, weights: list[Any]) -> bool:
    """Whether weights are dense, and of the map's dtype and device."""
    dtype = x.dtype
    return all(
        type(weight) in _PLAIN and weight.dtype is dtype and weight.is_cpu and weight.is_contiguous()
        for weight in weights
    )


def norm_values(norm: Any, x: Tensor, training: bool = False) -> list[Any] | None:
    """Weight, bias, mean and variance of a BatchNorm that a call may apply to x, (B, C, H, W), in the mode given; None
    where it is another, or in training is to be refused, averages all batches or leaves its statistics."""
    if not is_plain(norm, nn.BatchNorm2d) or norm.training != training:
        return None
    if training and (not norm.track_running_stats or norm.momentum is None or x.numel() == x.shape[1]):
        return None
    values = values_of(norm)
    return values if are_like(x, values) and all(value.numel() == x.shape[1] for value in values) else None


def values_of(norm: nn.BatchNorm2d) -> list[Any]:
    """Weight, bias, mean and variance, unasked."""
    return [norm.weight, norm.bias, norm.running_mean, norm.running_var]


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Of this class itself, as parametrised modules are not, and neither hooked nor with a forward of its own."""
    return type(module) is kind and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or 'forward' in module.__dict__
    )
