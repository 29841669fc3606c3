"""`--dry-run`: what a run would be, and one optimiser step of it. Nothing is written."""

import contextlib
import copy
import dataclasses
import logging
import math
import time
from typing import Any

import torch
import yaml
from timm.scheduler import PlateauLRScheduler

from ddfnet.config import TrainConfig, to_flat_dict
from ddfnet.counting import count_gmacs, count_params
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.memory import memory_in_use
from ddfnet.timing import synchronize
from ddfnet.training.checkpoint import restore_run
from ddfnet.training.components import Components, wrap_for_processes
from ddfnet.training.engine import Progress, StepReport, train_epoch
from ddfnet.training.optimization import learning_rate
from ddfnet.training.run_directory import plan_for_all

_logger = logging.getLogger('ddfnet')
_ROWS = 14


class _Done(Exception):
    """The first step is done."""


def repeatable(config: TrainConfig) -> dict[str, Any]:
    """The resolved settings without what names or continues one run: enough to repeat it with `-c`."""
    fresh = dataclasses.replace(config.run, experiment='', resume='', no_resume_opt=False, dry_run=False)
    return to_flat_dict(dataclasses.replace(config, run=fresh))


def dry_run(components: Components, processes: Processes) -> None:
    """Prints settings, sizes and schedule, and does one optimiser step in every process.

    Raises:
        UserError: The run's folder or the checkpoint to go on from cannot be used, or the loss of the step is not
            finite.
    """
    config = components.config
    directory, checkpoint = plan_for_all(config, processes)
    if processes.is_primary:
        print(yaml.safe_dump(repeatable(config), sort_keys=False))
        print(_sizes(components, processes))
        own_name = config.run.experiment or (checkpoint and checkpoint.parent == directory.path)
        print(
            f'into {directory.path}'
            + ('' if own_name else ', named by the time at which a run starts: --experiment gives a name')
            + (f', going on from {checkpoint}' if checkpoint else '')
        )
        print(f'\n{schedule_table(components)}\n', flush=True)
    if checkpoint:
        restore_run(components, checkpoint, processes)
    wrap_for_processes(components, processes)
    line, loss = _first_step(components, processes)
    if processes.is_primary:
        print(line)
    if not math.isfinite(loss):
        raise UserError(f'the loss of the first step is {loss}: lower --lr, or look at the data')


def _sizes(components: Components, processes: Processes) -> str:
    model = components.config.model
    _, height, width = model.image_shape
    size = height if height == width else f'{height} x {width}'
    copied: Any = copy.deepcopy(components.model).eval()
    images = torch.zeros(1, *model.image_shape, device=processes.device)
    gmacs = count_gmacs(lambda: copied(components.precision.lay_out(images)))
    loader = components.train_loader
    return (
        f'{model.model}: {count_params(copied) / 1e6:.2f} M parameters, {gmacs:.3g} GMACs at {size} pixels\n'
        f'{loader.updates_per_epoch} steps per epoch of {loader.samples_per_step} images, '
        f'{components.num_epochs} epochs'
    )


def schedule_table(components: Components) -> str:
    """The learning rate at the start of up to 14 epochs. Moves the scheduler, so that it serves no run afterwards."""
    scheduler, optimizer = components.scheduler, components.optimizer
    if isinstance(scheduler, PlateauLRScheduler):
        return f'learning rate {learning_rate(optimizer):g} at the start, then as the validation metric says'
    epochs = components.num_epochs
    warmup = components.config.schedule.warmup_epochs
    evenly = (round(number * (epochs - 1) / (_ROWS - 3)) for number in range(_ROWS - 2))
    shown = sorted({epoch for epoch in (0, 1, warmup, *evenly) if epoch < epochs})[: _ROWS + 1]
    rates = []
    for epoch in shown:
        if scheduler is not None and epoch:
            scheduler.step_update(epoch * components.train_loader.updates_per_epoch)
            scheduler.step(epoch)
        rates.append(f'{learning_rate(optimizer):.3g}')
    widths = [max(len(rate), len(str(epoch))) for epoch, rate in zip(shown, rates)]
    epochs_row = '  '.join(f'{epoch:>{width}}' for epoch, width in zip(shown, widths))
    rates_row = '  '.join(f'{rate:>{width}}' for rate, width in zip(rates, widths))
    return f'epoch          {epochs_row}\nlearning rate  {rates_row}'


def _first_step(components: Components, processes: Processes) -> tuple[str, float]:
    """What to print of the first optimiser step, and its loss."""
    reports: list[StepReport] = []

    def stop(report: StepReport) -> None:
        synchronize(processes.device)
        reports.append(report)
        raise _Done

    start = time.perf_counter()
    with contextlib.suppress(_Done):
        train_epoch(components, Progress(), processes, stop)
    seconds, report = time.perf_counter() - start, reports[0]
    memory = memory_in_use(processes.device)
    loss = report.loss.item()
    return (
        f'one step: loss {loss:.4f}, {seconds:.2f} s, of which {report.data_seconds:.2f} s for its images'
        + (f', {memory / 1e9:.2f} GB of memory' if memory else ''),
        loss,
    )
