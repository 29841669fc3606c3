"""Modules that predict the filters and apply them. Parameter names are those of the official release."""

from typing import Any

import torch
from torch import Tensor, nn

from .filter_norm import FilterNorm
from .functional import ddf


def _spatial_branch(
    in_channels: int, kernel_size: int, head: int, nonlinearity: str, stride: int = 1, **dd: Any
) -> nn.Sequential:
    """1x1 convolution to head * k**2 taps per output pixel, then FilterNorm."""
    return nn.Sequential(
        nn.Conv2d(in_channels, head * kernel_size**2, 1, stride, **dd),
        FilterNorm(head, kernel_size, 'spatial', nonlinearity, **dd),
    )


def _channel_branch(in_channels: int, kernel_size: int, se_ratio: float, nonlinearity: str, **dd: Any) -> nn.Sequential:
    """Squeeze-and-excitation style branch to k**2 taps per channel, then FilterNorm with a learned scale."""
    mid_channels = max(1, int(in_channels * se_ratio))
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(in_channels, mid_channels, 1, **dd),
        nn.ReLU(inplace=True),
        nn.Conv2d(mid_channels, in_channels * kernel_size**2, 1, **dd),
        FilterNorm(in_channels, kernel_size, 'channel', nonlinearity, running_std=True, **dd),
    )


def _check_module_settings(in_channels: int, kernel_size: int, head: int, se_ratio: float, kernel_combine: str) -> None:
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and at least 3 (FilterNorm needs several taps), got {kernel_size}')
    if head < 1 or in_channels % head:
        raise ValueError(f'head must divide in_channels={in_channels}, got {head}')
    if se_ratio <= 0:
        raise ValueError(f'se_ratio must be positive, got {se_ratio}')
    if kernel_combine not in ('mul', 'add'):
        raise ValueError(f"kernel_combine must be 'mul' or 'add', got {kernel_combine!r}")


