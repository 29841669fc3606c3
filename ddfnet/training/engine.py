"""One epoch of training."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ddfnet.distributed import Processes
from ddfnet.seeding import reseed_step
from ddfnet.training.components import Components
from ddfnet.training.gradients import GradientClipper
from ddfnet.training.guard import NonFiniteCount, StepGuard
from ddfnet.training.optimization import learning_rate


@dataclass
class Progress:
    """How far a run is: epochs finished, optimiser steps taken, and how much of the next epoch is done."""

    epoch: int = 0
    updates: int = 0
    step: int = 0  # optimiser steps of this epoch, suppressed ones included
    position: int = 0  # samples of this epoch over all processes
    lr: float = 0.0  # at the start of this epoch
    loss_sum: float = 0.0  # of this epoch's batches, averaged over processes; those of suppressed steps left out
    correct: int = 0  # images of this epoch whose greatest output was their label, over all processes
    labelled: int = 0  # images of this epoch that had one label, over all processes; mixed ones have none
    nonfinite: int = 0  # suppressed steps of this epoch
    nonfinite_streak: int = 0  # suppressed steps in a row, up to now

    def start_epoch(self, epoch: int) -> None:
        """Nothing of this epoch is done yet."""
        self.epoch, self.step, self.position, self.loss_sum = epoch, 0, 0, 0.0
        self.correct = self.labelled = self.nonfinite = 0

    @property
    def top1(self) -> float | None:
        """Percent of this epoch's training images, as augmented; None where all were mixed."""
        return 100 * self.correct / self.labelled if self.labelled else None


@dataclass(frozen=True)
class StepReport:
    """What one process knows after an optimiser step. Tensors are scalars on the device: reading one waits for it."""

    step: int  # done in this epoch
    lr: float  # that the step used, of the first parameter group
    loss_sum: Tensor  # of this epoch's batches so far, those of suppressed steps left out
    accumulation: int  # batches of a step
    grad_norm: Tensor  # total L2 norm of this step's gradients, of all processes, before clipping
    nonfinite: Tensor  # suppressed steps of this epoch, int64
    correct: Tensor  # images since the epoch was started or resumed whose greatest output was their label, int64
    labelled: int  # images since then that had one label
    data_seconds: float  # since then spent on waiting for batches

    @property
    def loss(self) -> Tensor:
        """Mean of this epoch so far, suppressed steps left out."""
        return self.loss_sum / ((self.step - self.nonfinite) * self.accumulation)


