"""Modules that predict the filters and apply them. Parameter names are those of the official release."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .branches import ChannelBranch, ConstantBranch, SpatialBranch, filters_or_logits
from .functional import check_count, ddf
from .fused import filter_predicting
from .reference import memory_format_of


class _DynamicFilter(nn.Module):
    """What the modules share: their settings, and the application of one pair of filters."""

    _shown_settings: tuple[str, ...]

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        stride: int,
        dilation: int,
        head: int,
        se_ratio: float,
        nonlinearity: str,
        kernel_combine: str,
        branches: str,
    ) -> None:
        super().__init__()
        _check_counts(in_channels=in_channels, kernel_size=kernel_size, stride=stride, dilation=dilation, head=head)
        _check_settings(in_channels, kernel_size, head, se_ratio, kernel_combine, branches)
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.stride = stride
        self.dilation = dilation
        self.head = head
        self.se_ratio = se_ratio
        self.nonlinearity = nonlinearity
        self.kernel_combine = kernel_combine
        self.branches = branches

    def _make_channel_branch(self, **dd: Any) -> nn.Module:
        if self.branches == 'spatial':
            return ConstantBranch('channel', self.in_channels * self.kernel_size**2, self.kernel_combine)
        return ChannelBranch(self.in_channels, self.kernel_size, self.se_ratio, self.nonlinearity, **dd)

    def _make_spatial_branch(self, in_channels: int, **dd: Any) -> nn.Module:
        if self.branches == 'channel':
            return ConstantBranch('spatial', self.head * self.kernel_size**2, self.kernel_combine, self.stride)
        return SpatialBranch(in_channels, self.kernel_size, self.head, self.nonlinearity, self.stride, **dd)

    def _channel_filter(self, x: Tensor, taps: Tensor) -> Tensor:
        """What a channel branch gives for `x`, as (B, C, k, k)."""
        return taps.reshape([x.shape[0], x.shape[1], self.kernel_size, self.kernel_size])

    def _filtered(self, x: Tensor, channel_taps: Tensor, spatial_filter: Tensor, norm_gain: float | None) -> Tensor:
        return ddf(
            x,
            self._channel_filter(x, channel_taps),
            spatial_filter,
            self.kernel_size,
            self.dilation,
            self.stride,
            self.head,
            self.kernel_combine,
            norm_gain,
        )

    def extra_repr(self) -> str:
        settings = (f'{name}={getattr(self, name)!r}' for name in self._shown_settings)
        return ', '.join([str(self.in_channels), *settings])


class DDFPack(_DynamicFilter):
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
        branches: 'both'; 'spatial' or 'channel' predicts that filter alone, and a constant that has no parameters
            and changes nothing takes the place of the other (the ablation of the paper's section 4.1).

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting does not fit.
    """

    _shown_settings = (
        'kernel_size', 'stride', 'dilation', 'head', 'se_ratio', 'nonlinearity', 'kernel_combine', 'branches',
    )  # fmt: skip

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
        branches: str = 'both',
    ) -> None:
        super().__init__(
            in_channels, kernel_size, stride, dilation, head, se_ratio, nonlinearity, kernel_combine, branches
        )
        self.spatial_branch = self._make_spatial_branch(in_channels, device=device, dtype=dtype)
        self.channel_branch = self._make_channel_branch(device=device, dtype=dtype)

    def filters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised filters for `x`: channel (B, C, k, k) and spatial (B, head * k**2, Ho, Wo)."""
        return self._channel_filter(x, self.channel_branch(x)), self.spatial_branch(x)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, Ho, Wo)."""
        norm_gain: float | None = None
        if torch.jit.is_scripting():
            spatial_filter = self.spatial_branch(x)
        else:  # not compiled by TorchScript
            output = self.in_one_call(x)
            if output is not None:
                return output
            spatial_filter, norm_gain = filters_or_logits(self.spatial_branch, x)
        return self._filtered(x, self.channel_branch(x), spatial_filter, norm_gain)

    def in_one_call(
        self,
        x: Tensor,
        before: tuple[nn.Module, nn.Module] | None = None,
        after: tuple[nn.Module, nn.Module] | None = None,
    ) -> Tensor | None:
        """`forward` in one call of the compiled library: on a CPU, float32 or float64.

        None where that does not serve: with hooked or other layers, under transforms and tracers. Hooks of the module
        itself are not called, as `forward` does not call them. With layers around it, gradients have to be off.

        Args:
            before: A BatchNorm2d in evaluation and a ReLU, through which x passes first.
            after: The same for the output.
        """
        settings = self.dilation, self.stride, self.head, self.kernel_combine
        return filter_predicting(x, self.spatial_branch, self.channel_branch, *settings, before, after)


