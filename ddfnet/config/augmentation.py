"""How training images are varied."""

import dataclasses
import re
from typing import Annotated, Literal

from tyro.conf import arg

from ddfnet.config.values import Count, NonNegative, Positive, Probability, Whole

_STD = r'mstd\d+(\.\d+)?'
_SECTIONS = {  # of timm's policies, by their first word; timm skips those without a digit, whatever they say
    'rand': rf'm\d+|n[1-9]\d*|p(0(\.\d+)?|1(\.0+)?)|mmax[1-9]\d*|inc[01]|t(weights|3aw?)|{_STD}',
    'augmix': rf'm\d+|w[1-9]\d*|d[1-9]\d*|a\d+(\.\d+)?|b[01]|{_STD}',
    **dict.fromkeys(('original', 'originalr', 'v0', 'v0r', '3a'), _STD),
}
_POLICIES = (
    'rand-mX-nY-mstdZ-incW (parts in any order, also pX, mmaxX, tweights, t3a, t3aw), augmix-mX-wY-dZ (also aX, bX, '
    'mstdX), or original, originalr, v0, v0r, 3a (each also with -mstdX)'
)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
    """Variation of the training images."""

    no_aug: Annotated[bool, arg(name='aug')] = False
    """Vary the training images at random; off resizes and crops them as in validation, and erases nothing."""
    train_crop_mode: Literal['rrc', 'rkrc', 'rkrr'] | None = None
    """Random resized crop (rrc, also where none); or a resize that about keeps the ratio, then a crop, central
    (rkrc) or random (rkrr)."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """Least and greatest area of the random crop, as a share of the image."""
    ratio: tuple[Positive, Positive] = (0.75, 1.3333)
    """Least and greatest ratio of the crop's width to its height."""
    hflip: Probability = 0.5
    """Probability of a horizontal flip."""
    vflip: Probability = 0.0
    """Probability of a vertical flip."""
    color_jitter: NonNegative = 0.4
    """Strength of brightness, contrast and saturation jitter; most aa policies replace it."""
    color_jitter_prob: Probability | None = None
    """Probability of colour jitter; none jitters every image."""
    grayscale_prob: Probability | None = None
    """Probability of turning an image grey."""
    gaussian_blur_prob: Probability | None = None
    """Probability of a Gaussian blur."""
    aa: str | None = 'rand-m7-mstd0.5-inc1'
    """Policy of automatic augmentation (rand-..., augmix-..., original, v0, 3a), or none."""
    aug_repeats: Whole = 0
    """Times that an image is repeated in an epoch, each time varied anew; an epoch stays as long. 0 does not repeat."""
    aug_splits: Whole = 0
    """Versions of each image in a batch, the first without aa (2 or more, for AugMix); 0 is off."""
    reprob: Probability = 0.4
    """Probability of erasing random rectangles."""
    remode: Literal['const', 'rand', 'pixel'] = 'pixel'
    """Erased with zeros, one random colour, or a random value per pixel."""
    recount: Count = 3
    """Greatest number of erased rectangles per image."""
    resplit: bool = False
    """Erase nothing in the first of the aug-splits, or without them in the first half of a batch."""
    mixup: NonNegative = 0.0
    """Alpha of the mixup distribution; 0 is off."""
    cutmix: NonNegative = 0.0
    """Alpha of the cutmix distribution; 0 is off."""
    cutmix_minmax: tuple[Probability, Probability] | None = None
    """Least and greatest side of the cutmix patch as a share of the image; turns cutmix on in place of its alpha."""
    mixup_prob: Probability = 1.0
    """Probability that a batch, pair or image is mixed at all."""
    mixup_switch_prob: Probability = 0.5
    """Probability of cutmix where both are on."""
    mixup_mode: Literal['batch', 'pair', 'elem'] = 'batch'
    """Mix with one set of parameters per batch, pair or image."""
    mixup_off_epoch: Whole = 0
    """Epoch from which on nothing is mixed; 0 never stops."""
    train_interpolation: Literal['random', 'bilinear', 'bicubic', 'nearest', 'box', 'hamming', 'lanczos'] = 'random'
    """Interpolation that resizes training images; random draws bilinear or bicubic, and is bilinear with no-aug."""

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that targets are soft."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def policy_fault(self) -> str | None:
        """What is wrong with the policy of `aa`, or None."""
        name, *sections = (self.aa or '').split('-')
        if not self.aa or (name in _SECTIONS and all(re.fullmatch(_SECTIONS[name], part) for part in sections)):
            return None
        return f'expected {_POLICIES}; got {self.aa!r}'
