"""What is minimised and how: loss, optimiser, learning-rate schedule."""

import dataclasses
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ddfnet.config.values import BelowOne, Count, NonNegative, Positive, Probability, UpToOne, Whole


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Optimiser and clipping of gradients."""

    opt: str = 'sgd'
    """Optimiser, by its timm name; sgd has Nesterov momentum."""
    opt_eps: Positive | None = None
    """The optimiser's epsilon; none keeps its own."""
    opt_betas: tuple[BelowOne, ...] | None = None
    """The optimiser's betas; none keeps its own."""
    momentum: BelowOne = 0.9
    """Momentum, of optimisers that take it."""
    weight_decay: NonNegative = 1e-4
    """Weight decay; biases, one-dimensional weights and what the model names are spared."""
    clip_grad: Positive | None = None
    """Limit of the gradients of a step; none does not clip."""
    clip_mode: Literal['norm', 'value', 'agc'] = 'norm'
    """What is limited: the total norm, each value, or each unit's norm relative to its weights."""
    layer_decay: UpToOne | None = None
    """Factor of the learning rate from each group of layers to the one before it, through the schedule."""
    opt_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the optimiser."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Learning rate over the run; lengths are in epochs."""

    epochs: Count = 120
    """Epochs of the schedule, or of its first cycle; cool-down and prefixed warm-up come on top."""
    start_epoch: Whole | None = None
    """Epoch to start counting from; none starts at 0 or where a resumed run stopped."""
    sched: Literal['cosine', 'tanh', 'step', 'multistep', 'plateau', 'poly', 'wsd', 'rsqrt', 'constant', 'none'] = (
        'cosine'
    )
    """Schedule, by its timm name."""
    sched_on_updates: bool = False
    """Advance the schedule at every optimiser step rather than every epoch."""
    lr: Positive | None = None
    """Learning rate; none computes it from the next three and the images per optimiser step."""
    lr_base: Positive = 0.1
    """Learning rate for lr-base-size images per optimiser step."""
    lr_base_size: Count = 256
    """Images per optimiser step that lr-base is meant for."""
    lr_base_scale: Literal['', 'linear', 'sqrt'] = ''
    """How the rate follows the images per step; empty is sqrt for optimisers named ada... or lamb, else linear."""
    warmup_epochs: Whole = 5
    """Epochs in which the rate rises from warmup-lr to lr."""
    warmup_lr: NonNegative = 1e-4
    """Learning rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Put the warm-up before the schedule rather than inside it."""
    cooldown_epochs: Whole = 10
    """Epochs at min-lr after the schedule (cosine, tanh, poly, wsd, rsqrt)."""
    min_lr: NonNegative = 1e-5
    """Lowest learning rate of the schedule (not step, multistep, constant)."""
    decay_epochs: Positive = 30.0
    """Epochs between decays (step), or length of the decay, below 1 as a share of what follows warm-up (wsd, rsqrt)."""
    decay_milestones: tuple[Count, ...] = (90, 180, 270)
    """Epochs at which the rate decays (multistep)."""
    decay_rate: Annotated[Positive, arg(aliases=['--dr'])] = 0.1
    """Factor of a decay (step, multistep, plateau); the power (poly)."""
    patience_epochs: Whole = 10
    """Epochs without a better metric before a decay (plateau)."""
    lr_cycle_mul: Positive = 1.0
    """Factor of the length from one cycle to the next (cosine, tanh, poly)."""
    lr_cycle_decay: Positive = 0.5
    """Factor of the rate from one cycle to the next (cosine, tanh, poly)."""
    lr_cycle_limit: Count = 1
    """Number of cycles (cosine, tanh, poly)."""
    lr_k_decay: Positive = 1.0
    """Exponent of k-decay (cosine, poly); 1 is the plain schedule."""
    lr_noise: tuple[Probability, ...] | None = None
    """Share of the schedule from which on, or between which two, the rate gets noise."""
    lr_noise_pct: NonNegative = 0.67
    """Limit of the noise as a share of the rate."""
    lr_noise_std: NonNegative = 1.0
    """Standard deviation of the noise as a share of the rate."""


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Loss."""

    smoothing: BelowOne = 0.1
    """Label smoothing."""
    bce_loss: bool = False
    """Binary cross-entropy per class in place of cross-entropy."""
    bce_sum: bool = False
    """Sum the binary cross-entropy over classes rather than average it."""
    bce_target_thresh: Probability | None = None
    """Targets above this become 1, others 0, in binary cross-entropy."""
    kd_model_name: str | None = None
    """Teacher to distil, by its timm name, with its published weights or those of kd-checkpoint; none distils none."""
    kd_checkpoint: str = ''
    """Checkpoint file with the teacher's weights."""
    kd_distill_type: Literal['logit', 'feature'] = 'logit'
    """What is matched: the outputs, or the pooled features before the classifier."""
    kd_loss_type: Literal['kl'] = 'kl'
    """Loss between the outputs."""
    distill_loss_weight: NonNegative | None = None
    """Weight of the teacher's loss; none is 1, or 1 minus task-loss-weight where that is given."""
    task_loss_weight: NonNegative | None = None
    """Weight of the labels' loss; none is 1."""
    kd_temperature: Positive = 4.0
    """Temperature of the outputs that are matched (logit)."""
    bce_pos_weight: Positive | None = None
    """Weight of the positive targets in binary cross-entropy."""
    jsd_loss: bool = False
    """Cross-entropy of the clean images, and the Jensen-Shannon divergence between the aug-splits (AugMix)."""
