"""What is minimised: the loss of a model, alone or beside a teacher (timm's tasks)."""

import dataclasses
from typing import Any

import torch
from timm.task import ClassificationTask, FeatureDistillationTask, LogitDistillationTask
from timm.task.task import TrainingTask

from ddfnet.checkpoints import checkpoint_settings, load_weights, read_checkpoint
from ddfnet.config import TrainConfig
from ddfnet.errors import UserError
from ddfnet.models.build import build_model, check_forward, resolve_input
from ddfnet.precision import Precision


def create_task(config: TrainConfig, model: Any, precision: Precision) -> Any:
    """The task for a model that is on its device, with its average where that is wanted.

    Args:
        config: With the input of the model resolved.

    Raises:
        UserError: No such teacher, or one that does not take the student's images.
    """
    common: dict[str, Any] = {
        'criterion_kwargs': _criterion(config), 'device': precision.device, 'dtype': precision.model_dtype,
        'verbose': False,
    }  # fmt: skip
    task: TrainingTask
    if config.loss.kd_model_name is None:
        task = ClassificationTask(model, **common)
    else:
        task = _distillation(config, model, precision, common)
    if config.ema.model_ema:
        place = torch.device('cpu') if config.ema.model_ema_force_cpu else None
        task.setup_ema(decay=config.ema.model_ema_decay, use_warmup=config.ema.model_ema_warmup, device=place)
    return task


def _criterion(config: TrainConfig) -> dict[str, Any]:
    """Arguments of timm's create_classification_loss."""
    loss = config.loss
    settings: dict[str, Any] = {'smoothing': loss.smoothing, 'soft_targets': config.augmentation.mixes}
    if loss.bce_loss:
        settings |= {
            'loss_type': 'bce', 'bce_sum': loss.bce_sum, 'bce_target_thresh': loss.bce_target_thresh,
            'pos_weight': loss.bce_pos_weight,
        }  # fmt: skip
    elif loss.jsd_loss:
        settings |= {'loss_type': 'jsd', 'jsd_splits': config.augmentation.aug_splits}
    return settings


def _distillation(config: TrainConfig, model: Any, precision: Precision, common: dict[str, Any]) -> TrainingTask:
    loss = config.loss
    common |= {'distill_loss_weight': loss.distill_loss_weight, 'task_loss_weight': loss.task_loss_weight}
    built, normalisation = _teacher(config, model)
    teacher: Any = precision.place(built.requires_grad_(False))
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **normalisation}
    model.pretrained_cfg = {**model.pretrained_cfg, 'mean': config.model.mean, 'std': config.model.std}
    try:
        if loss.kd_distill_type == 'feature':
            return FeatureDistillationTask(model, teacher, **common)
        return LogitDistillationTask(
            model, teacher, loss_type=loss.kd_loss_type, temperature=loss.kd_temperature, **common
        )
    except ValueError as error:
        raise UserError(f'cannot distil {loss.kd_model_name!r}: {error}') from error


def _teacher(config: TrainConfig, student: Any) -> tuple[Any, dict[str, Any]]:
    """The teacher, with the student's classes and channels, and the mean and std that its images were normalised by."""
    name, path = str(config.loss.kd_model_name), config.loss.kd_checkpoint
    checkpoint = read_checkpoint(path) if path else {}
    settings = checkpoint_settings(checkpoint)
    source = dataclasses.replace(
        config.model, pretrained=not path, pretrained_path='', model_kwargs=settings.get('model_kwargs') or {},
        gp=settings.get('gp'), mean=settings.get('mean'), std=settings.get('std'),
    )  # fmt: skip
    in_chans = config.model.in_chans or student.in_chans
    teacher = build_model(source, name, student.num_classes, in_chans)
    if path:
        load_weights(teacher, checkpoint, path)
    resolved = resolve_input(source, teacher, in_chans)
    check_forward(teacher, (in_chans, *resolved['input_size'][1:]), 2, train=False)
    return teacher, {key: resolved[key] for key in ('mean', 'std')}
