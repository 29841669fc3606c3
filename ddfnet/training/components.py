"""Builds the parts of a run from its configuration, and finds what a user got wrong before a file is written."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.utils.model import unwrap_model
from torch.optim import Optimizer

from ddfnet.config import TrainConfig, check
from ddfnet.data import StreamSettings, TrainLoader, class_names, create_validation_loader, open_dataset
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.models.build import check_compiler, check_forward, model_in_chans, resolve_input
from ddfnet.precision import Precision
from ddfnet.seeding import reseed
from ddfnet.training.network import build_network, convert_batch_norm
from ddfnet.training.optimization import create_optimizer, create_scheduler, first_learning_rate
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
    check_compiler(config.model.torchcompile, processes.device)
    in_chans = model_in_chans(config.model, config.model.model)
    train_set, validation_set = open_datasets(config, in_chans)
    num_classes = _num_classes(config, train_set, validation_set)
    reseed(config.run.seed, 'weights')
    model = build_network(config.model, num_classes, in_chans)
    input_settings = resolve_input(config.model, model, in_chans)
    check_forward(model, input_settings['input_size'], config.batch.batch_size, train=True)
    config = _resolve(config, model.num_classes, input_settings, processes)
    check(config)
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
    scheduler, num_epochs = create_scheduler(config, optimizer, train_loader.updates_per_epoch)
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
    schedule = dataclasses.replace(config.schedule, lr=first_learning_rate(config, processes.world_size))
    return dataclasses.replace(config, model=resolved_model, batch=batch, schedule=schedule)
