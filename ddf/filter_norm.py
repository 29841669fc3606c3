"""FilterNorm: the normalisation of dynamic filters (paper, section 3.3)."""

from typing import Final

import torch
from torch import Tensor, nn


class FilterNorm(nn.Module):
    """Normalises every filter over its taps to zero mean and a scale: `(x - mean) / (std + 1e-10) * scale + shift`.

    The standard deviation is unbiased. Half precision is normalised in float32. A filter of equal taps gives zeros,
    and its gradient is that of `(x - mean) / 1e-10`, in float16 zero.

    Args:
        in_channels: Number of filters: channels for 'channel', heads for 'spatial'.
        kernel_size: Taps in each direction, at least 2: a single tap has no standard deviation.
        filter_type: 'spatial' for filters (B, in_channels * kernel_size**2, H, W), 'channel' for filters
            (B, in_channels * kernel_size**2), which may have trailing dimensions of length 1.
        nonlinearity: What follows the filters, as in `torch.nn.init.calculate_gain`; sets the initial scale gain / k.
        running_std: Learn the scale of every tap (parameter `std`, drawn from N(0, (gain / k)**2)); otherwise it is
            the constant gain / k.
        running_mean: Learn the shift of every tap (parameter `mean`, starting at zero).

    Raises:
        ValueError: Unknown filter_type, or kernel_size below 2.
    """

    eps: Final = 1e-10

    def __init__(
        self,
        in_channels: int,
        kernel_size: int,
        filter_type: str,
        nonlinearity: str = 'linear',
        running_std: bool = False,
        running_mean: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if filter_type not in ('spatial', 'channel'):
            raise ValueError(f"filter_type must be 'spatial' or 'channel', got {filter_type!r}")
        if kernel_size < 2:
            raise ValueError(f'kernel_size must be at least 2 to normalise over the taps, got {kernel_size}')
        self.in_channels = in_channels
        self.kernel_size = kernel_size
        self.filter_type = filter_type
        self.nonlinearity = nonlinearity
        self.gain = nn.init.calculate_gain(nonlinearity) / kernel_size  # type: ignore[arg-type]
        num_taps = in_channels * kernel_size**2
        self.std = nn.Parameter(torch.empty(num_taps, device=device, dtype=dtype)) if running_std else None
        self.mean = nn.Parameter(torch.empty(num_taps, device=device, dtype=dtype)) if running_mean else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.std is not None:
            nn.init.normal_(self.std, std=self.gain)
        if self.mean is not None:
            nn.init.zeros_(self.mean)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised filters in the dtype of `x`: (B, in_channels * k**2, H, W) or (B, in_channels * k**2)."""
        num_taps = self.kernel_size * self.kernel_size
        shape = [x.shape[0], self.in_channels, num_taps]
        if self.filter_type == 'spatial':
            shape += [x.shape[2], x.shape[3]]
        precise = x.float() if x.dtype == torch.float16 or x.dtype == torch.bfloat16 else x
        taps = precise.reshape(shape)
        # the mean of equal taps may round to something else, that of zeros does not; a shift has no gradient here
        offsets = taps - taps.detach()[:, :, :1]
        centred = torch.sub(offsets, offsets.sum(2, keepdim=True), alpha=1 / num_taps)
        # a norm, not a square root: its gradient at equal taps is 0, not NaN
        norm = torch.linalg.vector_norm(centred, dim=2, keepdim=True)
        std = torch.rsub(norm, self.eps, alpha=-1 / (num_taps - 1) ** 0.5)  # norm / sqrt(num_taps - 1) + eps at once
        if x.dtype == torch.float16:  # which cannot hold the gradient at equal taps, 1 / eps: it is 0 there
            std = std.masked_fill(norm == 0, float('inf'))
        normalised = (centred / std).flatten(1, 2)
        normalised = normalised * (self.gain if self.std is None else self._per_tap(self.std))
        if self.mean is not None:
            normalised = normalised + self._per_tap(self.mean)
        return normalised.to(x.dtype)

    def _per_tap(self, parameter: Tensor) -> Tensor:
        return parameter.view(-1, 1, 1) if self.filter_type == 'spatial' else parameter

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, kernel_size={self.kernel_size}, filter_type={self.filter_type!r}, '
            f'nonlinearity={self.nonlinearity!r}, running_std={self.std is not None}, '
            f'running_mean={self.mean is not None}'
        )
