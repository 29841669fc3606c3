"""How and where a run computes, and what it leaves behind."""

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from ddfnet.config.values import Bounds, Count, Positive, Whole

Seed = Annotated[int, Bounds(0, 2**32 - 1)]


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Number formats and memory layout."""

    amp: bool = False
    """Compute in a lower precision where that is safe (automatic mixed precision); weights stay in float32."""
    amp_dtype: Literal['auto', 'float16', 'bfloat16'] = 'auto'
    """Lower precision of amp; auto is float16 on CUDA, bfloat16 on the CPU."""
    model_dtype: Literal['float32', 'float16', 'bfloat16'] | None = None
    """Number format of weights and images, without amp; none is float32."""
    channels_last: bool = False
    """Keep channels last in memory (NHWC)."""
    tf32: bool = False
    """Let CUDA multiply float32 matrices and convolve in TF32: faster, 10 bits of mantissa."""
    deterministic: bool = False
    """Use deterministic algorithms alone, where torch has them: slower, the same bits from run to run."""


@dataclasses.dataclass(frozen=True)
class TrainPrecisionConfig(PrecisionConfig):
    """Number formats and memory layout."""

    amp_impl: Literal['native', 'apex'] = 'native'
    """Amp of torch, or of an NVIDIA apex from before 25.07, at its level O1: float16 on CUDA alone."""
    native_amp: bool = False
    """Old spelling of --amp --amp-impl native."""
    apex_amp: bool = False
    """Old spelling of --amp --amp-impl apex."""

    def without_old_spellings(self) -> 'TrainPrecisionConfig':
        """The same, said by amp and amp_impl. With both old spellings apex is meant, as in timm's script."""
        if not (self.native_amp or self.apex_amp):
            return self
        impl: Literal['native', 'apex'] = 'apex' if self.apex_amp else 'native'
        return dataclasses.replace(self, amp=True, amp_impl=impl, native_amp=False, apex_amp=False)


@dataclasses.dataclass(frozen=True)
class BatchNormConfig:
    """Batch normalisation across processes."""

    dist_bn: Literal['', 'reduce', 'broadcast'] = 'reduce'
    """After each epoch average the running statistics of all processes, take the first one's, or leave them."""
    sync_bn: bool = False
    """Normalise over the batches of all processes; accelerators only."""
    split_bn: bool = False
    """Normalise each augmentation split by statistics of its own; the first one's serve validation."""


@dataclasses.dataclass(frozen=True)
class EmaConfig:
    """Exponential moving average of the weights."""

    model_ema: bool = False
    """Keep an average of the weights and validate it too."""
    model_ema_decay: Annotated[float, Bounds(0, 1, low_open=True, high_open=True)] = 0.9998
    """Share of the average that stays at each optimiser step."""
    model_ema_warmup: bool = False
    """Let the share rise to its value at the start of a run."""
    model_ema_force_cpu: bool = False
    """Keep the average on the CPU: spares memory of the accelerator, which it then waits for at every step."""


@dataclasses.dataclass(frozen=True)
class DistributionConfig:
    """Device and processes."""

    device: str = 'auto'
    """Device, such as cuda, cuda:1, mps or cpu; auto takes the best there is. Several processes take a GPU each."""
    dist_backend: str | None = None
    """Communication between processes; none takes nccl on CUDA, gloo on the CPU."""
    dist_timeout: Positive | None = 10.0
    """Minutes after which a process that waits for the others gives up; none keeps torch's (nccl 10, gloo 30)."""
    synchronize_step: bool = False
    """Wait for the accelerator after every optimiser step."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What a run leaves behind and where it starts."""

    output: str = 'output/train'
    """Folder that holds the folders of runs."""
    experiment: str = ''
    """Name of the run's folder; empty makes one of date, model and image size."""
    seed: Seed = 42
    """Seed of every random number."""
    log_interval: Count = 50
    """Optimiser steps between lines of progress; an epoch's last step has one too."""
    val_interval: Count = 1
    """Validate after every so many epochs, and after the last."""
    checkpoint_hist: Whole = 10
    """Keep the checkpoints of so many epochs, the best ones, beside the last and the best."""
    checkpoint_interval: Annotated[str, arg(aliases=['--recovery-interval'])] = '0'
    """Save within epochs too: every so many optimiser steps (300) or minutes (10m); 0 saves after epochs alone."""
    resume: str = ''
    """Checkpoint to go on from, or auto for the run folder's last one."""
    no_resume_opt: Annotated[bool, arg(name='resume-opt')] = False
    """Go on with the checkpoint's state of the optimiser too; off starts a new one."""
    eval_metric: Literal['top1', 'top5', 'loss'] = 'top1'
    """Validation metric that decides which checkpoint is best; of the average of the weights where there is one."""
    max_nonfinite: Count = 10
    """Stop after so many optimiser steps in a row whose gradients were no finite numbers; none of them is applied."""
    tensorboard: bool = True
    """Write TensorBoard events."""
    save_images: bool = False
    """Show augmented images and spatial filters in TensorBoard, at about ten epochs of a run."""
    dry_run: bool = False
    """Print what would run, try one optimiser step, and stop; nothing is written."""
