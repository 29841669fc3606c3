"""The layers of a residual block's shortcut, without a detour that they take on a CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf.branches import is_plain, is_pointwise


def downsampled(x: Tensor, downsample: Any) -> Tensor:
    """What the layers of timm's `downsample` give for x.

    In training on a CPU torch makes the gradient of a contiguous map before a 1x1 convolution with a stride in another
    layout, and copies it, which takes about as long as the products. There the pixels that the convolution reads are
    copied first, and it goes without a stride. The layers are called as modules wherever that shows, and under every
    tracer.
    """
    if is_plain(downsample, nn.Sequential) and len(downsample) > 0 and _copies_gradient(x, downsample[0]):
        convolution, *others = downsample
        rows, columns = convolution.stride
        x = F.conv2d(x[:, :, ::rows, ::columns].contiguous(), convolution.weight, convolution.bias)
        for layer in others:
            x = layer(x)
        return x
    return downsample(x)


def _copies_gradient(x: Tensor, convolution: Any) -> bool:
    return (
        type(x) is Tensor
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing() or nn.modules.module._has_any_global_hook())
        and x.requires_grad
        and torch.is_grad_enabled()
        and x.device.type == 'cpu'
        and x.is_contiguous()
        and is_plain(convolution, nn.Conv2d)
        and is_pointwise(convolution)
        and convolution.stride != (1, 1)
    )
