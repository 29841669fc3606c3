"""What validate.py measures, how, and what it leaves behind."""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from ddfnet.config.runtime import Seed
from ddfnet.config.values import Count, Whole

if TYPE_CHECKING:
    from ddfnet.config.schema import ValidateConfig

_VIEWS = (0, 2, 5, 10)


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """How a validation runs and what it leaves behind."""

    batch_size: Annotated[Count, arg(aliases=['-b'])] = 256
    """Images per process and forward pass."""
    retry: bool = False
    """Halve the batch size until a forward pass fits into memory, rather than stop."""
    tta: Whole = 0
    """Views of each image to average over: 2 (mirrored too), 5 (centre and corners), 10 (both); 0 is one."""
    real_labels: str = ''
    """File of reassessed ImageNet labels (ReaL) for top-1 and top-5, or imagenet for those that come with timm."""
    valid_labels: str = ''
    """File of the classes that count, an index per line in the order of the data's; or imagenet_a, imagenet_r."""
    metrics_avg: Literal['micro', 'macro', 'weighted'] | None = None
    """Measure precision, recall and F1 too, averaged over images, over classes, or over classes by their images."""
    device: str = 'auto'
    """Device, such as cuda, cuda:1, mps or cpu; auto takes the best there is."""
    log_freq: Count = 10
    """Batches between lines of progress."""
    results_file: str = ''
    """File that the results are written to."""
    results_format: Literal['csv', 'json'] | None = None
    """Format of that file; none goes by its suffix."""
    seed: Seed = 42
    """Seed of every random number."""


def contradictions(config: 'ValidateConfig') -> Iterator[str]:
    """What no single field can say of its value, as messages for the user."""
    evaluation, model = config.evaluation, config.model
    yield from model.contradictions()
    if model.checkpoint and model.pretrained_path:
        yield '--checkpoint and --pretrained-path both give the weights: leave one of them out'
    if model.torchcompile_mode is not None and not model.torchcompile:
        yield '--torchcompile-mode has no effect without --torchcompile inductor: add that, or leave it out'
    if not any((config.data.data_dir, config.data.dataset, model.checkpoint, model.pretrained_path)):
        yield 'no images to validate on: expected DATA_DIR, or --dataset digits'
    if evaluation.tta not in _VIEWS:
        yield f'--tta: expected one of {", ".join(map(str, _VIEWS))} views, got {evaluation.tta}'
    if evaluation.real_labels and evaluation.valid_labels:
        yield '--real-labels name all classes of ImageNet, --valid-labels only some: leave one of them out'
    if evaluation.results_format and not evaluation.results_file:
        yield '--results-format has no effect without --results-file FILE: add that, or leave it out'
    if model.use_ema and not model.checkpoint:
        yield '--use-ema takes the averaged weights of a checkpoint: give --checkpoint FILE, or leave --use-ema out'
