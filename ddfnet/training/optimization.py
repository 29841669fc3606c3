"""Optimiser and learning-rate schedule by configuration (timm's)."""

import types
from importlib.util import find_spec
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, optimizer_kwargs
from timm.scheduler import PlateauLRScheduler, create_scheduler_v2, scheduler_kwargs
from torch.optim import Optimizer

from ddfnet.config import OptimizerConfig, TrainConfig
from ddfnet.config.values import did_you_mean
from ddfnet.errors import UserError, first_line

_OPTIONAL = (('fused', 'apex', "NVIDIA's apex"), ('bnb', 'bitsandbytes', 'bitsandbytes'))  # prefix, module, package
_SETTINGS = ('weight_decay', 'momentum', 'betas', 'eps', 'lr_scale')
_PLATEAU_STATE = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')


def first_learning_rate(config: TrainConfig, world_size: int) -> float:
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
    check_optimizer(config.optimizer)
    flat = types.SimpleNamespace(**vars(config.optimizer), lr=config.schedule.lr, opt_args=config.optimizer.opt_kwargs)
    try:
        optimizer = create_optimizer_v2(model, **optimizer_kwargs(flat))
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'cannot build optimiser {name!r}: {first_line(error)}') from error
    if config.optimizer.layer_decay not in (None, 1.0):
        _check_layers(optimizer, config.model.model)
    return optimizer


def _check_layers(optimizer: Optimizer, model_name: str) -> None:
    if len({group.get('lr_scale') for group in optimizer.param_groups}) == 1:
        raise UserError(f'model {model_name} does not say which layers it has: leave --layer-decay out')


def check_optimizer(config: OptimizerConfig) -> None:
    """Raises UserError where timm knows no such optimiser, it is not installed, or it has not what is set of it."""
    name = config.opt
    known = [str(known) for known in list_optimizers()]
    base = name.lower().removeprefix('lookahead_')
    if base not in known:
        raise UserError(f'unknown optimiser {name!r}{did_you_mean(name, known)}; timm.optim.list_optimizers() has all')
    for prefix, module, package in _OPTIONAL:
        if base.startswith(prefix) and find_spec(module) is None:
            raise UserError(
                f'optimiser {name!r} needs {package}, which is not installed: leave {prefix!r} out of its name'
            )
    info, default = get_optimizer_info(base), OptimizerConfig()
    for flag, has, given in (
        ('--opt-eps', info.has_eps, config.opt_eps is not None),
        ('--opt-betas', info.has_betas, config.opt_betas is not None),
        ('--momentum', info.has_momentum, config.momentum != default.momentum),
    ):
        if given and not has:
            raise UserError(f'{flag} has no effect, since optimiser {name!r} does not take it: leave it out')


def create_scheduler(config: TrainConfig, optimizer: Optimizer, updates_per_epoch: int) -> tuple[Any, int]:
    """timm's scheduler, or None, and the epochs of the run with its cycles, cool-down and prefixed warm-up."""
    flat = types.SimpleNamespace(**vars(config.schedule), seed=config.run.seed, eval_metric=config.run.eval_metric)
    return create_scheduler_v2(optimizer, **scheduler_kwargs(flat), updates_per_epoch=updates_per_epoch)


def learning_rate(optimizer: Optimizer) -> float:
    """The schedule's current rate; layer decay has each group train at a share of it."""
    group = optimizer.param_groups[0]
    return group['lr'] / group.get('lr_scale', 1.0)


def restore_optimizer(optimizer: Optimizer, state: dict[str, Any], scheduled: bool) -> None:
    """Loads what the optimiser remembers; what it was set to stays as it is now, the rate too unless it is scheduled.

    Raises:
        KeyError, ValueError: The state is that of another optimiser.
    """
    settings = _SETTINGS if scheduled else (*_SETTINGS, 'lr')
    now = [{name: group[name] for name in settings if name in group} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, now):
        group.update(own)


def schedule_state(scheduler: Any) -> dict[str, Any]:
    """What a schedule remembers beside the counts of epochs and steps: one that follows the metric, and only that."""
    if not isinstance(scheduler, PlateauLRScheduler):
        return {}
    inner = scheduler.lr_scheduler
    return {'restore_lr': scheduler.restore_lr, **{name: getattr(inner, name) for name in _PLATEAU_STATE}}


def restore_schedule(scheduler: Any, state: dict[str, Any]) -> None:
    """Loads what schedule_state gave."""
    if isinstance(scheduler, PlateauLRScheduler):
        scheduler.restore_lr = state.get('restore_lr')
        for name in _PLATEAU_STATE:
            setattr(scheduler.lr_scheduler, name, state.get(name, getattr(scheduler.lr_scheduler, name)))
