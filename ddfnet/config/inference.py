"""What inference_time.py measures, and how."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ddfnet.config.values import Count, Positive

Operation = Literal['all', 'conv', 'depthwise', 'module', 'ddf', 'unfold', 'shifted', 'compiled']
_NUMBER = r'([1-9]\d*)'
_SIZE = re.compile(f'(?:(?:{_NUMBER}x{_NUMBER}x)?{_NUMBER}x)?{_NUMBER}')
_OF_MAPS = ('channels', 'sizes', 'kernel_size')
_OF_MODELS = ('model_kwargs', 'img_size', 'accuracy_file')
_BARE = {'--op': 'all', '--torchcompile': 'inductor'}


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """What is timed, and for how long."""

    op: tuple[Operation, ...] | None = None
    """Rows, one or several; --op alone is all. Without it and --model: all but compiled, since that takes long."""
    model: Annotated[tuple[str, ...] | None, arg(aliases=['-m'])] = None
    """Models to time, not the operation: names, patterns ('ddf_mul_*'), files with a name on each line (x.txt)."""
    model_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of every model."""
    batch_size: Annotated[tuple[Count, ...], arg(aliases=['-b'])] = (32,)
    """Images per pass; several give several tables."""
    train: bool = False
    """Time forward and backward (of models: a step of SGD) instead of forward alone."""
    img_size: Count | None = None
    """Side of a model's square input in pixels; none keeps the model's."""
    channels: Count = 256
    """Channels of the maps that the operation filters."""
    sizes: tuple[str, ...] | None = None
    """Those maps: side, HxW, or BxCxHxW; none takes 7 to 224 and 2x256x200x300, as in the paper, within the budget."""
    kernel_size: Count = 3
    """Kernel size of the operation and of the convolutions, odd."""
    min_time: Positive = 0.5
    """Seconds that each row is timed for, in turns with the others; at least three passes are timed."""
    budget: Positive | None = None
    """Seconds for the whole run: what would take longer is left out; none is 60 where no --sizes are given."""
    device: str = 'auto'
    """Device, such as cuda, cuda:1, mps or cpu; auto takes the best there is."""
    num_threads: Count | None = None
    """Threads on the CPU; none keeps torch's."""
    torchcompile: str | None = None
    """Compile with this back end of torch.compile; --torchcompile alone is inductor."""
    torchcompile_mode: Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] | None = None
    """Mode of torch.compile."""
    cuda_graphs: bool = True
    """On CUDA, replay forward passes as graphs, which leaves out the time to launch them."""
    json: str = ''
    """File for everything measured, with the environment."""
    csv: str = ''
    """File for the tables, a line per row."""
    plot: str = ''
    """Image file: latency over size, or of models against accuracy where it is known, else against GMACs."""
    accuracy_file: str = ''
    """CSV file with columns model and top1 for the plot, such as validate.py writes; else published values serve."""


def bare_flags(argv: list[str]) -> list[str]:
    """The arguments with the value in place that --op and --torchcompile stand for where they are given without one."""
    words: list[str] = []
    for word, following in zip(argv, [*argv[1:], '-']):
        words.append(word)
        if word in _BARE and following.startswith('-'):
            words.append(_BARE[word])
    return words


def map_shape(size: str, batch_size: int, channels: int) -> tuple[int, int, int, int]:
    """(B, C, H, W) of one of --sizes, whose form was checked."""
    match = _SIZE.fullmatch(size)
    assert match is not None
    batch, own_channels, height, width = match.groups()
    return int(batch or batch_size), int(own_channels or channels), int(height or width), int(width)


def contradictions(config: BenchmarkConfig) -> Iterator[str]:
    """What no single field can say of its value, as messages for the user."""
    if config.kernel_size < 3 or config.kernel_size % 2 == 0:
        yield f'--kernel-size: expected an odd number of at least 3, got {config.kernel_size}'
    if config.model and config.op:
        yield '--op times the operation and --model times models: give one of them'
    defaults = BenchmarkConfig()
    for name in _OF_MAPS if config.model else _OF_MODELS:
        if getattr(config, name) != getattr(defaults, name):
            why = 'maps, and --model times models' if config.model else 'models, and none is given with --model'
            yield f'--{name.replace("_", "-")} is for {why}'
    for size in config.sizes or ():
        if not _SIZE.fullmatch(size):
            yield f'--sizes: expected a side, HxW or BxCxHxW, such as 56 or 2x256x200x300, got {size!r}'
    if config.torchcompile_mode and not config.torchcompile:
        yield '--torchcompile-mode needs --torchcompile'
    if config.accuracy_file and not config.plot:
        yield '--accuracy-file is for --plot, which is not given'
