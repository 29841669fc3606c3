"""The command `train.py`: the order of a run."""

import contextlib
import copy
import dataclasses
import logging
import math
import sys

from timm.utils import distribute_bn

from ddfnet.config import TrainConfig, load_train_config
from ddfnet.config.unused import remark_on_average, remarks
from ddfnet.counting import count_params
from ddfnet.data import stop_workers
from ddfnet.distributed import Processes, start_processes, stop_processes
from ddfnet.errors import UserError, command
from ddfnet.evaluation import evaluate
from ddfnet.training.checkpoint import Best, restore_run, save_epoch
from ddfnet.training.components import Components, build_components, wrap_for_processes
from ddfnet.training.dry_run import dry_run, repeatable
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.monitor import Monitor
from ddfnet.training.optimization import first_learning_rate, learning_rate
from ddfnet.training.pauses import Pauses
from ddfnet.training.run_directory import RunDirectory, plan_for_all
from ddfnet.training.stopping import stop_request

_logger = logging.getLogger('ddfnet')


@command
def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    logging.basicConfig(format='%(message)s', stream=sys.stdout)
    _logger.setLevel(logging.INFO)
    train(load_train_config(argv))


def train(config: TrainConfig) -> None:
    """A run from its configuration to its last checkpoint, in as many processes as a launcher started.

    Raises:
        UserError: A mistake in the configuration or the data, before anything is written; or a loss that is no number.
    """
    distribution = config.distribution
    processes = start_processes(distribution.device, distribution.dist_backend, distribution.dist_timeout)
    components = None
    try:
        if processes.is_primary:
            device = dataclasses.replace(distribution, device=processes.device.type)
            here = dataclasses.replace(config, distribution=device)
            for remark in remarks(here, first_learning_rate(config, processes.world_size)):
                print(f'warning: {remark}', file=sys.stderr)
        components = build_components(config, processes)
        steps = components.num_epochs * components.train_loader.updates_per_epoch
        if processes.is_primary and (on_average := remark_on_average(config, steps)):
            print(f'warning: {on_average}', file=sys.stderr)
        if config.run.dry_run:
            dry_run(components, processes)
            return
        directory, progress, best = _start(components, processes)
        if progress.epoch >= components.num_epochs:
            if not directory.last.is_file():
                raise UserError(
                    f'nothing to train: the run would start at epoch {progress.epoch}, but has {components.num_epochs} '
                    'epochs: give more --epochs'
                )
            if processes.is_primary:
                _logger.info(f'finished: {directory.path} has all its {components.num_epochs} epochs')
            return
        wrap_for_processes(components, processes)
        with stop_request(processes) as request:
            pauses = Pauses(components, progress, best, directory, processes, request)
            _fit(components, progress, best, directory, processes, pauses)
    finally:
        if components is not None:
            stop_workers(components.train_loader.loader)
            stop_workers(components.validation_loader)
        stop_processes()


def _start(components: Components, processes: Processes) -> tuple[RunDirectory, Progress, Best]:
    """Settles the run folder in one process for all, restores the state there is, and makes the folder."""
    directory, checkpoint = plan_for_all(components.config, processes)
    progress, best = restore_run(components, checkpoint, processes) if checkpoint else (Progress(), Best())
    if components.config.schedule.start_epoch is not None:
        progress.start_epoch(components.config.schedule.start_epoch)
        progress.updates = progress.epoch * components.train_loader.updates_per_epoch
    if progress.updates > 0:
        _advance_schedule(components, progress, metric=None)
    if processes.is_primary and progress.epoch < components.num_epochs:
        _create(directory, components)
        if checkpoint:
            _logger.info(f'going on from {checkpoint} at epoch {progress.epoch}, step {progress.step}')
    return directory, progress, best


def _create(directory: RunDirectory, components: Components) -> None:
    config = components.config
    directory.create(repeatable(config))
    parameters = count_params(components.model)
    _logger.info(
        f'{config.model.model}: {parameters / 1e6:.2f} M parameters, {components.train_loader.updates_per_epoch} steps '
        f'per epoch, {components.num_epochs} epochs, lr {config.schedule.lr:g}, into {directory.path}'
    )