class _Tally:
    """Sums since the epoch was started or resumed, on the device."""

    def __init__(self, components: Components, progress: Progress, processes: Processes) -> None:
        self.device = processes.device
        self.accumulation = components.config.batch.grad_accum_steps
        self.loss = torch.full((), progress.loss_sum, device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.labelled = 0
        self.data_seconds = 0.0
        self.nonfinite = NonFiniteCount(self.device, progress.nonfinite, progress.nonfinite_streak)
        self._before = progress.correct, progress.labelled

    def settle(self, progress: Progress, processes: Processes) -> None:
        """Brings the sums over all processes into the progress."""
        progress.loss_sum = (processes.total(self.loss) / processes.world_size).item()
        progress.correct = self._before[0] + int(processes.total(self.correct))
        progress.labelled = self._before[1] + self.labelled * processes.world_size
        progress.nonfinite, progress.nonfinite_streak = int(self.nonfinite.total), int(self.nonfinite.streak)


def train_epoch(
    components: Components,
    progress: Progress,
    processes: Processes,
    report: Callable[[StepReport], object] | None = None,
    boundary: Callable[[Callable[[], None]], None] | None = None,
) -> float:
    """Trains on what is left of the epoch that `progress` names and counts its optimiser steps.

    A step whose gradients are no finite numbers is suppressed: it changes nothing. How many there were in a row is
    looked at every log_interval steps and at the end; nothing else here waits for an accelerator, but for the gradient
    scaler.

    Args:
        report: Called after every step.
        boundary: Called after every step but the last in every process. It takes a function that brings `progress` up
            to date, sums over all processes included, so that the run can go on from there.

    Returns:
        The mean training loss over the epoch and all processes; NaN where every step was suppressed.

    Raises:
        UserError: max_nonfinite steps in a row were suppressed.
    """
    components.task.train()
    loader, run = components.train_loader, components.config.run
    tally = _Tally(components, progress, processes)
    guard, clip = _step_guard(components, processes), GradientClipper(components.config.optimizer, components.task)
    end = progress.step + loader.updates_left(progress.position)
    with contextlib.closing(loader.epoch(progress.epoch, progress.position)) as batches:
        while progress.step < end:
            lr = learning_rate(components.optimizer)
            norm = _step(components, progress, processes, batches, tally, guard, clip)
            if components.config.distribution.synchronize_step and processes.device.type != 'cpu':
                torch.accelerator.synchronize()
            progress.step += 1
            progress.position += loader.samples_per_step
            if report:
                report(
                    StepReport(
                        progress.step, lr, tally.loss, tally.accumulation, norm, tally.nonfinite.total, tally.correct,
                        tally.labelled, tally.data_seconds,
                    )
                )  # fmt: skip
            if progress.step % run.log_interval == 0 or progress.step == end:
                tally.nonfinite.check(run.max_nonfinite, progress.epoch, progress.step)
            if boundary and progress.step < end:
                boundary(lambda: tally.settle(progress, processes))
    tally.settle(progress, processes)
    applied = (progress.step - progress.nonfinite) * tally.accumulation
    return progress.loss_sum / applied if applied else float('nan')


def _step_guard(components: Components, processes: Processes) -> StepGuard:
    # where knowing costs nothing more, the host decides: a gradient scaler waits anyway, an average on the CPU too
    asks = (
        processes.device.type == 'cpu'
        or components.scaler.is_enabled()
        or (components.config.ema.model_ema and components.config.ema.model_ema_force_cpu)
    )
    return StepGuard(
        components.trained, components.optimizer, components.task.get_trainable_module(ema=True), host_decides=asks
    )


def _step(
    components: Components,
    progress: Progress,
    processes: Processes,
    batches: Iterator[tuple[Tensor, Tensor]],
    tally: _Tally,
    guard: StepGuard,
    clip: GradientClipper,
) -> Tensor:
    """One optimiser step, of grad_accum_steps batches. Returns the norm of its gradients."""
    guard.save()
    losses = []
    for micro_step in range(tally.accumulation):
        start = time.perf_counter()
        images, targets = next(batches)
        tally.data_seconds += time.perf_counter() - start
        reseed_step(components.config.run.seed, processes.device, 'step', progress.updates, micro_step, processes.rank)
        losses.append(_backward(components, images, targets, tally, last=micro_step == tally.accumulation - 1))
    norm, finite = _optimizer_step(components, progress, guard, clip)
    tally.nonfinite.add(finite)
    tally.loss = tally.loss + torch.where(finite, sum(losses[1:], losses[0]), 0)
    return norm


def _backward(components: Components, images: Tensor, targets: Tensor, tally: _Tally, last: bool) -> Tensor:
    """Adds the gradients of a batch, averaged over processes with the last of a step. Returns the detached loss."""
    precision, task, mixup = components.precision, components.task, components.train_loader.mixup
    images, targets = images.to(precision.device), targets.to(precision.device)
    if mixup is not None:
        images, targets = mixup(images, targets)
    context = contextlib.nullcontext() if last else task.no_sync()
    with context:
        with precision.autocast():
            result = task(precision.lay_out(images), targets)
        second_order = getattr(components.optimizer, 'is_second_order', False)  # it differentiates the gradients
        loss = result['loss'] / tally.accumulation if tally.accumulation > 1 else result['loss']
        with components.scaler.scaled(loss, last) as scaled:
            scaled.backward(create_graph=second_order)
    if targets.ndim == 1:
        tally.correct += (result['output'].detach().argmax(dim=1) == targets).sum()
        tally.labelled += len(targets)
    return result['loss'].detach()


def _optimizer_step(
    components: Components, progress: Progress, guard: StepGuard, clip: GradientClipper
) -> tuple[Tensor, Tensor]:
    """Clips and steps, and moves average and schedule on with it.

    A step with gradients that are no finite numbers is left out where the host may know, and then advances nothing;
    else it is taken back on the device, and counts as a step of the schedule.

    Returns:
        The norm of the gradients before clipping, and whether it is finite: scalars on the device.
    """
    optimizer, scaler = components.optimizer, components.scaler
    scaler.unscale()
    norm = clip()
    finite = torch.isfinite(norm)
    host_decides = guard.host_decides_now
    if host_decides and not finite:
        guard.restore()
    else:
        optimizer.step()  # the scaler's own step would ask the device once more whether the gradients are finite
        progress.updates += 1
        components.task.update_ema(step=progress.updates)
        if not host_decides:
            guard.restore_unless(finite)
        if components.scheduler is not None:
            components.scheduler.step_update(progress.updates)
    scaler.update()
    optimizer.zero_grad()
    return norm, finite
