"""Exact metrics of a classifier over a whole set, in one process or many."""

import time
from collections.abc import Callable
from typing import Any

import torch
from timm.task import ClassificationEvaluator, evaluation_sample_limit

from ddfnet.distributed import Processes
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
    """Mean cross-entropy `loss`, `top1` and `top5` in percent, the `count` of images and `samples_per_s`.

    Every image counts once, in any number of processes: the sampler's padding is discarded, counts are integers.

    Args:
        loader: From `create_validation_loader`.
        report: Takes a line of progress every `report_interval` batches, in the primary process.
        on_batch: Called after every batch in every process, which all have equally many.
    """
    model.eval()
    evaluator = ClassificationEvaluator(processes.device, max_samples=evaluation_sample_limit(loader))
    start = time.perf_counter()
    for index, (images, targets) in enumerate(loader):
        images = precision.lay_out(images.to(processes.device))
        with precision.autocast():
            output = model(images)
        evaluator.update(output, targets.to(processes.device))
        if on_batch:
            on_batch()
        if report and processes.is_primary and (index + 1) % report_interval == 0:
            metrics = evaluator.summary()
            report(f'[{index + 1:5d}/{len(loader)}] loss {metrics["loss"]:.4f}  top1 {metrics["top1"]:.3f} %')
    metrics = evaluator.compute(distributed=processes.distributed)
    count = int(processes.total(evaluator.counts[0]))
    return {**metrics, 'count': count, 'samples_per_s': count / (time.perf_counter() - start)}
