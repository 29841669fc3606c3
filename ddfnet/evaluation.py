"""Exact metrics of a classifier over a whole set, in one process or many."""

import time
from collections.abc import Callable
from typing import Any

import torch
from timm.task import ClassificationEvaluator, evaluation_sample_limit

from ddfnet.data.streams import WholeStream
from ddfnet.data.unreadable import NO_LABEL, LenientDataset
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.precision import Precision


@torch.inference_mode()
def evaluate(
    model: torch.nn.Module,
    loader: Any,
    precision: Precision,
    processes: Processes,
    report: Callable[[str], None] | None = None,
    report_interval: int = 10,
    on_batch: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Mean cross-entropy `loss`, `top1` and `top5` in percent, the `count` of images, how many more were `corrupt`, and
    `samples_per_s`.

    Every image counts once, in any number of processes: the sampler's padding is discarded, counts are integers.

    Args:
        loader: From `create_validation_loader`.
        report: Takes a line of progress every `report_interval` batches, in the primary process.
        on_batch: Called after every batch in every process, which all have equally many; not with a streamed set.

    Raises:
        UserError: An image that cannot be read, unless the loader leaves them out.
    """
    model.eval()
    lenient = isinstance(loader.dataset, LenientDataset)
    evaluator = ClassificationEvaluator(processes.device)
    samples_left = evaluation_sample_limit(loader)  # without the padding of a shard
    streamed = isinstance(loader.dataset, WholeStream)
    batches = '' if streamed else f'/{len(loader)}'
    start = time.perf_counter()
    for index, (images, targets) in enumerate(loader):
        images = precision.lay_out(images.to(processes.device))
        with precision.autocast():
            output = model(images)
        targets = targets.to(processes.device)
        if samples_left is not None:
            output, targets = output[:samples_left], targets[:samples_left]
            samples_left -= len(targets)
        if lenient:
            readable = targets != NO_LABEL
            output, targets = output[readable], targets[readable]
        evaluator.update(output, targets)
        if on_batch and not streamed:
            on_batch()
        if report and processes.is_primary and (index + 1) % report_interval == 0:
            metrics = evaluator.summary()
            report(f'[{index + 1:5d}{batches}] loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f} %')
    metrics = evaluator.compute(distributed=processes.distributed)
    count = int(processes.total(evaluator.counts[0]))
    seconds = time.perf_counter() - start
    return {**metrics, 'count': count, 'corrupt': _left_out(loader, count, processes), 'samples_per_s': count / seconds}


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