class DDFUpPack(_DynamicFilter):
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
        branches: 'both', 'spatial' or 'channel', as in DDFPack; with 'channel' a joint input has no effect.

    Raises:
        TypeError: A setting has the wrong type.
        ValueError: A setting, or the shape of a joint input, does not fit.
    """

    _shown_settings = (
        'kernel_size', 'scale_factor', 'dilation', 'head', 'se_ratio', 'nonlinearity', 'dw_kernel_size',
        'joint_channels', 'kernel_combine', 'branches',
    )  # fmt: skip

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
        branches: str = 'both',
    ) -> None:
        super().__init__(in_channels, kernel_size, 1, dilation, head, se_ratio, nonlinearity, kernel_combine, branches)
        _check_counts(scale_factor=scale_factor, dw_kernel_size=dw_kernel_size)
        if dw_kernel_size % 2 == 0:
            raise ValueError(f'dw_kernel_size must be odd, got {dw_kernel_size}')
        self.scale_factor = scale_factor
        self.dw_kernel_size = dw_kernel_size
        self.joint_channels = joint_channels
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        subpixels = range(scale_factor**2)
        self.channel_branch = nn.ModuleList(self._make_channel_branch(**dd) for _ in subpixels)
        self.spatial_branch = nn.ModuleList(self._make_joint_branch(**dd) for _ in subpixels)

    def _make_joint_branch(self, **dd: Any) -> nn.Module:
        """A spatial branch, behind a depthwise convolution where the joint input has no channels of its own."""
        if self.joint_channels >= 1:
            return self._make_spatial_branch(self.joint_channels, **dd)
        spatial_branch = self._make_spatial_branch(self.in_channels, **dd)
        if self.branches == 'channel':
            return spatial_branch
        channels, size = self.in_channels, self.dw_kernel_size
        depthwise = nn.Conv2d(channels, channels, size, padding=size // 2, groups=channels, **dd)
        return nn.Sequential(depthwise, spatial_branch)

    def filters(self, x: Tensor, joint_x: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Normalised filters of the sub-pixels, row by row: channel (B, C, k, k) and spatial (B, head * k**2, H, W)."""
        return [
            (self._channel_filter(x, channel_branch(x)), spatial_branch(source))
            for channel_branch, spatial_branch, source in self._subpixels(x, joint_x)
        ]

    def forward(self, x: Tensor, joint_x: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and a joint input, to (B, C, H * scale_factor, W * scale_factor)."""
        outputs = [
            self._filtered(x, channel_branch(x), *filters_or_logits(spatial_branch, source))
            for channel_branch, spatial_branch, source in self._subpixels(x, joint_x)
        ]
        stacked = torch.stack(outputs, dim=2).flatten(1, 2)  # (B, C * scale_factor**2, H, W)
        return nn.functional.pixel_shuffle(stacked, self.scale_factor).contiguous(memory_format=memory_format_of(x))

    def _subpixels(self, x: Tensor, joint_x: Tensor | None) -> Iterator[tuple[nn.Module, nn.Module, Tensor]]:
        """For every sub-pixel its channel branch, its spatial branch and what that one reads, (B, _, H, W).

        Of a joint input at output resolution it reads the sub-pixel's own pixels.
        """
        joint_x = x if joint_x is None else joint_x
        self._check_joint(x, joint_x)
        step = 1 if joint_x.shape[-2:] == x.shape[-2:] else self.scale_factor
        for subpixel, (channel_branch, spatial_branch) in enumerate(zip(self.channel_branch, self.spatial_branch)):
            source = joint_x
            if isinstance(spatial_branch, nn.Sequential) and self.joint_channels < 1:
                depthwise, spatial_branch = spatial_branch
                source = depthwise(joint_x)
            if step > 1:
                row, column = divmod(subpixel, self.scale_factor)
                source = source[..., row::step, column::step]
            yield channel_branch, spatial_branch, source

    def _check_joint(self, x: Tensor, joint_x: Tensor) -> None:
        if self.branches == 'channel':
            return
        channels = self.joint_channels if self.joint_channels >= 1 else self.in_channels
        height, width = x.shape[-2:]
        sizes = (height, width), (height * self.scale_factor, width * self.scale_factor)
        if joint_x.shape[:2] != (x.shape[0], channels) or tuple(joint_x.shape[-2:]) not in sizes:
            raise ValueError(
                f'joint_x must have shape ({x.shape[0]}, {channels}, H, W) with (H, W) one of {sizes}, '
                f'got {tuple(joint_x.shape)}'
            )


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        check_count(name, value)


def _check_settings(
    in_channels: int, kernel_size: int, head: int, se_ratio: float, kernel_combine: str, branches: str
) -> None:
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise ValueError(f'kernel_size must be odd and at least 3 (FilterNorm needs several taps), got {kernel_size}')
    if in_channels % head:
        raise ValueError(f'head must divide in_channels={in_channels}, got {head}')
    if not isinstance(se_ratio, (int, float)) or isinstance(se_ratio, bool):
        raise TypeError(f'se_ratio must be a number, got {se_ratio!r} ({type(se_ratio).__name__})')
    if not se_ratio > 0:
        raise ValueError(f'se_ratio must be positive, got {se_ratio}')
    if kernel_combine not in ('mul', 'add'):
        raise ValueError(f"kernel_combine must be 'mul' or 'add', got {kernel_combine!r}")
    if branches not in ('both', 'spatial', 'channel'):
        raise ValueError(f"branches must be 'both', 'spatial' or 'channel', got {branches!r}")
