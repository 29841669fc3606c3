"""One epoch of training."""

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
    """How far a run is: epochs finished and optimiser steps taken."""

    epoch: int = 0
    updates: int = 0


def train_epoch(
    components: Components,
    progress: Progress,
    processes: Processes,
    report: Callable[[int, Tensor], None],
) -> float:
    """Trains on the epoch that `progress` names and counts its optimiser steps.

    Args:
        report: Takes the number of steps done in this epoch and the mean loss so far, a scalar on the device, after
            every step. Reading the loss waits for the device.

    Returns:
        The mean training loss over the epoch and all processes.
    """
    components.task.train()
    accumulation = components.config.batch.grad_accum_steps
    loss_sum = torch.zeros((), device=processes.device)
    batches = components.train_loader.epoch(progress.epoch)
    for step in range(components.train_loader.updates_per_epoch):
        for micro_step in range(accumulation):
            images, targets = next(batches)
            reseed_step(
                components.config.run.seed, processes.device, 'step', progress.updates, micro_step, processes.rank
            )
            loss_sum += _backward(components, images, targets, last=micro_step == accumulation - 1)
        _optimizer_step(components, progress)
        report(step + 1, loss_sum / ((step + 1) * accumulation))
    total = processes.total(loss_sum) / processes.world_size
    return (total / (components.train_loader.updates_per_epoch * accumulation)).item()


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
