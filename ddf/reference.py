"""The operation by its definition, in plain torch: one shifted product per tap.

It is what every backend is checked against, and what runs wherever no compiled kernel serves. Forward is Eq. 3 of the
paper (arXiv 2104.14107):

    output[b, c, y, x] = sum_ij W_ij * input[b, c, y * stride + (i - k // 2) * dilation,
                                                   x * stride + (j - k // 2) * dilation]

with zeros outside the map and W_ij = channel_filter[b, c, i, j] * spatial_filter[b, h, i, j, y, x] ('mul') or their sum
('add'); head h serves the contiguous channels [h * C/head, (h + 1) * C/head). Half precision is accumulated in float32.

Shapes throughout: input (B, C, H, W), channel_filter (B, C, k, k), spatial_filter (B, head * k * k, Ho, Wo),
grad_output (B, C, Ho, Wo), where Ho = (H - 1) // stride + 1 and Wo likewise.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor


def output_size(size: int, stride: int) -> int:
    """Length of the output grid along a dimension of the given length, in pixels."""
    return (size - 1) // stride + 1


def memory_format_of(input: Tensor) -> torch.memory_format:
    """The memory format that results follow: channels_last only where `input` cannot also be read as contiguous."""
    if not input.is_contiguous() and input.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def forward(
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
) -> Tensor:
    """The filtered map (B, C, Ho, Wo), in the dtype and memory format of `input`."""
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    padded = sampling.pad(_split_heads(_accumulable(input), head))  # (B, head, C/head, Hp, Wp)
    output = padded.new_zeros((*padded.shape[:3], *sampling.output_size))
    for tap, window in sampling.windows():
        output += weights(tap) * padded[window]
    return _merge_heads(output).to(input.dtype).contiguous(memory_format=memory_format_of(input))


def input_gradient(
    grad_output: Tensor,
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
) -> Tensor:
    """Gradient of the input (B, C, H, W); of `input` only size, dtype and memory format are read."""
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    grad_output = _split_heads(_accumulable(grad_output), head)  # (B, head, C/head, Ho, Wo)
    padded = grad_output.new_zeros((*grad_output.shape[:3], *sampling.padded_size))
    for tap, window in sampling.windows():
        padded[window] += weights(tap) * grad_output
    grad_input = _merge_heads(sampling.crop(padded))  # (B, C, H, W)
    return grad_input.to(input.dtype).contiguous(memory_format=memory_format_of(input))


def filter_gradients(
    grad_output: Tensor,
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of channel_filter and of spatial_filter, contiguous, in the filters' shapes and dtypes."""
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    padded = sampling.pad(_split_heads(_accumulable(input), head))  # (B, head, C/head, Hp, Wp)
    grad_output = _split_heads(_accumulable(grad_output), head)  # (B, head, C/head, Ho, Wo)
    grad_channel = torch.zeros_like(weights.channel)  # (B, head, C/head, k*k, 1, 1)
    grad_spatial = torch.zeros_like(weights.spatial)  # (B, head, 1, k*k, Ho, Wo)
    for tap, window in sampling.windows():
        grad_weight = grad_output * padded[window]  # (B, head, C/head, Ho, Wo)
        factor_of_channel, factor_of_spatial = weights.partial_derivatives(tap)
        grad_channel[:, :, :, tap] = (grad_weight * factor_of_channel).sum((-2, -1), keepdim=True)
        grad_spatial[:, :, :, tap] = (grad_weight * factor_of_spatial).sum(2, keepdim=True)
    return (
        grad_channel.reshape(channel_filter.shape).to(channel_filter.dtype),
        grad_spatial.reshape(spatial_filter.shape).to(spatial_filter.dtype),
    )


class _TapWeights:
    """W of Eq. 3 for one tap at a time, so that the (B, C, k*k, Ho, Wo) tensor of all of them never exists."""

    def __init__(self, channel_filter: Tensor, spatial_filter: Tensor, head: int, kernel_combine: str) -> None:
        batch, channels, kernel_size, _ = channel_filter.shape
        taps = kernel_size * kernel_size
        self.channel = _accumulable(channel_filter).reshape(batch, head, channels // head, taps, 1, 1)
        self.spatial = _accumulable(spatial_filter).reshape(batch, head, 1, taps, *spatial_filter.shape[-2:])
        self.multiply = kernel_combine == 'mul'

    def __call__(self, tap: int) -> Tensor:
        channel, spatial = self.channel[:, :, :, tap], self.spatial[:, :, :, tap]
        return channel * spatial if self.multiply else channel + spatial  # (B, head, C/head, Ho, Wo)

    def partial_derivatives(self, tap: int) -> tuple[Tensor | float, Tensor | float]:
        """dW/d(channel filter) and dW/d(spatial filter) at this tap."""
        return (self.spatial[:, :, :, tap], self.channel[:, :, :, tap]) if self.multiply else (1.0, 1.0)


class _Sampling:
    """Where each tap reads: strided windows of the zero-padded map. Taps that miss the whole map are left out."""

    def __init__(self, input: Tensor, kernel_size: int, dilation: int, stride: int) -> None:
        self.size = input.shape[-2:]
        self.kernel_size, self.dilation, self.stride = kernel_size, dilation, stride
        # the farthest tap from the centre that still touches the map bounds the padding, whatever the dilation
        self.reach = [max(0, min(kernel_size // 2, (size - 1) // dilation)) for size in self.size]
        self.padding = [reach * dilation for reach in self.reach]
        self.output_size = [output_size(size, stride) for size in self.size]
        self.padded_size = [size + 2 * padding for size, padding in zip(self.size, self.padding)]

    def pad(self, map: Tensor) -> Tensor:
        rows, columns = self.padding
        return F.pad(map, (columns, columns, rows, rows))

    def crop(self, padded: Tensor) -> Tensor:
        (rows, columns), (height, width) = self.padding, self.size
        return padded[..., rows : rows + height, columns : columns + width]

    def windows(self) -> Iterator[tuple[int, tuple]]:
        """Pairs of a tap's index in k*k and the index expression of the pixels it reads, (..., Ho, Wo)."""
        centre = self.kernel_size // 2
        for row in range(-self.reach[0], self.reach[0] + 1):
            for column in range(-self.reach[1], self.reach[1] + 1):
                tap = (row + centre) * self.kernel_size + column + centre
                yield tap, (..., self._slice(row, 0), self._slice(column, 1))

    def _slice(self, offset: int, dim: int) -> slice:
        start = offset * self.dilation + self.padding[dim]
        return slice(start, start + (self.output_size[dim] - 1) * self.stride + 1, self.stride)


def _split_heads(map: Tensor, head: int) -> Tensor:
    batch, channels, height, width = map.shape
    return map.reshape(batch, head, channels // head, height, width)


def _merge_heads(map: Tensor) -> Tensor:
    batch, head, group, height, width = map.shape
    return map.reshape(batch, head * group, height, width)


def _accumulable(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
