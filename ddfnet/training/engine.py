"""One epoch of training."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from timm.utils import dispatch_clip_grad
from torch import Tensor

from ddfnet.distributed import Processes
from ddfnet.seeding import reseed_step
from ddfnet.training.components import Components


@dataclass
class Progress:
    """How far a run is: epochs finished, optimiser steps taken, and how much of the next epoch is done."""

    epoch: int = 0
    updates: int = 0
    step: int = 0  # optimiser steps of this epoch
    position: int = 0  # samples of this epoch over all processes
    lr: float = 0.0  # at the start of this epoch
    loss_sum: float = 0.0  # of this epoch's batches, averaged over processes

    def start_epoch(self, epoch: int) -> None:
        """Nothing of this epoch is done yet."""
        self.epoch, self.step, self.position, self.loss_sum = epoch, 0, 0, 0.0


def train_epoch(
    components: Components,
    progress: Progress,
    processes: Processes,
    report: Callable[[int, Tensor], None],
    boundary: Callable[[Callable[[], None]], None] | None = None,
) -> float:
    """Trains on what is left of the epoch that `progress` names and counts its optimiser steps.

    Args:
        report: Takes the number of steps done in this epoch and the mean loss so far, a scalar on the device, after
            every step. Reading the loss waits for the device.
        boundary: Called after every step but the last in every process. It takes a function that brings `progress` up
            to date, sums over all processes included, so that the run can go on from there.

    Returns:
        The mean training loss over the epoch and all processes.
    """
    components.task.train()
    accumulation = components.config.batch.grad_accum_steps
    loader = components.train_loader
    loss_sum = torch.full((), progress.loss_sum, device=processes.device)

    def settle() -> None:
        progress.loss_sum = (processes.total(loss_sum) / processes.world_size).item()

    end = progress.step + loader.updates_left(progress.position)
    with contextlib.closing(loader.epoch(progress.epoch, progress.position)) as batches:
        while progress.step < end:
            for micro_step in range(accumulation):
                images, targets = next(batches)
                reseed_step(
                    components.config.run.seed, processes.device, 'step', progress.updates, micro_step, processes.rank
                )
                loss_sum += _backward(components, images, targets, last=micro_step == accumulation - 1)
            _optimizer_step(components, progress)
            if components.config.distribution.synchronize_step and processes.device.type != 'cpu':
                torch.accelerator.synchronize()
            progress.step += 1
            progress.position += loader.samples_per_step
            report(progress.step, loss_sum / (progress.step * accumulation))
            if boundary and progress.step < end:
                boundary(settle)
    settle()
    return progress.loss_sum / (progress.step * accumulation)


def _backward(components: Components, images: Tensor, targets: Tensor, last: bool) -> Tensor:
    """Adds the gradients of a batch, averaged over processes with the last of a step. Returns the detached loss."""
    precision, task, mixup = components.precision, components.task, components.train_loader.mixup
    accumulation = components.config.batch.grad_accum_steps
    images, targets = images.to(precision.device), targets.to(precision.device)
    if mixup is not None:
        images, targets = mixup(images, targets)
    context = torch.enable_grad() if last else task.no_sync()
    with context:
        with precision.autocast():
            loss = task(precision.lay_out(images), targets)['loss']
        components.scaler.scale(loss / accumulation).backward()
    return loss.detach()


def _optimizer_step(components: Components, progress: Progress) -> None:
    """Clips, steps, and unless the gradient scaler skipped the step, moves average and schedule on with it."""
    task, optimizer, scaler = components.task, components.optimizer, components.scaler
    clip = components.config.optimizer
    if clip.clip_grad is not None:
        scaler.unscale_(optimizer)
        parameters = task.get_clip_parameters(exclude_head=clip.clip_mode == 'agc')
        dispatch_clip_grad(parameters, clip.clip_grad, mode=clip.clip_mode)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    if scaler.get_scale() < scale:
        return
    progress.updates += 1
    task.update_ema(step=progress.updates)
    if components.scheduler is not None:
        components.scheduler.step_update(progress.updates)
