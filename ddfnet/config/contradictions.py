"""Values of a training configuration that contradict each other."""

from collections.abc import Iterator

from ddfnet.config.schema import TrainConfig
from ddfnet.config.values import flag, interval


def contradictions(config: TrainConfig) -> Iterator[str]:
    """What no single field can say of its value, as messages for the user."""
    if not config.data.data_dir and not config.data.dataset:
        yield 'no images to train on: expected DATA_DIR (a folder with train and validation), or --dataset digits'
    yield from _schedule(config)
    yield from _augmentation(config)
    yield from _splits_and_repeats(config)
    yield from _layer_decay(config)
    yield from _first_weights(config)
    yield from _run(config)
    yield from _apex(config)


def _run(config: TrainConfig) -> Iterator[str]:
    run = config.run
    if run.save_images and not run.tensorboard:
        yield '--save-images shows its images in TensorBoard: leave --no-tensorboard out'
    start, epochs = config.schedule.start_epoch, config.schedule.epochs
    if start is not None and start >= epochs + config.schedule.cooldown_epochs + config.schedule.warmup_epochs:
        yield f'--start-epoch: expected fewer than the run has epochs, got {start} with --epochs {epochs}'
    try:
        interval(run.checkpoint_interval)
    except ValueError as error:
        yield f'--checkpoint-interval: {error}'


def _layer_decay(config: TrainConfig) -> Iterator[str]:
    if config.optimizer.layer_decay is not None and config.schedule.sched == 'none':
        yield '--layer-decay acts through the schedule: give --sched constant for an even rate, or leave it out'


def _first_weights(config: TrainConfig) -> Iterator[str]:
    yield from config.model.contradictions()
    if config.model.initial_checkpoint and config.model.pretrained_path:
        yield '--initial-checkpoint and --pretrained-path are both the first weights: leave one of them out'


def _schedule(config: TrainConfig) -> Iterator[str]:
    schedule = config.schedule
    if schedule.sched == 'none':
        return
    if schedule.warmup_epochs >= schedule.epochs and not schedule.warmup_prefix:
        yield (
            f'--warmup-epochs: expected fewer than --epochs ({schedule.epochs}), got {schedule.warmup_epochs}; '
            'lower it (0 is none), or put the warm-up before the schedule with --warmup-prefix'
        )
    if schedule.lr is not None and schedule.min_lr > schedule.lr and schedule.sched not in _WITHOUT_MIN_LR:
        yield (
            f'--min-lr: expected at most the rate of --lr or --lr-base ({schedule.lr:g}), got {schedule.min_lr:g}; '
            'lower it (0 is allowed)'
        )
    if schedule.sched == 'plateau' and schedule.sched_on_updates:
        yield '--sched plateau follows the validation metric, once an epoch: leave --sched-on-updates out'
    if schedule.lr_noise is not None and (
        len(schedule.lr_noise) > 2 or list(schedule.lr_noise) != sorted(schedule.lr_noise)
    ):
        yield f'--lr-noise: expected one share of the schedule, or two in rising order, got {_words(schedule.lr_noise)}'
    if schedule.sched in ('wsd', 'rsqrt'):
        length = schedule.epochs - (0 if schedule.warmup_prefix else schedule.warmup_epochs)
        if schedule.decay_epochs > length:
            yield (
                f'--decay-epochs: expected at most the {length} epochs of --sched {schedule.sched} after the warm-up, '
                f'got {schedule.decay_epochs:g}; below 1 it is a share of them'
            )
    if list(schedule.decay_milestones) != sorted(set(schedule.decay_milestones)):
        yield f'--decay-milestones: expected rising epochs, got {_words(schedule.decay_milestones)}'


def _augmentation(config: TrainConfig) -> Iterator[str]:
    augmentation = config.augmentation
    if augmentation.policy_fault:
        yield f'--aa: {augmentation.policy_fault}'
    for name in ('scale', 'ratio', 'cutmix_minmax'):
        pair = getattr(augmentation, name)
        if pair is not None and pair[0] > pair[1]:
            yield f'{flag(name)}: expected the lesser value first, got {_words(pair)}'
    if augmentation.mixes and config.batch.batch_size % 2:
        yield (
            'mixup and cutmix mix pairs of images: expected an even --batch-size, '
            f'got {config.batch.batch_size}; change it, or leave --mixup and --cutmix at 0'
        )


def _splits_and_repeats(config: TrainConfig) -> Iterator[str]:
    augmentation, data = config.augmentation, config.data
    splits, repeats = augmentation.aug_splits, augmentation.aug_repeats
    streamed = data.streamed
    if splits == 1:
        yield '--aug-splits: expected 0 (off) or at least 2 (one version as it is, the others varied), got 1'
    if splits and augmentation.mixes:
        yield '--aug-splits cannot be used with mixup or cutmix: leave --aug-splits, or --mixup and --cutmix out'
    if splits and repeats:
        yield '--aug-splits and --aug-repeats both repeat images: leave one of them out'
    if splits and augmentation.no_aug:
        yield '--aug-splits varies images, --no-aug does not: leave one of them out'
    if splits and data.no_prefetcher:
        yield '--aug-splits needs the prefetcher: leave --no-prefetcher out'
    if config.loss.jsd_loss and not splits:
        yield '--jsd-loss compares versions of each image: give --aug-splits 3 (at least 2), or leave --jsd-loss out'
    if config.loss.jsd_loss and config.loss.bce_loss:
        yield '--jsd-loss and --bce-loss are two losses: leave one of them out'
    if config.batch_norm.split_bn and not splits:
        yield '--split-bn normalises the splits apart: give --aug-splits 3 (at least 2), or leave --split-bn out'
    if config.batch_norm.split_bn and config.batch_norm.sync_bn:
        yield '--split-bn and --sync-bn change the same layers: leave one of them out'
    if augmentation.resplit and augmentation.reprob == 0:
        yield '--resplit erases less, but --reprob 0 erases nothing: raise --reprob, or leave --resplit out'
    for name, value in (('aug_repeats', repeats), ('aug_splits', splits), ('strict_data', data.strict_data)):
        if value and streamed:
            yield f'{flag(name)} needs images in any order, but {data.dataset} is streamed: leave {flag(name)} out'


def _apex(config: TrainConfig) -> Iterator[str]:
    """What apex's amp cannot do."""
    if not config.precision.amp or config.precision.amp_impl != 'apex':
        return
    if config.precision.amp_dtype == 'bfloat16':
        yield '--amp-impl apex knows float16 alone: leave --amp-dtype bfloat16 out, or --amp-impl apex'
    if config.model.torchcompile:
        yield '--amp-impl apex patches torch, which --torchcompile then cannot trace: leave one of them out'
    device = config.distribution.device
    if device.partition(':')[0] not in ('auto', 'cuda'):
        yield f"--amp-impl apex works on CUDA only, not on {device}: leave it out, for torch's own amp"


def _words(values: tuple[float, ...]) -> str:
    return ' '.join(f'{value:g}' for value in values)


_WITHOUT_MIN_LR = ('step', 'multistep', 'constant')
