"""The public function of the operation."""

import math

import torch
from torch import Tensor

from . import operators
from .reference import output_size

_TENSORS = ('input', 'channel_filter', 'spatial_filter')
_SETTINGS = ('kernel_size', 'dilation', 'stride', 'head')
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_SETTING = 2**31 - 1
_FORMS = {
    'channel_filter': '(B, C, kernel_size, kernel_size)',
    'spatial_filter': '(B, head * kernel_size**2, Ho, Wo)',
}


def ddf(
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    head: int | str = 1,
    kernel_combine: str = 'mul',
    norm_gain: float | None = None,
) -> Tensor:
    """Filters each pixel of each channel with the combination of its channel's and its pixel's filter (paper, Eq. 3).

    The map is padded with zeros, `(kernel_size - 1) * dilation / 2` on each side. Both published call forms work:
    a string in the place of `head` is taken as `kernel_combine`.

    Args:
        input: (B, C, H, W), of any floating dtype; B, H and W may be 0.
        channel_filter: (B, C, kernel_size, kernel_size), or (1, C, kernel_size, kernel_size) for the whole batch.
        spatial_filter: (B, head * kernel_size**2, Ho, Wo), or that of batch 1 for the whole batch; Ho = (H - 1) //
            stride + 1 and Wo likewise; the taps of a head are contiguous, row by row.
        kernel_size: Odd number of taps in each direction.
        dilation: Distance between taps, in pixels of `input`.
        stride: Distance between output pixels, in pixels of `input`.
        head: Number of spatial filters per pixel; each serves C / head contiguous channels.
        kernel_combine: 'mul' multiplies the two filters tap by tap, 'add' adds them.
        norm_gain: A number normalises the spatial filter over the taps of every pixel and head first, as
            `FilterNorm` does: (s - mean) / (std + 1e-10) * norm_gain with the unbiased std; the gradient is that of
            the raw filter. None takes it as it is.

    Returns:
        (B, C, Ho, Wo) in the dtype and memory format (contiguous or channels_last) of `input`. Under autocast the
        dtype is the region's.

    Raises:
        TypeError: An argument is not a tensor or not of a floating dtype, dtypes differ outside of an autocast
            region, or a setting is not an integer or, for norm_gain, not a number.
        ValueError: A shape, a device or the value of a setting does not fit.
    """
    if isinstance(head, str):
        kernel_combine, head = head, 1
    if torch.jit.is_scripting():
        return torch.ops.ddf.forward(
            input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine, norm_gain
        )
    else:  # not compiled by TorchScript
        _check_settings(kernel_size, dilation, stride, head, kernel_combine)
        if norm_gain is not None:
            _check_norm_gain(norm_gain, kernel_size)
        _check_tensors(input, channel_filter, spatial_filter)
        _check_shapes(input, channel_filter, spatial_filter, kernel_size, stride, head)
        settings = dilation, stride, head, kernel_combine, norm_gain
        return operators.forward(input, channel_filter, spatial_filter, *settings)


def check_count(name: str, value: int) -> None:
    """Raises TypeError or ValueError where `value` is not an int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f'{name} must be an int, got {value!r} ({type(value).__name__})')
    if value < 1:
        raise ValueError(f'{name} must be at least 1, got {value}')


def _check_settings(kernel_size: int, dilation: int, stride: int, head: int, kernel_combine: str) -> None:
    for name, value in zip(_SETTINGS, (kernel_size, dilation, stride, head)):
        check_count(name, value)
        if value > _LARGEST_SETTING:
            raise ValueError(f'{name} must be at most {_LARGEST_SETTING}, got {value}')
    if kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd, got {kernel_size}')
    if not isinstance(kernel_combine, str) or kernel_combine not in ('mul', 'add'):
        raise ValueError(f"kernel_combine must be 'mul' or 'add', got {kernel_combine!r}")


def _check_norm_gain(norm_gain: float, kernel_size: int) -> None:
    if not isinstance(norm_gain, (int, float)) or isinstance(norm_gain, bool):
        raise TypeError(
            f'norm_gain must be a number or None, got {type(norm_gain).__name__}; a scale to be learned belongs to the '
            'filters: normalise them with ddf.FilterNorm and leave norm_gain out'
        )
    if not -math.inf < norm_gain < math.inf:
        raise ValueError(f'norm_gain must be finite, got {norm_gain}')
    if kernel_size < 2:
        raise ValueError(f'norm_gain needs a kernel_size of at least 2, since one tap has no std, got {kernel_size}')


def _check_tensors(*tensors: Tensor) -> None:
    for name, tensor in zip(_TENSORS, tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}')
        if tensor.dtype not in _DTYPES:
            raise TypeError(f'{name} must have a floating dtype of 16, 32 or 64 bits, got {tensor.dtype}')
        if tensor.layout != torch.strided:
            raise TypeError(f'{name} must be dense, got layout {tensor.layout}; to_dense() makes it so')
        if tensor.dim() != 4:
            raise ValueError(f'{name} must have 4 dimensions, got shape {tuple(tensor.shape)}')
        if tensor.device != tensors[0].device:
            raise ValueError(f'{name} must be on the device of input, {tensors[0].device}, got {tensor.device}')
    input, channel_filter, spatial_filter = tensors
    if not input.dtype == channel_filter.dtype == spatial_filter.dtype:
        dtypes = {name: tensor.dtype for name, tensor in zip(_TENSORS, tensors)}
        if not torch.is_autocast_enabled(input.device.type) or torch.float64 in dtypes.values():
            raise TypeError(f'input and filters must have one dtype outside of an autocast region, got {dtypes}')


def _check_shapes(
    input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, kernel_size: int, stride: int, head: int
) -> None:
    batch, channels, height, width = input.shape
    if channels % head:
        raise ValueError(f'head must divide the {channels} channels of input, got {head}')
    grid = output_size(height, stride), output_size(width, stride)
    _check_shape('channel_filter', channel_filter, (batch, channels, kernel_size, kernel_size))
    _check_shape('spatial_filter', spatial_filter, (batch, head * kernel_size**2, *grid))


def _check_shape(name: str, filter: Tensor, expected: tuple[int, ...]) -> None:
    shape = filter.shape
    if shape == expected or (shape[0] == 1 and shape[1:] == expected[1:]):
        return
    raise ValueError(
        f'{name} must have shape {_FORMS[name]} = {expected}, got {tuple(shape)}; '
        'a filter for the whole batch may have batch 1'
    )
