"""The branches that predict the two filters from a map, and the constant in the place of a missing one."""

from typing import Any

import torch
from torch import Tensor, nn

from .filter_norm import FilterNorm
from .guards import is_plain
from .pointwise import is_pointwise, linear, to_few_channels
from .reference import output_size


class SpatialBranch(nn.Sequential):
    """1x1 convolution to head * k**2 taps per output pixel, then FilterNorm with the constant scale."""

    def __init__(
        self, in_channels: int, kernel_size: int, head: int, nonlinearity: str, stride: int = 1, **dd: Any
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, head * kernel_size**2, 1, stride, **dd),
            FilterNorm(head, kernel_size, 'spatial', nonlinearity, **dd),
        )


class ChannelBranch(nn.Sequential):
    """Squeeze-and-excitation style branch to k**2 taps per channel, then FilterNorm with a learned scale."""

    def __init__(self, in_channels: int, kernel_size: int, se_ratio: float, nonlinearity: str, **dd: Any) -> None:
        mid_channels = max(1, int(in_channels * se_ratio))
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(in_channels, mid_channels, 1, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid_channels, in_channels * kernel_size**2, 1, **dd),
            FilterNorm(in_channels, kernel_size, 'channel', nonlinearity, running_std=True, **dd),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C * k**2).

        On the pooled map a 1x1 convolution is a linear layer, for which torch has the faster kernels. The layers are
        called as modules wherever that shows: when one was replaced or has a hook.
        """
        if torch.jit.is_scripting():
            for layer in self:
                x = layer(x)
            return x.flatten(1)
        else:  # not compiled by TorchScript
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        layers: tuple[Any, ...] = tuple(self)
        if not has_plain_layers(layers):
            return super().forward(x)
        _, squeeze, activation, excite, norm = layers
        hidden = activation(linear(_mean(x), squeeze))  # (B, C * se_ratio)
        return norm(linear(hidden, excite))


class ConstantBranch(nn.Module):
    """In the place of a branch: the filter that leaves the other one as it is, 1 for 'mul' and 0 for 'add'.

    It is one element, expanded to the shape that the branch would give: (B, num_taps) in the place of a channel
    branch, (B, num_taps, Ho, Wo) in that of a spatial one.
    """

    def __init__(self, branch: str, num_taps: int, kernel_combine: str, stride: int = 1) -> None:
        super().__init__()
        self.branch = branch
        self.num_taps = num_taps
        self.stride = stride
        self.value = 1.0 if kernel_combine == 'mul' else 0.0

    def forward(self, x: Tensor) -> Tensor:
        shape = [x.shape[0], self.num_taps]
        if self.branch == 'spatial':
            shape += [output_size(size, self.stride) for size in x.shape[2:]]
        return x.new_full([1] * len(shape), self.value).expand(shape)

    def extra_repr(self) -> str:
        return f'{self.value}'


def filters_or_logits(branch: Any, x: Tensor) -> tuple[Tensor, float | None]:
    """What `ddf` takes as spatial_filter and norm_gain: logits that it is to normalise, or normalised filters and None.

    The operation normalises as FilterNorm without learned parameters does. Any other normalisation, and a module with
    a hook, is called.
    """
    logits = plain_logits(branch)
    if logits is None:
        return branch(x), None
    convolution, gain = logits
    return to_few_channels(x, convolution), gain


def plain_logits(branch: Any) -> tuple[Any, float] | None:
    """The layer of a spatial branch that gives logits, and the gain of their normalisation, if `ddf` knows it."""
    if is_plain(branch, SpatialBranch) and len(branch) == 2:
        convolution, norm = branch
        if is_plain(norm, FilterNorm) and norm.std is None and norm.mean is None:
            return convolution, norm.gain
    return None


def _mean(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, C). A sum's gradient is one number per channel, expanded; that of a mean is as large as x."""
    if x.dtype in (torch.float32, torch.float64):
        return x.sum((2, 3)) / (x.shape[2] * x.shape[3])
    return x.mean((2, 3))


def has_plain_layers(layers: tuple[Any, ...]) -> bool:
    """Whether the first layers of a channel branch may be computed without calling them as modules."""
    kinds = nn.AdaptiveAvgPool2d, nn.Conv2d, nn.ReLU, nn.Conv2d
    return (
        len(layers) == 5
        and all(map(is_plain, layers, kinds))
        and layers[0].output_size == 1
        and all(map(is_pointwise, layers[1:4:2]))
    )
