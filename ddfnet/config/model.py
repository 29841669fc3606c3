"""The network, its weights and the images it takes."""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from tyro.conf import arg

from ddfnet.config.values import BelowOne, Count, Positive, UpToOne

Interpolation = Literal['', 'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos']


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A timm model and its input; training and validation share it."""

    model: str | None = None
    """Name of the model."""
    pretrained: bool = False
    """Start from the published weights, where there are any."""
    pretrained_path: str = ''
    """Checkpoint file to take in their place, adapted to in-chans; training starts a new classifier on it."""
    num_classes: Count | None = None
    """Classes; none takes them from the data where it says, else from the model."""
    gp: str | None = None
    """Global pooling before the classifier, such as avg, max, avgmax; none keeps the model's."""
    in_chans: Count | None = None
    """Channels of an image; none keeps the model's."""
    img_size: Count | None = None
    """Side of the square input in pixels; none keeps the model's."""
    input_size: tuple[Count, Count, Count] | None = None
    """Channels, height and width of the input, in the place of in-chans and img-size."""
    crop_pct: UpToOne | None = None
    """Share of the resized image that validation crops; none keeps the model's."""
    mean: tuple[float, ...] | None = None
    """Mean per channel of images scaled to [0, 1]; one value serves all channels."""
    std: tuple[Positive, ...] | None = None
    """Standard deviation per channel of images scaled to [0, 1]; one value serves all channels."""
    interpolation: Interpolation = ''
    """Interpolation that resizes validation images; empty keeps the model's."""
    model_kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Further arguments of the model."""
    torchcompile: str | None = None
    """Compile the model with this back end of torch.compile; --torchcompile alone is inductor."""
    torchcompile_mode: Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs'] | None = None
    """Mode of that compilation."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, once in_chans and img_size are resolved."""
        return self.input_size or (self.in_chans or 3, self.img_size or 0, self.img_size or 0)

    def contradictions(self) -> Iterator[str]:
        """What no single field can say of its value, as messages for the user."""
        if self.input_size is not None:
            channels, height, _ = self.input_size
            for name, value, given in (('in-chans', channels, self.in_chans), ('img-size', height, self.img_size)):
                if given not in (None, value):
                    yield f'--input-size gives {value} where --{name} gives {given}: leave one of them out'
        if self.pretrained and self.pretrained_path:
            yield '--pretrained-path takes the place of published weights: leave --pretrained out'
        if self.torchcompile_mode is not None and self.torchcompile not in (None, 'inductor'):
            yield f'--torchcompile-mode is for --torchcompile inductor, got {self.torchcompile}: leave the mode out'


@dataclasses.dataclass(frozen=True)
class ModelConfig(ModelSource):
    """The network to train and its input."""

    model: str = 'ddf_mul_resnet50'
    """Name of the model: a DDF model or any of timm's."""
    initial_checkpoint: str = ''
    """Checkpoint file whose weights are the start."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    drop: BelowOne = 0.0
    """Dropout rate before the classifier."""
    drop_path: BelowOne | None = None
    """Rate at which residual branches are dropped (stochastic depth), rising to it over the layers."""
    drop_block: BelowOne | None = None
    """Rate at which blocks of a feature map are dropped (DropBlock), in models that have it, such as ResNets."""
    bn_momentum: UpToOne | None = None
    """Share that a batch has in BatchNorm's running statistics; none keeps the model's."""
    bn_eps: Positive | None = None
    """BatchNorm's epsilon; none keeps the model's."""
    head_init_scale: Positive | None = None
    """Factor of the classifier's first weights; none leaves them."""
    head_init_bias: float | None = None
    """The classifier's first biases, such as -4.6 for binary cross-entropy; none leaves them."""


@dataclasses.dataclass(frozen=True)
class ValidateModelConfig(ModelSource):
    """The network to validate and its input; what is not given is the checkpoint's, else the model's."""

    model: Annotated[str | None, arg(aliases=['-m'])] = None
    """Name of the model; none takes it from the checkpoint, else ddf_mul_resnet50."""
    pretrained: bool = False
    """Take the published weights, where there are any."""
    num_classes: Count | None = None
    """Classes; none takes them from the checkpoint, else from the model, or the 10 of digits."""
    checkpoint: str = ''
    """Checkpoint file with the weights."""
    use_ema: bool = False
    """Take the checkpoint's averaged weights (EMA)."""
    use_train_size: bool = False
    """Validate at the model's training size even where it has a test size."""
    crop_mode: Literal['center', 'border', 'squash'] | None = None
    """How images become square; none keeps the model's."""
    test_pool: bool = False
    """Average the classifier over positions of inputs larger than the model's own."""
