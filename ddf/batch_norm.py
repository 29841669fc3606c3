"""BatchNorm in training with what follows it, a sum and ReLU, on a CPU.

torch takes the statistics of a contiguous map one element at a time, those of a channels_last map in two passes; ReLU
and sum read and write the map again, forward and backward. `torch.ops.ddf.batch_statistics_` takes them by vectors,
`normalized_sum_` does the rest in one pass, and `normalized_sum_gradients` all of the way back in two.
"""

from typing import Any

import torch
from torch import Tensor, nn

from . import guards
from .reference import memory_format_of
from .schemas import batch_statistics_, normalized_sum_, normalized_sum_gradients


def rectified(x: Tensor, norm: Any, activation: nn.Module) -> Tensor:
    """activation(norm(x)) for x of (B, C, H, W); the layers are called where they are no plain BatchNorm2d in training
    and ReLU, and wherever else that shows."""
    if guards.takes_eagerly(x, activation, training=True) and guards.norm_values(norm, x, training=True) is not None:
        return train_rectified_sum(x, norm)
    return activation(norm(x))


def train_rectified_sum(
    x: Tensor, norm: nn.BatchNorm2d, shortcut: Tensor | None = None, shortcut_norm: nn.BatchNorm2d | None = None
) -> Tensor:
    """relu(norm(x) + shortcut_norm(shortcut)), which moves the norms' running statistics.

    Both maps have shape (B, C, H, W), are contiguous or channels_last, and the same. The guards have been asked.
    """
    tensors: list[Tensor | None] = [x, norm.weight, norm.bias, shortcut]
    tensors += [None, None] if shortcut_norm is None else [shortcut_norm.weight, shortcut_norm.bias]
    return _RectifiedSum.apply(*tensors, norm, shortcut_norm)


class _RectifiedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        shortcut: Tensor | None,
        shortcut_weight: Tensor | None,
        shortcut_bias: Tensor | None,
        norm: nn.BatchNorm2d,
        shortcut_norm: nn.BatchNorm2d | None,
    ) -> Tensor:
        values, saved = _norm_of_batch(x, weight, bias, norm)
        shortcut_values: list[Tensor] = []
        eps = 0.0
        if shortcut is not None and shortcut_norm is not None:
            shortcut_values, shortcut_saved = _norm_of_batch(shortcut, shortcut_weight, shortcut_bias, shortcut_norm)
            saved += shortcut_saved
            eps = shortcut_norm.eps
        output = torch.empty_like(x)
        normalized_sum_(output, x, values, shortcut, shortcut_values, norm.eps, eps)
        ctx.save_for_backward(output, *saved)
        ctx.eps = norm.eps, eps
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        output, *saved = ctx.saved_tensors
        norms, needed = (saved[:4], saved[4:]), ctx.needs_input_grad
        if guards.wants_values_alone(grad_output):
            grad_output = grad_output.contiguous(memory_format=memory_format_of(output))
            gradients = normalized_sum_gradients(grad_output, output, *norms, adds_shortcut=needed[3])
        else:
            gradients = _gradients_by_torch(grad_output, output, norms, ctx.eps, needed)
        return *(gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=False)), None, None


def _gradients_by_torch(
    grad_output: Tensor,
    output: Tensor,
    norms: tuple[list[Tensor], list[Tensor]],
    eps: tuple[float, float],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Of map, weight and bias, and of the shortcut's, where derivatives of theirs or a transform ask more."""
    grad_sum = torch.ops.aten.threshold_backward(grad_output, output, 0)
    gradients = _norm_gradients(grad_sum, norms[0], eps[0], needed[:3])
    if norms[1]:
        return gradients + _norm_gradients(grad_sum, norms[1], eps[1], needed[3:6])
    return *gradients, grad_sum, None, None


def _norm_of_batch(x: Tensor, weight: Any, bias: Any, norm: nn.BatchNorm2d) -> tuple[list[Tensor], list[Tensor]]:
    """Weight, bias, mean and variance, of the batch; and what the gradients need."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    mean, variance = batch_statistics_(x, norm.running_mean, norm.running_var, norm.momentum)
    return [weight, bias, mean, variance], [x, weight, mean, (variance + norm.eps).rsqrt()]


def _norm_gradients(
    grad_output: Tensor, saved: list[Tensor], eps: float, needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """Of map, weight and bias."""
    x, weight, mean, inverse_std = saved
    return torch.ops.aten.native_batch_norm_backward(
        grad_output, x, weight, None, None, mean, inverse_std, True, eps, needed
    )
