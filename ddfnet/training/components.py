"""Builds the parts of a run from its configuration, and finds what a user got wrong before a file is written."""

import dataclasses
import types
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils.model import unwrap_model
from torch.optim import Optimizer

from ddfnet.config import TrainConfig
from ddfnet.config.values import did_you_mean
from ddfnet.data import StreamSettings, TrainLoader, class_names, create_validation_loader, open_dataset
from ddfnet.distributed import Processes
from ddfnet.errors import UserError, first_line
from ddfnet.models.build import check_forward, model_in_chans, resolve_input
from ddfnet.precision import Precision
from ddfnet.seeding import reseed
from ddfnet.training.network import build_network, convert_batch_norm
from ddfnet.training.scaling import LossScaler, create_scaler, import_apex
from ddfnet.training.task import create_task


@dataclass
class Components:
    """The parts of a run, and its configuration with every value resolved."""

    config: TrainConfig
    task: Any  # a timm TrainingTask
    optimizer: Optimizer
    scheduler: Any  # a timm Scheduler, or None
    scaler: LossScaler
    precision: Precision
    train_loader: TrainLoader
    validation_loader: Any
    num_epochs: int  # cool-down and prefixed warm-up included

    @property
    def model(self) -> torch.nn.Module:
        """The model itself, without the wrappers of compilation and of several processes."""
        return unwrap_model(self.task.get_eval_model())

    @property
    def ema_model(self) -> torch.nn.Module | None:
        ema = self.task.get_eval_model(ema=True)
        return None if ema is None else unwrap_model(ema)

    @property
    def trained(self) -> torch.nn.Module:
        """All that the optimiser moves: the model, in feature distillation with its projection."""
        return unwrap_model(self.task.trainable_module)


def build_components(config: TrainConfig, processes: Processes) -> Components:
    """Opens the data and builds everything that a run needs, in every process alike.

    Raises:
        UserError: Data, model, weights or settings do not fit together.
    """
    import_apex(config.precision, processes.device)
    in_chans = model_in_chans(config.model, config.model.model)
    train_set, validation_set = open_datasets(config, in_chans)
    num_classes = _num_classes(config, train_set, validation_set)
    reseed(config.run.seed, 'weights')
    model = build_network(config.model, num_classes, in_chans)
    input_settings = resolve_input(config.model, model, in_chans)
    check_forward(model, input_settings['input_size'], config.batch.batch_size, train=True)
    config = _resolve(config, model.num_classes, input_settings, processes)
    train_loader = TrainLoader(
        train_set, config.data, config.batch, config.augmentation, config.loss, input_settings,
        model.num_classes, config.run.seed, processes,
    )  # fmt: skip
    validation_batch_size = config.batch.validation_batch_size or config.batch.batch_size
    validation_loader = create_validation_loader(
        validation_set, config.data, validation_batch_size, input_settings, processes
    )
    model = convert_batch_norm(model, config, processes)
    precision = Precision(config.precision, processes.device, autocasts=config.precision.amp_impl == 'native')
    task = create_task(config, precision.place(model), precision)
    optimizer = create_optimizer(config, task.trainable_module)
    scheduler, num_epochs = _create_scheduler(config, optimizer, train_loader.updates_per_epoch)
    scaler = create_scaler(config.precision, precision, task.trainable_module, optimizer)
    return Components(
        config, task, optimizer, scheduler, scaler, precision, train_loader, validation_loader, num_epochs
    )


def wrap_for_processes(components: Components, processes: Processes) -> None:
    """Compiles the model, and wraps it for gradient averaging; after the weights and the schedule of a resumed run are
    in place."""
    settings = components.config.model
    if settings.torchcompile:
        components.task.compile(settings.torchcompile, settings.torchcompile_mode)
    if processes.distributed:
        device_ids = [processes.device.index] if processes.device.type == 'cuda' else None
        # From three processes on, sums depend on how gradients lie in buckets. DDP rearranges them after its first
        # step, so a resumed run would differ in the last bits; it does not where it looks for unused parameters.
        components.task.prepare_distributed(
            device_ids=device_ids, find_unused_parameters=processes.world_size > 2 and processes.device.type == 'cpu'
        )


