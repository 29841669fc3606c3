"""Flags of a training run that do nothing: those that would mislead are mistakes, of the others a line is said."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ddfnet.config.schema import TrainConfig, values_of
from ddfnet.config.values import flag


class _Rule(NamedTuple):
    """Flags whose effect depends on a condition; `reason` names it to the user."""

    names: tuple[str, ...]
    holds: Callable[[TrainConfig], bool]
    reason: str


def unused(config: TrainConfig) -> Iterator[str]:
    """Flags that differ from their defaults but do nothing without another one, as messages for the user."""
    given = _given(config)
    for names, holds, needed in _NEEDS:
        for name in names:
            if name in given and not holds(config):
                yield f'{flag(name)} has no effect without {needed}: add that, or leave {flag(name)} out'


def remarks(config: TrainConfig, rate: float | None = None) -> Iterator[str]:
    """What a user may not expect of a configuration that is right, each in one line.

    Args:
        rate: The learning rate that the run comes to where --lr does not give it.
    """
    asked_for = {name for name, value in _given(config).items() if value}
    for names, holds, reason in _IDLE:
        for name in names:
            if name in asked_for and holds(config):
                yield f'{flag(name)} has no effect {reason}'
    for name, schedules in _OF_SCHEDULES.items():
        if name in asked_for and config.schedule.sched not in schedules:
            yield f'{flag(name)} has no effect with --sched {config.schedule.sched}'
    yield from _rates_that_do_not_come(config, config.schedule.lr or rate)
    yield from _weights_in_half_precision(config)
    if config.data.train_split == config.data.val_split:
        yield f'training and validation both read the split {config.data.val_split!r}'


def remark_on_average(config: TrainConfig, updates: int) -> str | None:
    """What a user may not expect of an average (EMA) that has so many optimiser steps to forget the first weights."""
    ema = config.ema
    decay = ema.model_ema_decay
    kept = decay**updates
    if not ema.model_ema or ema.model_ema_warmup or kept < _KEPT_OF_THE_START:
        return None
    return (
        f'--model-ema-decay {decay:g} leaves {100 * kept:.0f} % of the first weights in the average after '
        f'the {updates} optimiser steps of the run: lower it, or add --model-ema-warmup'
    )


def _rates_that_do_not_come(config: TrainConfig, rate: float | None) -> Iterator[str]:
    schedule = config.schedule
    if schedule.sched == 'step' and schedule.decay_epochs >= schedule.epochs:
        yield f'the rate never decays: --decay-epochs {schedule.decay_epochs:g} of --epochs {schedule.epochs}'
    late = [epoch for epoch in schedule.decay_milestones if epoch >= schedule.epochs]
    if schedule.sched == 'multistep' and late:
        yield f'--decay-milestones {" ".join(map(str, late))} come after the last epoch'
    warms_up = schedule.warmup_epochs > 0 and schedule.sched != 'none'
    if warms_up and rate is not None and schedule.warmup_lr > rate:
        yield f'the rate falls in the warm-up: --warmup-lr {schedule.warmup_lr:g} is above the rate, {rate:g}'


def _weights_in_half_precision(config: TrainConfig) -> Iterator[str]:
    dtype = config.precision.model_dtype
    if dtype == 'float16':
        yield '--model-dtype float16 scales no loss, so that small gradients become 0: bfloat16 is safer'
    if dtype in ('float16', 'bfloat16') and config.ema.model_ema:
        yield f'--model-ema keeps its average in {dtype} too, which rounds small moves away'


def _given(config: TrainConfig) -> dict[str, Any]:
    """Values that differ from their defaults."""
    defaults = values_of(TrainConfig())
    return {name: value for name, value in values_of(config).items() if value != defaults[name]}


def _distils(config: TrainConfig) -> bool:
    return config.loss.kd_model_name is not None


def _mixes_twice(config: TrainConfig) -> bool:
    augmentation = config.augmentation
    return augmentation.mixup > 0 and (augmentation.cutmix > 0 or augmentation.cutmix_minmax is not None)


def _never_stops_mixing(config: TrainConfig) -> bool:
    schedule = config.schedule
    return config.augmentation.mixup_off_epoch >= schedule.epochs + schedule.cooldown_epochs + schedule.warmup_epochs


def _resumes_a_file(config: TrainConfig) -> bool:
    return config.run.resume not in ('', 'auto')


_KEPT_OF_THE_START = 0.05
_NEEDS = (  # no effect unless the condition holds
    _Rule(('bce_sum', 'bce_target_thresh', 'bce_pos_weight'), lambda config: config.loss.bce_loss, '--bce-loss'),
    _Rule(
        ('kd_checkpoint', 'distill_loss_weight', 'task_loss_weight', 'kd_distill_type', 'kd_temperature'),
        _distils,
        '--kd-model-name NAME',
    ),
    _Rule(('clip_mode',), lambda config: config.optimizer.clip_grad is not None, '--clip-grad LIMIT'),
    _Rule(
        ('model_ema_decay', 'model_ema_warmup', 'model_ema_force_cpu'),
        lambda config: config.ema.model_ema,
        '--model-ema',
    ),
    _Rule(
        ('mixup_prob', 'mixup_switch_prob', 'mixup_mode', 'mixup_off_epoch'),
        lambda config: config.augmentation.mixes,
        '--mixup or --cutmix',
    ),
    _Rule(('lr_noise_pct', 'lr_noise_std'), lambda config: config.schedule.lr_noise is not None, '--lr-noise'),
    _Rule(('amp_impl',), lambda config: config.precision.amp, '--amp'),
    _Rule(('torchcompile_mode',), lambda config: bool(config.model.torchcompile), '--torchcompile inductor'),
    _Rule(('no_resume_opt',), lambda config: bool(config.run.resume), '--resume'),
)
_NOT_DECAYING_TO_A_LEAST_RATE = ('step', 'multistep', 'constant', 'none')
_CYCLIC = ('cosine', 'tanh', 'poly')
_OF_SCHEDULES = {
    'decay_epochs': ('step', 'wsd', 'rsqrt'),
    'decay_milestones': ('multistep',),
    'decay_rate': ('step', 'multistep', 'plateau', 'poly'),
    'patience_epochs': ('plateau',),
    'lr_cycle_mul': _CYCLIC,
    'lr_cycle_decay': _CYCLIC,
    'lr_cycle_limit': _CYCLIC,
    'cooldown_epochs': (*_CYCLIC, 'wsd', 'rsqrt'),
    'lr_k_decay': ('cosine', 'poly'),
    'min_lr': (*_CYCLIC, 'plateau', 'wsd', 'rsqrt'),
}
_IDLE = (  # no effect while the condition holds
    _Rule(
        ('warmup_epochs', 'warmup_lr', 'warmup_prefix', 'lr_noise', 'sched_on_updates'),
        lambda config: config.schedule.sched == 'none',
        'with --sched none',
    ),
    _Rule(('warmup_prefix',), lambda config: config.schedule.sched == 'plateau', 'with --sched plateau'),
    _Rule(
        ('warmup_lr', 'warmup_prefix'),
        lambda config: config.schedule.warmup_epochs == 0,
        'with --warmup-epochs 0',
    ),
    _Rule(
        ('lr_base', 'lr_base_size', 'lr_base_scale'),
        lambda config: config.schedule.lr is not None,
        'beside --lr',
    ),
    _Rule(
        (
            'train_crop_mode',
            'scale',
            'ratio',
            'hflip',
            'vflip',
            'color_jitter',
            'color_jitter_prob',
            'grayscale_prob',
            'gaussian_blur_prob',
            'aa',
        ),
        lambda config: config.augmentation.no_aug,
        'with --no-aug',
    ),
    _Rule(
        ('color_jitter', 'color_jitter_prob'),
        lambda config: bool(config.augmentation.aa) and '3a' not in str(config.augmentation.aa),
        'where --aa is on: its policy jitters colours itself (--aa none, or 3a)',
    ),
    _Rule(('remode', 'recount'), lambda config: config.augmentation.reprob == 0, 'with --reprob 0'),
    _Rule(
        ('mixup_switch_prob',),
        lambda config: not _mixes_twice(config),
        'where only one of --mixup and --cutmix is on',
    ),
    _Rule(('cutmix',), lambda config: config.augmentation.cutmix_minmax is not None, 'with --cutmix-minmax'),
    _Rule(('mixup_off_epoch',), _never_stops_mixing, 'after the last epoch'),
    _Rule(
        ('kd_temperature',),
        lambda config: config.loss.kd_distill_type == 'feature',
        'with --kd-distill-type feature',
    ),
    _Rule(('layer_decay',), lambda config: config.optimizer.layer_decay == 1.0, 'where it is 1'),
    _Rule(
        ('bce_loss', 'jsd_loss', 'smoothing'),
        lambda config: config.loss.task_loss_weight == 0.0,
        'with --task-loss-weight 0',
    ),
    _Rule(
        ('kd_model_name', 'kd_checkpoint', 'kd_temperature'),
        lambda config: config.loss.distill_loss_weight == 0.0,
        'with --distill-loss-weight 0',
    ),
    _Rule(
        ('pretrained',),
        lambda config: bool(config.model.initial_checkpoint),
        'with --initial-checkpoint, which gives all weights',
    ),
    _Rule(
        ('pretrained', 'pretrained_path', 'initial_checkpoint'),
        _resumes_a_file,
        'with --resume: the weights are those of the run that goes on',
    ),
    _Rule(
        ('data_dir', 'class_map', 'input_img_mode', 'input_key', 'target_key', 'dataset_download'),
        lambda config: config.data.dataset == 'digits',
        'with --dataset digits, which is built in',
    ),
    _Rule(
        ('pin_mem', 'tf32', 'synchronize_step', 'model_ema_force_cpu'),
        lambda config: config.distribution.device == 'cpu',
        'on the CPU',
    ),
    _Rule(('dataset_download',), lambda config: not config.data.dataset, 'on a folder'),
)
