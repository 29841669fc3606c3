"""Exact metrics of a classifier over a whole set, in one process or many."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.task import ClassificationEvaluator, evaluation_sample_limit
from torch import Tensor

from ddfnet.data.streams import WholeStream
from ddfnet.data.unreadable import NO_LABEL, LenientDataset
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.precision import Precision
from ddfnet.scores import Score


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    loader: Any,
    precision: Precision,
    processes: Processes,
    report: Callable[[str], None] | None = None,
    report_interval: int = 10,
    on_batch: Callable[[], None] | None = None,
    scores: Sequence[Score] = (),
) -> dict[str, float]:
    """Mean cross-entropy `loss`, `top1` and `top5` in percent, the `count` of images, how many more were `corrupt`, and
    `samples_per_s`.

    Every image counts once, in any number of processes: the sampler's padding is discarded, counts are integers.

    Args:
        loader: From `create_validation_loader`.
        report: Takes a line of progress every `report_interval` batches, in the primary process.
        on_batch: Called after every batch in every process, which all have equally many; not with a streamed set.
        scores: Measured too; what they call like a metric takes its place.

    Raises:
        UserError: An image that cannot be read, unless the loader leaves them out.
    """
    model.eval()
    evaluator = ClassificationEvaluator(processes.device)
    streamed = isinstance(loader.dataset, WholeStream)
    batches = '' if streamed else f'/{len(loader)}'
    start = time.perf_counter()
    for index, (output, targets, positions) in enumerate(_predictions(model, loader, precision, processes)):
        try:
            evaluator.update(output, targets)
        except IndexError:  # on the CPU; an accelerator has failed for good by then
            raise UserError(
                f'the model has {output.shape[1]} classes, but the data has label {int(targets.max())}: give another '
                '--num-classes'
            ) from None
        for score in scores:
            score.update(output, targets, positions)
        if on_batch and not streamed:
            on_batch()
        if report and processes.is_primary and (index + 1) % report_interval == 0:
            metrics = evaluator.summary()
            report(f'[{index + 1:5d}{batches}] loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f} %')
    metrics = evaluator.compute(distributed=processes.distributed)
    for score in scores:
        metrics |= score.compute(processes)
    count = int(processes.total(evaluator.counts[0]))
    seconds = time.perf_counter() - start
    return {**metrics, 'count': count, 'corrupt': _left_out(loader, count, processes), 'samples_per_s': count / seconds}


def _predictions(
    model: torch.nn.Module, loader: Any, precision: Precision, processes: Processes
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each batch, without padding and unreadable images: outputs (B, classes) and labels (B,) on the device, and
    positions in the data set (B,) on the CPU; those are missing for a stream."""
    lenient = isinstance(loader.dataset, LenientDataset)
    samples_left = evaluation_sample_limit(loader)  # without the padding of a shard
    order = torch.tensor([] if isinstance(loader.dataset, WholeStream) else list(loader.sampler))
    for images, targets in loader:
        images = precision.lay_out(images.to(processes.device))
        with precision.autocast():
            output = model(images)
        targets = targets.to(processes.device)
        positions, order = order[: len(targets)], order[len(targets) :]
        if samples_left is not None:
            output, targets, positions = output[:samples_left], targets[:samples_left], positions[:samples_left]
            samples_left -= len(targets)
        if lenient:
            readable = targets != NO_LABEL
            output, targets, positions = output[readable], targets[readable], positions[readable.cpu()]
        yield output, targets, positions


def _left_out(loader: Any, count: int, processes: Processes) -> int:
    """Images that could not be read.

    Raises:
        UserError: Of a stream, which leaves them out itself: it gave other than what it states.
    """
    if isinstance(loader.dataset, LenientDataset):
        return loader.dataset.tally.take(processes, 'left out of the validation')
    stated = loader.dataset.stated_length if isinstance(loader.dataset, WholeStream) else None
    if stated in (None, count):
        return 0
    if loader.dataset.allow_corrupt:
        return max(0, stated - count)
    raise UserError(
        f'the validation set states {stated} images, but {count} could be read: mend them or the count, or give '
        '--allow-corrupt'
    )
