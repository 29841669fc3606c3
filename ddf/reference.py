"""The operation by its definition, in plain torch: one shifted product per tap.

It is what every backend is checked against, and what runs wherever no compiled kernel serves. Forward is Eq. 3 of the
paper (arXiv 2104.14107):

    output[b, c, y, x] = sum_ij W_ij * input[b, c, y * stride + (i - k // 2) * dilation,
                                                   x * stride + (j - k // 2) * dilation]

with zeros outside the map and W_ij = channel_filter[b, c, i, j] * spatial_filter[b, h, i, j, y, x] ('mul') or their sum
('add'); head h serves the contiguous channels [h * C/head, (h + 1) * C/head). Half precision is accumulated in float32.
Where norm_gain is a number, `normalise(spatial_filter, head, norm_gain)` stands in the place of spatial_filter.

Shapes throughout: input (B, C, H, W), channel_filter (B or 1, C, k, k), spatial_filter (B or 1, head * k * k, Ho, Wo),
grad_output (B, C, Ho, Wo), where Ho = (H - 1) // stride + 1 and Wo likewise. A filter of batch 1 serves every image.

Nothing here depends on the values of tensors or, under symbolic sizes, installs a guard beyond those of the shapes
themselves, so the functions also serve as decompositions of the operators for exporters.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_EPS = 1e-10


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
    norm_gain: float | None = None,
) -> Tensor:
    """The filtered map (B, C, Ho, Wo), in the dtype and memory format of `input`."""
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine, norm_gain)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    padded = sampling.pad(_split_heads(_accumulable(input), head))  # (B, head, C/head, Hp, Wp)
    output = padded.new_zeros((*padded.shape[:3], *sampling.output_size))
    for tap, window in sampling.windows():
        output = torch.addcmul(output, weights(tap), padded[window])
    return _arranged(_merge_heads(output), input)


def input_gradient(
    grad_output: Tensor,
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
    norm_gain: float | None = None,
) -> Tensor:
    """Gradient of the input (B, C, H, W); of `input` only size, dtype and memory format are read."""
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine, norm_gain)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    grad_output = _split_heads(_accumulable(grad_output), head)  # (B, head, C/head, Ho, Wo)
    padded = grad_output.new_zeros((*grad_output.shape[:3], *sampling.padded_size))
    for tap, window in sampling.windows():
        padded[window] += weights(tap) * grad_output
    return _arranged(_merge_heads(sampling.crop(padded)), input)


def filter_gradients(
    grad_output: Tensor,
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    dilation: int,
    stride: int,
    head: int,
    kernel_combine: str,
    norm_gain: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients of channel_filter, contiguous, and of spatial_filter as given, in its memory format.

    Both have the shape and dtype of their filter: that of a filter of batch 1 is summed over the images.
    """
    weights = _TapWeights(channel_filter, spatial_filter, head, kernel_combine, norm_gain)
    sampling = _Sampling(input, channel_filter.shape[-1], dilation, stride)
    padded = sampling.pad(_split_heads(_accumulable(input), head))  # (B, head, C/head, Hp, Wp)
    grad_output = _split_heads(_accumulable(grad_output), head)  # (B, head, C/head, Ho, Wo)
    grad_channel = weights.channel.new_zeros(weights.channel.shape)  # (B or 1, head, C/head, k*k, 1, 1)
    grad_spatial = weights.spatial.new_zeros(weights.spatial.shape)  # (B or 1, head, 1, k*k, Ho, Wo)
    for tap, window in sampling.windows():
        grad_weight = grad_output * padded[window]  # (B, head, C/head, Ho, Wo)
        factor_of_channel, factor_of_spatial = weights.partial_derivatives(tap)
        grad_channel[:, :, :, tap] = (grad_weight * factor_of_channel).sum_to_size(grad_channel[:, :, :, tap].shape)
        grad_spatial[:, :, :, tap] = (grad_weight * factor_of_spatial).sum_to_size(grad_spatial[:, :, :, tap].shape)
    grad_spatial = grad_spatial.reshape(spatial_filter.shape)
    if norm_gain is not None:
        grad_spatial = normalise_derivative(spatial_filter, grad_spatial, head, norm_gain)
    grad_channel = grad_channel.reshape(channel_filter.shape).to(channel_filter.dtype)
    return grad_channel, _arranged(grad_spatial, spatial_filter)


