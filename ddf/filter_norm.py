"""FilterNorm: the normalisation of dynamic filters (paper, section 3.3)."""

import torch
from torch import Tensor, nn

_EPS = 1e-10


class FilterNorm(nn.Module):
    """Normalises every filter over its taps to zero mean and a scale: `(x - mean) / (std + 1e-10) * scale + shift`.

    The standard deviation is unbiased. Half precision is normalised in float32; a filter of equal taps gives zeros.

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
        grid = x.shape[2:] if self.filter_type == 'spatial' else ()
        precise = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        taps = precise.reshape(x.shape[0], self.in_channels, self.kernel_size**2, *grid)
        centred = taps - taps.mean(dim=2, keepdim=True)  # (B, in_channels, k*k, *grid)
        # a norm, not a square root: its gradient at equal taps is 0, not NaN
        std = torch.linalg.vector_norm(centred, dim=2, keepdim=True) / (self.kernel_size**2 - 1) ** 0.5
        normalised = centred / (std + _EPS)
        normalised = normalised * (self.gain if self.std is None else self._per_tap(self.std, len(grid)))
        if self.mean is not None:
            normalised = normalised + self._per_tap(self.mean, len(grid))
        return normalised.to(x.dtype).reshape(x.shape[0], -1, *grid)

    def _per_tap(self, parameter: Tensor, grid_dims: int) -> Tensor:
        return parameter.view(self.in_channels, self.kernel_size**2, *(1,) * grid_dims)

    def extra_repr(self) -> str:
        return (
            f'{self.in_channels}, kernel_size={self.kernel_size}, filter_type={self.filter_type!r}, '
            f'running_std={self.std is not None}, running_mean={self.mean is not None}'
        )
