"""Counts of a model that no run changes: parameters and multiply-adds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_gmacs(run: Callable[[], Any]) -> float:
    """Multiply-adds of what runs, in 10^9, by torch's counter: matrix products, convolutions, DDF operations."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def count_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