def open_datasets(config: TrainConfig, in_chans: int) -> tuple[Any, Any]:
    """The training and the validation set.

    Raises:
        UserError: One is not there, or their classes differ.
    """
    data = config.data
    if not data.dataset and data.data_dir and Path(data.data_dir).is_file():
        raise UserError(
            f'{data.data_dir} would be both training and validation set: put train.tar and val.tar into a folder, and '
            'give that'
        )
    train_set = open_dataset(
        data, data.train_split, in_chans=in_chans, num_samples=data.train_num_samples, download=data.dataset_download,
        stream=StreamSettings(is_training=True, batch_size=config.batch.batch_size, seed=config.run.seed),
    )  # fmt: skip
    validation_set = open_dataset(
        data, data.val_split, in_chans=in_chans, num_samples=data.val_num_samples, download=data.dataset_download
    )
    train_classes, validation_classes = class_names(train_set), class_names(validation_set)
    if train_classes != validation_classes and not data.class_map:
        different = sorted(set(train_classes or ()) ^ set(validation_classes or ()))
        raise UserError(
            f'training and validation have different classes, so their labels do not agree: {len(train_classes or ())} '
            f'and {len(validation_classes or ())}, only in one of them: {", ".join(different[:5])}; give a --class-map'
        )
    return train_set, validation_set


def _num_classes(config: TrainConfig, *datasets: Any) -> int | None:
    """Classes as configured, else as the data says, else None: the model's."""
    found = [len(names) for names in map(class_names, datasets) if names is not None]
    wanted = config.model.num_classes
    if wanted is not None and found and wanted < max(found):
        raise UserError(f'the data has {max(found)} classes, more than num-classes {wanted}: leave --num-classes out')
    return wanted if wanted is not None else max(found, default=None)


def _resolve(
    config: TrainConfig, num_classes: int, input_settings: dict[str, Any], processes: Processes
) -> TrainConfig:
    """Replaces every value that depended on model, data or processes by what it came to."""
    channels, height, _ = input_settings['input_size']
    resolved_model = dataclasses.replace(
        config.model,
        num_classes=num_classes,
        in_chans=channels,
        img_size=height,
        **{name: input_settings[name] for name in ('mean', 'std', 'interpolation', 'crop_pct')},
    )
    batch = dataclasses.replace(
        config.batch, validation_batch_size=config.batch.validation_batch_size or config.batch.batch_size
    )
    schedule = dataclasses.replace(config.schedule, lr=_learning_rate(config, processes.world_size))
    return dataclasses.replace(config, model=resolved_model, batch=batch, schedule=schedule)


def _learning_rate(config: TrainConfig, world_size: int) -> float:
    """As given, else lr_base scaled from lr_base_size to the images of an optimiser step (arXiv 1706.02677)."""
    schedule = config.schedule
    if schedule.lr is not None:
        return schedule.lr
    images_per_step = config.batch.batch_size * config.batch.grad_accum_steps * world_size
    ratio = images_per_step / schedule.lr_base_size
    adaptive = any(name in config.optimizer.opt.lower() for name in ('ada', 'lamb'))
    scale = schedule.lr_base_scale or ('sqrt' if adaptive else 'linear')
    return schedule.lr_base * (ratio**0.5 if scale == 'sqrt' else ratio)


def create_optimizer(config: TrainConfig, model: torch.nn.Module) -> Optimizer:
    """The optimiser by its timm name, at the learning rate of the configuration.

    Raises:
        UserError: It does not exist, cannot be had here, or does not take what it is given.
    """
    name = config.optimizer.opt
    _check_optimizer_name(name)
    flat = types.SimpleNamespace(**vars(config.optimizer), lr=config.schedule.lr, opt_args=config.optimizer.opt_kwargs)
    try:
        return create_optimizer_v2(model, **optimizer_kwargs(flat))
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'cannot build optimiser {name!r}: {first_line(error)}') from error


def _check_optimizer_name(name: str) -> None:
    """Raises UserError where timm knows no such optimiser, or where the package that has it is not installed."""
    known = [str(known) for known in list_optimizers()]
    base = name.lower().removeprefix('lookahead_')
    if base not in known:
        raise UserError(f'unknown optimiser {name!r}{did_you_mean(name, known)}; timm.optim.list_optimizers() has all')
    for prefix, module, package in _OPTIONAL_OPTIMIZERS:
        if base.startswith(prefix) and find_spec(module) is None:
            raise UserError(
                f'optimiser {name!r} needs {package}, which is not installed: leave {prefix!r} out of its name'
            )


def _create_scheduler(config: TrainConfig, optimizer: Optimizer, updates_per_epoch: int) -> tuple[Any, int]:
    flat = types.SimpleNamespace(**vars(config.schedule), seed=config.run.seed, eval_metric=config.run.eval_metric)
    return create_scheduler_v2(optimizer, **scheduler_kwargs(flat), updates_per_epoch=updates_per_epoch)


_OPTIONAL_OPTIMIZERS = (
    ('fused', 'apex', "NVIDIA's apex"),
    ('bnb', 'bitsandbytes', 'bitsandbytes'),
)  # prefix of their names, module, package
