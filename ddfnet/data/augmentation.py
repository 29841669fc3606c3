"""timm's augmentation by configuration."""

from typing import Any

from PIL import Image
from timm.data import auto_augment

from ddfnet.config import AugmentationConfig, LossConfig

_POSTERIZE = ('Posterize', 'PosterizeIncreasing', 'PosterizeOriginal')


def posterize(image: Image.Image, bits: int, **keywords: Any) -> Image.Image:
    """timm's, with at least one bit: policies reach none (rand-m9-mstd0.5-inc1, v0), which Pillow 13 refuses."""
    return auto_augment.posterize(image, max(1, bits), **keywords)


auto_augment.NAME_TO_OP.update(dict.fromkeys(_POSTERIZE, posterize))


def augmentation_settings(augmentation: AugmentationConfig) -> dict[str, Any]:
    """Arguments of timm's create_loader."""
    return {
        'no_aug': augmentation.no_aug,
        'train_crop_mode': augmentation.train_crop_mode,
        'scale': augmentation.scale,
        'ratio': augmentation.ratio,
        'hflip': augmentation.hflip,
        'vflip': augmentation.vflip,
        'color_jitter': augmentation.color_jitter,
        'color_jitter_prob': augmentation.color_jitter_prob,
        'grayscale_prob': augmentation.grayscale_prob or 0.0,
        'gaussian_blur_prob': augmentation.gaussian_blur_prob or 0.0,
        'auto_augment': augmentation.aa,
        'num_aug_splits': augmentation.aug_splits,
        're_prob': augmentation.reprob,
        're_mode': augmentation.remode,
        're_count': augmentation.recount,
        're_split': augmentation.resplit,
    }


def mixup_settings(augmentation: AugmentationConfig, loss: LossConfig, num_classes: int) -> dict[str, Any]:
    """Arguments of timm's Mixup and FastCollateMixup."""
    return {
        'mixup_alpha': augmentation.mixup,
        'cutmix_alpha': augmentation.cutmix,
        'cutmix_minmax': augmentation.cutmix_minmax,
        'prob': augmentation.mixup_prob,
        'switch_prob': augmentation.mixup_switch_prob,
        'mode': augmentation.mixup_mode,
        'label_smoothing': loss.smoothing,
        'num_classes': num_classes,
    }
