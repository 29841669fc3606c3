"""The norm of a step's gradients, and its limits."""

from typing import Any

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor

from ddfnet.config import OptimizerConfig


class GradientClipper:
    """Limits the gradients of a task, as configured.

    The parameters are looked up once: to walk through the modules at every step takes as long as to measure the norm.

    Args:
        task: A timm TrainingTask.
    """

    def __init__(self, config: OptimizerConfig, task: Any) -> None:
        self.limit, self.mode = config.clip_grad, config.clip_mode
        self.parameters = list(task.get_clip_parameters())
        self.limited = list(task.get_clip_parameters(exclude_head=True)) if self.mode == 'agc' else self.parameters

    def __call__(self) -> Tensor:
        """Returns the total L2 norm of the gradients as it was before, a scalar on the device."""
        parameters = [parameter for parameter in self.parameters if parameter.grad is not None]
        norm = _total_norm([parameter.grad for parameter in parameters])
        if self.limit is not None and self.mode == 'norm':
            torch.nn.utils.clip_grads_with_norm_(parameters, self.limit, norm)
        elif self.limit is not None:
            dispatch_clip_grad(self.limited, self.limit, mode=self.mode)
        return norm


def _total_norm(tensors: list[Tensor]) -> Tensor:
    # biases and the like are joined first: on the CPU to begin with a tensor takes longer than to read a short one
    vectors = [tensor for tensor in tensors if tensor.ndim == 1]
    others = [tensor for tensor in tensors if tensor.ndim != 1]
    joined = [torch.cat(vectors)] if vectors else []
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)  # squares soon exceed what float16 holds
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(joined + others, dtype=dtype)))
