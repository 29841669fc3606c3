"""The stem's max pooling, without the detour that torch takes with contiguous maps on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf import guards


class MaxPool2d(nn.MaxPool2d):
    """torch's layer, equal to the bit.

    On a CPU torch pools a contiguous map one element at a time, a channels_last one by vectors: there and back is
    several times faster. Its gradient is faster where the map is contiguous.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, Ho, Wo)."""
        if torch.jit.is_scripting():
            settings = self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode
            return F.max_pool2d(x, *settings, return_indices=self.return_indices)  # type: ignore[call-overload]
        else:  # not compiled by TorchScript
            return self._pool(x)

    def _pool(self, x: Tensor) -> Tensor:
        if self.return_indices or not (guards.takes(x, with_gradients=True) and x.is_contiguous()):
            return super().forward(x)
        return _MaxPool.apply(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)

    @classmethod
    def like(cls, layer: nn.MaxPool2d) -> 'MaxPool2d':
        """With the settings of torch's layer."""
        settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        return cls(*settings, layer.return_indices, layer.ceil_mode)


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *settings: Any) -> Tensor:
        in_pixels = x.contiguous(memory_format=torch.channels_last)
        output, indices = torch.ops.aten.max_pool2d_with_indices(in_pixels, *settings)
        ctx.save_for_backward(x, indices.contiguous())
        ctx.settings = settings
        return output.contiguous()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, indices = ctx.saved_tensors
        grad = torch.ops.aten.max_pool2d_with_indices_backward(grad_output, x, *ctx.settings, indices)
        return grad, *(None,) * len(ctx.settings)