class DDFPack(nn.Module):
    """A drop-in for a k x k convolution with equal channels in and out: predicts both filters from its input.

    Args:
        in_channels: Channels of input and output.
        kernel_size: Odd, at least 3.
        stride: Distance between output pixels; output length is (length - 1) // stride + 1.
        dilation: Distance between taps, in pixels.
        head: Spatial filters per pixel; each serves in_channels / head contiguous channels.
        se_ratio: Hidden channels of the channel branch over in_channels; at least one is kept.
        nonlinearity: Gain of the initial filters, as in `torch.nn.init.calculate_gain`.
        kernel_combine: 'mul' or 'add'.

    Raises:
        ValueError: A setting does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = 'relu',
        kernel_combine: str = 'mul',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_module_settings(in_channels, kernel_size, head, se_ratio, kernel_combine)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.head = head
        self.kernel_combine = kernel_combine
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.spatial_branch = _spatial_branch(in_channels, kernel_size, head, nonlinearity, stride, **dd)
        self.channel_branch = _channel_branch(in_channels, kernel_size, se_ratio, nonlinearity, **dd)

    def filters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised filters for `x`: channel (B, C, k, k) and spatial (B, head * k**2, Ho, Wo)."""
        channel_filter = self.channel_branch(x).reshape(*x.shape[:2], self.kernel_size, self.kernel_size)
        return channel_filter, self.spatial_branch(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, Ho, Wo)."""
        channel_filter, spatial_filter = self.filters(x)
        return ddf(
            x,
            channel_filter,
            spatial_filter,
            self.kernel_size,
            self.dilation,
            self.stride,
            self.head,
            self.kernel_combine,
        )

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, kernel_size={self.kernel_size}, stride={self.stride}, dilation={self.dilation}, '
            f'head={self.head}, kernel_combine={self.kernel_combine!r}'
        )


class DDFUpPack(nn.Module):
    """Upsampling by `scale_factor`: one pair of branches and one DDF per sub-pixel, then a pixel shuffle (paper, 3.4).

    The spatial filters may come from a joint input, such as a guiding image. It has `joint_channels` channels, or
    those of `x` where joint_channels is below 1; a depthwise convolution then precedes every spatial branch. It has
    the resolution of `x` or of the output; at the output's resolution each sub-pixel reads its own pixels.

    Args:
        in_channels: Channels of input and output.
        kernel_size: Odd, at least 3.
        scale_factor: Output length over input length.
        dilation: Distance between taps, in pixels of the input.
        head: Spatial filters per pixel; each serves in_channels / head contiguous channels.
        se_ratio: Hidden channels of the channel branch over in_channels; at least one is kept.
        nonlinearity: Gain of the initial filters, as in `torch.nn.init.calculate_gain`.
        dw_kernel_size: Odd kernel size of the depthwise convolution before each spatial branch.
        joint_channels: Channels of the joint input where it has its own; below 1, see above.
        kernel_combine: 'mul' or 'add'.

    Raises:
        ValueError: A setting, or the shape of a joint input, does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int = 3,
        scale_factor: int = 2,
        dilation: int = 1,
        head: int = 1,
        se_ratio: float = 0.2,
        nonlinearity: str = 'linear',
        dw_kernel_size: int = 3,
        joint_channels: int = -1,
        kernel_combine: str = 'mul',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_module_settings(in_channels, kernel_size, head, se_ratio, kernel_combine)
        if scale_factor < 1:
            raise ValueError(f'scale_factor must be at least 1, got {scale_factor}')
        if dw_kernel_size < 1 or dw_kernel_size % 2 == 0:
            raise ValueError(f'dw_kernel_size must be odd, got {dw_kernel_size}')
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.scale_factor = scale_factor
        self.dilation = dilation
        self.head = head
        self.joint_channels = joint_channels
        self.kernel_combine = kernel_combine
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        subpixels = range(scale_factor**2)
        self.channel_branch = nn.ModuleList(
            _channel_branch(in_channels, kernel_size, se_ratio, nonlinearity, **dd) for _ in subpixels
        )
        if joint_channels >= 1:
            self.spatial_branch = nn.ModuleList(
                _spatial_branch(joint_channels, kernel_size, head, nonlinearity, **dd) for _ in subpixels
            )
        else:
            padding = dw_kernel_size // 2
            self.spatial_branch = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(in_channels, in_channels, dw_kernel_size, padding=padding, groups=in_channels, **dd),
                    _spatial_branch(in_channels, kernel_size, head, nonlinearity, **dd),
                )
                for _ in subpixels
            )

    def forward(self, x: Tensor, joint_x: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a joint input, to (B, C, H * scale_factor, W * scale_factor)."""
        joint_x = x if joint_x is None else joint_x
        self._check_joint(x, joint_x)
        outputs = []
        for subpixel, channel_branch in enumerate(self.channel_branch):
            channel_filter = channel_branch(x).reshape(*x.shape[:2], self.kernel_size, self.kernel_size)
            spatial_filter = self._spatial_filter(subpixel, x, joint_x)
            outputs.append(
                ddf(
                    x,
                    channel_filter,
                    spatial_filter,
                    self.kernel_size,
                    self.dilation,
                    1,
                    self.head,
                    self.kernel_combine,
                )
            )
        stacked = torch.stack(outputs, dim=2).flatten(1, 2)  # (B, C * scale_factor**2, H, W)
        return nn.functional.pixel_shuffle(stacked, self.scale_factor)

    def _spatial_filter(self, subpixel: int, x: Tensor, joint_x: Tensor) -> Tensor:
        """Filters (B, head * k**2, H, W) of one sub-pixel; of a joint input at output resolution it reads its phase."""
        branch = self.spatial_branch[subpixel]
        if joint_x.shape[-2:] == x.shape[-2:]:
            return branch(joint_x)
        row, column = divmod(subpixel, self.scale_factor)
        phase = (..., slice(row, None, self.scale_factor), slice(column, None, self.scale_factor))
        if self.joint_channels >= 1:
            return branch(joint_x[phase])
        assert isinstance(branch, nn.Sequential)
        depthwise, spatial_branch = branch
        return spatial_branch(depthwise(joint_x)[phase])

    def _check_joint(self, x: Tensor, joint_x: Tensor) -> None:
        channels = self.joint_channels if self.joint_channels >= 1 else self.in_channels
        height, width = x.shape[-2:]
        sizes = (height, width), (height * self.scale_factor, width * self.scale_factor)
        if joint_x.shape[:2] != (x.shape[0], channels) or tuple(joint_x.shape[-2:]) not in sizes:
            raise ValueError(
                f'joint_x must have shape ({x.shape[0]}, {channels}, H, W) with (H, W) one of {sizes}, '
                f'got {tuple(joint_x.shape)}'
            )

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, kernel_size={self.kernel_size}, scale_factor={self.scale_factor}, '
            f'dilation={self.dilation}, head={self.head}, joint_channels={self.joint_channels}, '
            f'kernel_combine={self.kernel_combine!r}'
        )
