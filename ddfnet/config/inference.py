"""What inference_time.py measures, and how."""

import dataclasses
from typing import Annotated

from tyro.conf import arg

from ddfnet.config.values import Count, Positive


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed, and for how long."""

    model: Annotated[tuple[str, ...] | None, arg(aliases=['-m'])] = None
    """Names of models to time; none times the operation against convolutions."""
    batch_size: Annotated[Count, arg(aliases=['-b'])] = 32
    """Images per forward pass."""
    img_size: Count | None = None
    """Side of a model's square input in pixels; none keeps the model's."""
    channels: Count = 256
    """Channels of the maps that the operation filters."""
    sizes: tuple[Count, ...] = (7, 14, 28, 56)
    """Sides of those maps in pixels."""
    kernel_size: Count = 3
    """Kernel size of the operation and of the convolutions, odd."""
    min_time: Positive = 2.0
    """Seconds that each row is measured for, in turns with the others."""
    device: str = 'auto'
    """Device, such as cuda, cuda:1, mps or cpu; auto takes the best there is."""
    num_threads: Count | None = None
    """Threads on the CPU; none keeps torch's."""