def normalise(logits: Tensor, head: int, norm_gain: float) -> Tensor:
    """`(s - mean) / (std + 1e-10) * norm_gain` over the taps of every pixel and head, std unbiased.

    Takes spatial filters (B, head * k * k, Ho, Wo) with k of at least 2 and returns that shape, halves as float32.
    Equal taps give zeros.
    """
    centred, std = _centre(logits, head)
    return (centred * (norm_gain / (std + _EPS))).reshape(logits.shape)


def normalise_derivative(logits: Tensor, along: Tensor, head: int, norm_gain: float) -> Tensor:
    """The Jacobian of `normalise` at `logits`, applied to `along`, of that shape; halves as float32.

    The matrix is symmetric, so this serves forward and reverse mode. At equal taps the term of std is 0, and in float16
    all of it.
    """
    centred, std = _centre(logits, head)
    direction, _ = _centre(along.to(centred.dtype), head)
    variance = torch.where(std > 0, std, 1) * (std + _EPS) * (centred.shape[2] - 1)
    projection = (direction * centred).sum(2, keepdim=True) / variance  # (B, head, 1, Ho, Wo)
    scale = norm_gain / (std + _EPS)
    if logits.dtype == torch.float16:  # which cannot hold the gradient at equal taps, 1 / eps: it is 0 there
        scale = scale * (std > 0)
    return ((direction - centred * projection) * scale).reshape(logits.shape)


def _centre(filters: Tensor, head: int) -> tuple[Tensor, Tensor]:
    """Taps less their mean, (B, head, k*k, Ho, Wo), and their unbiased standard deviation, (B, head, 1, Ho, Wo)."""
    batch, length, height, width = filters.shape
    taps = _accumulable(filters).reshape(batch, head, length // head, height, width)
    offsets = taps - taps[:, :, :1]  # the mean of equal taps may round to something else; that of zeros does not
    centred = offsets - offsets.mean(2, keepdim=True)
    # a norm, not a square root: its gradient at equal taps is 0, not NaN
    return centred, torch.linalg.vector_norm(centred, dim=2, keepdim=True) / (length // head - 1) ** 0.5


class _TapWeights:
    """W of Eq. 3 for one tap at a time, so that the (B, C, k*k, Ho, Wo) tensor of all of them never exists."""

    def __init__(
        self,
        channel_filter: Tensor,
        spatial_filter: Tensor,
        head: int,
        kernel_combine: str,
        norm_gain: float | None,
    ) -> None:
        batch, channels, kernel_size, _ = channel_filter.shape
        taps = kernel_size * kernel_size
        if norm_gain is not None:
            spatial_filter = normalise(spatial_filter, head, norm_gain)
        self.channel = _accumulable(channel_filter).reshape(batch, head, channels // head, taps, 1, 1)
        self.spatial = _accumulable(spatial_filter).reshape(
            spatial_filter.shape[0], head, 1, taps, *spatial_filter.shape[-2:]
        )
        self.multiply = kernel_combine == 'mul'

    def __call__(self, tap: int) -> Tensor:
        channel, spatial = self.channel[:, :, :, tap], self.spatial[:, :, :, tap]
        return channel * spatial if self.multiply else channel + spatial  # (B or 1, head, C/head, Ho, Wo)

    def partial_derivatives(self, tap: int) -> tuple[Tensor | float, Tensor | float]:
        """dW/d(channel filter) and dW/d(spatial filter) at this tap."""
        return (self.spatial[:, :, :, tap], self.channel[:, :, :, tap]) if self.multiply else (1.0, 1.0)


class _Sampling:
    """Where each tap reads: strided windows of the zero-padded map. Taps that miss the whole map are left out."""

    def __init__(self, input: Tensor, kernel_size: int, dilation: int, stride: int) -> None:
        self.size = input.shape[-2:]
        self.kernel_size, self.dilation, self.stride = kernel_size, dilation, stride
        # the farthest tap from the centre that still touches the map bounds the padding, whatever the dilation
        self.reach = [self._reach(size) for size in self.size]
        self.padding = [reach * dilation for reach in self.reach]
        self.output_size = [output_size(size, stride) for size in self.size]
        self.padded_size = [size + 2 * padding for size, padding in zip(self.size, self.padding)]

    def _reach(self, size: int | torch.SymInt) -> int:
        farthest = self.kernel_size // 2
        return farthest if isinstance(size, torch.SymInt) else max(0, min(farthest, (size - 1) // self.dilation))

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


def _arranged(result: Tensor, like: Tensor) -> Tensor:
    return result.to(like.dtype).contiguous(memory_format=memory_format_of(like))
