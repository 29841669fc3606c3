"""1x1 convolutions as the matrix products that they are, where torch's convolutions take a detour on a CPU: they pass a
contiguous map through a layout of their own, which costs more than a product with few weights."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import guards
from .guards import is_plain

_LARGE = 28 * 28  # pixels of an image; from here on products were faster for the layers of a ResNet-50


def pointwise(x: Tensor, convolution: nn.Module) -> Tensor:
    """What a layer gives for x, (B, C, H, W): by a product for each image where it is a 1x1 convolution of large
    contiguous maps; else the layer is called, as it is wherever that shows."""
    if not _gains_from_products(x, convolution):
        return convolution(x)
    batch, _, height, width = x.shape
    output = _product(x, convolution)
    # as torch's own products do: a view could not be changed in place later
    return torch.ops.aten._unsafe_view(output, (batch, output.shape[1], height, width))


def _gains_from_products(x: Tensor, convolution: Any) -> bool:
    if type(x) is not Tensor or torch.compiler.is_compiling() or x.dim() != 4:
        return False
    batch, channels, height, width = x.shape
    return (
        batch > 1  # torch takes the product for one image
        and height * width >= _LARGE
        and x.is_contiguous()
        and is_plain(convolution, nn.Conv2d)
        and is_pointwise(convolution)
        and convolution.stride == (1, 1)
        and guards.are_like(x, [convolution.weight])
        and _has_few_weights(convolution.weight, channels, height * width)
        and guards.takes(x, with_gradients=True)
    )


def _has_few_weights(weight: Tensor, channels: int, pixels: int) -> bool:
    """Beside input and output: with products each image has a gradient of the weights, of which their sum is taken."""
    out_channels, in_channels = weight.shape[:2]
    return in_channels == channels and 4 * weight.numel() <= (out_channels + in_channels) * pixels


def to_few_channels(x: Tensor, convolution: Any) -> Tensor:
    """What a 1x1 convolution gives for x, (B, C, H, W), by products in any layout: eager, on a CPU. With a stride
    torch's takes the detour with the gradient of a contiguous map, too."""
    if not (
        x.device.type == 'cpu'
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled('cpu')
        and not torch.compiler.is_compiling()
        and is_plain(convolution, nn.Conv2d)
        and is_pointwise(convolution)
        and convolution.bias is not None
        and (convolution.stride == (1, 1) or x.is_contiguous())
    ):
        return convolution(x)
    if x.is_contiguous():
        pixels = read_pixels(x, convolution)
        batch, _, height, width = pixels.shape
        return _product(pixels, convolution).view(batch, convolution.weight.shape[0], height, width)
    return linear(x.permute(0, 2, 3, 1), convolution).permute(0, 3, 1, 2)


def _product(x: Tensor, convolution: Any) -> Tensor:
    """(B, C, H, W) to (B, out_channels, H * W)."""
    weight = convolution.weight.flatten(1).expand(x.shape[0], -1, -1)
    if convolution.bias is None:
        return torch.bmm(weight, x.flatten(2))
    return torch.baddbmm(convolution.bias[:, None], weight, x.flatten(2))


def read_pixels(x: Tensor, convolution: Any) -> Tensor:
    """Those of x, (B, C, H, W), that a 1x1 convolution reads: a view of (B, C, Ho, Wo)."""
    rows, columns = convolution.stride
    return x[:, :, ::rows, ::columns]


def is_pointwise(layer: Any) -> bool:
    """Whether a convolution is 1x1 and neither padded nor grouped."""
    return (layer.kernel_size, layer.padding, layer.groups) == ((1, 1), (0, 0), 1)


def linear(vector: Tensor, convolution: Any) -> Tensor:
    """A 1x1 convolution of (..., C)."""
    return F.linear(vector, convolution.weight.flatten(1), convolution.bias)
