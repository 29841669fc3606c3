"""What a worker times: jobs as the parent sends them, and the common part of what is made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ddfnet.config import BenchmarkConfig
from ddfnet.timing import Pass


@dataclass(frozen=True)
class Job:
    """A row of a table: an operation on maps of `shape` (B, C, H, W), or a model where `shape` is None."""

    name: str
    batch_size: int
    shape: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Work:
    """One pass, ready to run.

    Attributes:
        run: The pass.
        held: Gives the tensors that live on between passes.
        error: Largest distance of the results from the definition, relative to the largest value; None where there is
            no definition to compare with.
        tolerance: The largest error that rounding explains.
    """

    run: Pass
    held: Callable[[], list[Tensor]]
    error: Callable[[], float] | None = None
    tolerance: float = 0.0


class Subject(Protocol):
    """Something that makes passes of any batch size."""

    params: int
    gmacs: float
    input_size: tuple[int, ...]

    def work(self, batch_size: int, compiled: bool) -> Work: ...


def compile_if(function: Any, compiled: bool, config: BenchmarkConfig) -> Any:
    """The function, compiled as the configuration says; for one shape, so that none pays for another's."""
    if not compiled or not config.torchcompile:
        return function
    return torch.compile(function, backend=config.torchcompile, mode=config.torchcompile_mode, dynamic=False)
