"""The public function of the operation."""

import torch
from torch import Tensor

from . import operators
from .reference import output_size


def ddf(
    input: Tensor,
    channel_filter: Tensor,
    spatial_filter: Tensor,
    kernel_size: int = 3,
    dilation: int = 1,
    stride: int = 1,
    head: int | str = 1,
    kernel_combine: str = 'mul',
) -> Tensor:
    """Filters each pixel of each channel with the combination of its channel's and its pixel's filter (paper, Eq. 3).

    The map is padded with zeros, `(kernel_size - 1) * dilation / 2` on each side. Both published call forms work:
    a string in the place of `head` is taken as `kernel_combine`.

    Args:
        input: (B, C, H, W), of any floating dtype; B, H and W may be 0.
        channel_filter: (B, C, kernel_size, kernel_size).
        spatial_filter: (B, head * kernel_size**2, Ho, Wo), Ho = (H - 1) // stride + 1 and Wo likewise; the taps of a
            head are contiguous, row by row.
        kernel_size: Odd number of taps in each direction.
        dilation: Distance between taps, in pixels of `input`.
        stride: Distance between output pixels, in pixels of `input`.
        head: Number of spatial filters per pixel; each serves C / head contiguous channels.
        kernel_combine: 'mul' multiplies the two filters tap by tap, 'add' adds them.

    Returns:
        (B, C, Ho, Wo) in the dtype and memory format (contiguous or channels_last) of `input`. Under autocast the
        dtype is the region's.

    Raises:
        TypeError: An argument is not a tensor or not of a floating dtype, dtypes differ outside of an autocast
            region, or a setting is not an integer.
        ValueError: A shape, a device or the value of a setting does not fit.
    """
    if isinstance(head, str):
        kernel_combine, head = head, 1
    _check_settings(kernel_size, dilation, stride, head, kernel_combine)
    _check_tensors(input, channel_filter, spatial_filter)
    _check_shapes(input, channel_filter, spatial_filter, kernel_size, stride, head)
    return operators.forward(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine)


def _check_settings(kernel_size: int, dilation: int, stride: int, head: int, kernel_combine: str) -> None:
    settings = {'kernel_size': kernel_size, 'dilation': dilation, 'stride': stride, 'head': head}
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f'{name} must be an int, got {value!r} ({type(value).__name__})')
        if value < 1:
            raise ValueError(f'{name} must be at least 1, got {value}')
    if kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd, got {kernel_size}')
    if kernel_combine not in ('mul', 'add'):
        raise ValueError(f"kernel_combine must be 'mul' or 'add', got {kernel_combine!r}")


def _check_tensors(input: Tensor, channel_filter: Tensor, spatial_filter: Tensor) -> None:
    tensors = {'input': input, 'channel_filter': channel_filter, 'spatial_filter': spatial_filter}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f'{name} must be a torch.Tensor, got {type(tensor).__name__}')
        if not tensor.is_floating_point():
            raise TypeError(f'{name} must have a floating dtype, got {tensor.dtype}')
        if tensor.dim() != 4:
            raise ValueError(f'{name} must have 4 dimensions, got shape {tuple(tensor.shape)}')
        if tensor.device != input.device:
            raise ValueError(f'{name} must be on the device of input, {input.device}, got {tensor.device}')
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    if len(set(dtypes.values())) > 1 and not _autocast_unifies(input.device.type, set(dtypes.values())):
        raise TypeError(f'input and filters must have one dtype outside of an autocast region, got {dtypes}')


def _autocast_unifies(device_type: str, dtypes: set[torch.dtype]) -> bool:
    return torch.is_autocast_enabled(device_type) and torch.float64 not in dtypes


def _check_shapes(
    input: Tensor, channel_filter: Tensor, spatial_filter: Tensor, kernel_size: int, stride: int, head: int
) -> None:
    batch, channels, height, width = input.shape
    if channels % head:
        raise ValueError(f'head must divide the {channels} channels of input, got {head}')
    expected_channel = (batch, channels, kernel_size, kernel_size)
    if channel_filter.shape != expected_channel:
        raise ValueError(
            f'channel_filter must have shape (B, C, kernel_size, kernel_size) = {expected_channel}, '
            f'got {tuple(channel_filter.shape)}'
        )
    grid = output_size(height, stride), output_size(width, stride)
    expected_spatial = (batch, head * kernel_size**2, *grid)
    if spatial_filter.shape != expected_spatial:
        raise ValueError(
            f'spatial_filter must have shape (B, head * kernel_size**2, Ho, Wo) = {expected_spatial}, '
            f'got {tuple(spatial_filter.shape)}'
        )
