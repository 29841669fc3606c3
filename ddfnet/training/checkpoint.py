"""A run's state to and from its checkpoints."""

import math
import os
import shutil
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ddfnet.checkpoints import load_weights, read_checkpoint, write_checkpoint
from ddfnet.config import to_flat_dict
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.training.components import Components
from ddfnet.training.engine import Progress
from ddfnet.training.optimization import restore_optimizer, restore_schedule, schedule_state
from ddfnet.training.run_directory import RunDirectory


@dataclass
class Best:
    """The best value of the evaluation metric so far, and its epoch. A NaN is never best, and never stays it."""

    metric: float | None = None
    epoch: int | None = None
    kept: list[list] = field(
        default_factory=list
    )  # [epoch, metric] of epochs with a checkpoint of their own, best first

    def rank(self, metric: float | None, epoch: int, smaller_is_better: bool, most: int) -> list[int]:
        """Takes an epoch's metric into `kept`, of at most so many epochs. Returns the epochs that fell out."""
        if metric is None or math.isnan(metric):
            return []
        sign = 1 if smaller_is_better else -1
        others = [entry for entry in self.kept if entry[0] != epoch]
        ranked = sorted([*others, [epoch, metric]], key=lambda entry: (sign * entry[1], -entry[0]))
        self.kept = ranked[:most]
        return [number for number, _ in ranked[most:]]

    def improves(self, metric: float | None, epoch: int, smaller_is_better: bool) -> bool:
        """Takes a new value if it is better, and says whether it was; None is an epoch without one."""
        if metric is None or math.isnan(metric):
            return False
        if self.metric is not None and (metric >= self.metric if smaller_is_better else metric <= self.metric):
            return False
        self.metric, self.epoch = metric, epoch
        return True


def save_epoch(
    components: Components, progress: Progress, best: Best, directory: RunDirectory, metric: float | None
) -> None:
    """After an epoch, which `progress` counts as done: last.pth.tar, model_best.pth.tar if it is the best, and
    checkpoint-EPOCH.pth.tar while it is among the checkpoint_hist best. All are one file as long as they are equal."""
    run, epoch = components.config.run, progress.epoch - 1
    smaller_is_better = run.eval_metric == 'loss'
    is_best = best.improves(metric, epoch, smaller_is_better)
    dropped = best.rank(metric, epoch, smaller_is_better, run.checkpoint_hist)
    save_run(components, progress, best, directory, metric)
    if is_best:
        _link(directory.last, directory.best)
    if any(number == epoch for number, _ in best.kept):
        _link(directory.last, directory.checkpoint(epoch))
    for number in dropped:
        directory.checkpoint(number).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> None:
    """A second name for a file, or a copy where the file system has no such names; in one atomic step."""
    temporary = target.with_name(f'{target.name}.tmp')
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def save_run(
    components: Components,
    progress: Progress,
    best: Best,
    directory: RunDirectory,
    metric: float | None = None,
    ema_buffers: list[dict[str, Tensor]] | None = None,
) -> None:
    """Writes last.pth.tar. `progress` counts a finished epoch as done.

    Args:
        ema_buffers: From `gather_ema_buffers`, where the run is not at an epoch's end.
    """
    config = components.config
    checkpoint: dict[str, Any] = {
        'epoch': progress.epoch - 1,  # as in timm: the last epoch that is finished
        'arch': config.model.model,
        **components.task.get_checkpoint_state(),
        'optimizer': components.optimizer.state_dict(),
        'args': to_flat_dict(config),
        'version': 2,
        'metric': metric,
        'run': {
            **asdict(progress),
            'best': asdict(best),
            'scheduler': schedule_state(components.scheduler),
        },
    }
    if ema_buffers:
        checkpoint['run']['ema_buffers'] = ema_buffers
    if components.task.has_ema():
        checkpoint |= components.task.get_checkpoint_state(ema=True)
    if components.scaler.is_enabled():
        checkpoint[components.scaler.state_dict_key] = components.scaler.state_dict()
    write_checkpoint(checkpoint, directory.last)


def gather_ema_buffers(components: Components, processes: Processes) -> list[dict[str, Tensor]]:
    """The buffers of the average (EMA) in every process, by rank; empty where one is all. A collective call.

    Within an epoch they differ: each process averages the running statistics of its own batches until --dist-bn. Those
    of the model need no keeping, since each forward pass of several processes starts with the first one's.
    """
    if components.ema_model is None or not processes.distributed:
        return []
    return processes.gather({name: buffer.cpu() for name, buffer in components.ema_model.named_buffers()})


def restore_run(components: Components, path: Path, processes: Processes) -> tuple[Progress, Best]:
    """Loads a checkpoint into the parts of a run; the optimiser starts anew where no_resume_opt says so.

    A checkpoint of timm or of the official release has no `run`: steps are counted from its epoch.

    Raises:
        UserError: It cannot be read, or is that of another model or optimiser.
    """
    checkpoint = read_checkpoint(path)
    load_weights(components.model, checkpoint, path)
    components.task.load_task_state(checkpoint.get('task_state'))
    if components.ema_model is not None:
        load_weights(components.ema_model, checkpoint, path, use_ema=checkpoint.get('state_dict_ema') is not None)
    if 'epoch' not in checkpoint:
        raise UserError(f'{path} holds no epoch to go on from: use it as --initial-checkpoint')
    if not components.config.run.no_resume_opt:
        _restore_optimizer(components, checkpoint, path)
    run = checkpoint.get('run', {})
    ema_buffers = run.get('ema_buffers', [])
    if components.ema_model is not None and len(ema_buffers) == processes.world_size:
        components.ema_model.load_state_dict(ema_buffers[processes.rank], strict=False)
    epoch = checkpoint['epoch'] + 1
    progress = Progress(epoch, epoch * components.train_loader.updates_per_epoch)
    known = {field.name: run[field.name] for field in fields(Progress) if field.name in run}
    return replace(progress, **known), Best(**run.get('best', {}))


def _restore_optimizer(components: Components, checkpoint: dict[str, Any], path: Path) -> None:
    if 'optimizer' not in checkpoint:
        raise UserError(f'{path} holds no state of the optimiser: give --no-resume-opt to start a new one')
    try:
        restore_optimizer(components.optimizer, checkpoint['optimizer'], components.scheduler is not None)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: its optimiser's state does not fit: {error}; give --no-resume-opt") from error
    scaler = components.scaler
    if scaler.state_dict_key in checkpoint and scaler.is_enabled():
        scaler.load_state_dict(checkpoint[scaler.state_dict_key])
    restore_schedule(components.scheduler, checkpoint.get('run', {}).get('scheduler') or {})