def _fit(
    components: Components,
    progress: Progress,
    best: Best,
    directory: RunDirectory,
    processes: Processes,
    pauses: Pauses,
) -> None:
    config = components.config
    with contextlib.ExitStack() as stack:
        monitor = None
        if processes.is_primary:
            monitor = Monitor(components, progress, directory, processes)
            stack.callback(lambda: monitor.close(finished=progress.epoch >= components.num_epochs))
        _run_epochs(components, progress, best, directory, processes, pauses, monitor)
    if processes.is_primary:
        if best.metric is not None:
            _logger.info(f'best {_ranked_metric(config)} {best.metric:.4f} in epoch {best.epoch}: {directory.best}')
        _logger.info(f'curves: {directory.curves}; TensorBoard: tensorboard --logdir {directory.path}')


def _run_epochs(
    components: Components,
    progress: Progress,
    best: Best,
    directory: RunDirectory,
    processes: Processes,
    pauses: Pauses,
    monitor: Monitor | None,
) -> None:
    config = components.config
    while progress.epoch < components.num_epochs:
        if monitor:
            monitor.start_epoch(progress)
        if progress.step == 0:
            progress.lr = learning_rate(components.optimizer)
        lr = progress.lr
        trained_before = components.train_loader.updates_left(progress.position) == 0  # and stopped in its validation
        with monitor.pictures(training=True) if monitor else contextlib.nullcontext():
            loss = train_epoch(components, progress, processes, monitor.step if monitor else None, pauses.after_step)
        top1, nonfinite = progress.top1, progress.nonfinite
        replaced = components.train_loader.count_replaced(processes)
        if not math.isfinite(loss):
            raise UserError(
                f'the training loss became {loss} in epoch {progress.epoch}, which was not saved: lower --lr, or limit '
                'the gradients with --clip-grad'
            )
        if processes.distributed and config.batch_norm.dist_bn and not trained_before:
            for model in filter(None, (components.model, components.ema_model)):
                distribute_bn(model, processes.world_size, config.batch_norm.dist_bn == 'reduce')
        with monitor.pictures(training=False) if monitor else contextlib.nullcontext():
            metrics = _validate(components, progress, processes, pauses)
        metric = metrics.get(_ranked_metric(config))
        progress.start_epoch(progress.epoch + 1)
        _advance_schedule(components, progress, metric)
        if monitor:
            save_epoch(components, progress, best, directory, metric)
            more = {'train/top1': top1, 'train/nonfinite': nonfinite, 'train/replaced': replaced}
            monitor.end_epoch({'train/loss': loss, 'train/lr': lr, **metrics, **more})
        if progress.epoch < components.num_epochs:
            pauses.after_epoch()


def _ranked_metric(config: TrainConfig) -> str:
    """The metric that checkpoints are ranked by: that of the average (EMA) where there is one."""
    return f'{"ema" if config.ema.model_ema else "validation"}/{config.run.eval_metric}'


def _advance_schedule(components: Components, progress: Progress, metric: float | None) -> None:
    scheduler = components.scheduler
    if scheduler is None:
        return
    scheduler.step_update(progress.updates)
    scheduler.step(progress.epoch, metric)


def _validate(components: Components, progress: Progress, processes: Processes, pauses: Pauses) -> dict[str, float]:
    """Metrics of the model, and of its average where there is one, at the end of every val_interval-th epoch."""
    epoch = progress.epoch + 1
    if epoch % components.config.run.val_interval and epoch != components.num_epochs:
        return {}
    pauses.before_validation()
    metrics: dict[str, float] = {}
    average = components.ema_model
    if average is not None and components.config.ema.model_ema_force_cpu and processes.device.type != 'cpu':
        average = components.precision.place(copy.deepcopy(average))  # for as long as it is validated
    models = {'validation': components.model, 'ema': average}
    for name, model in models.items():
        if model is not None:
            found = evaluate(
                model, components.validation_loader, components.precision, processes, on_batch=pauses.in_validation
            )
            metrics |= {f'{name}/{key}': found[key] for key in ('loss', 'top1', 'top5')}
    return metrics
