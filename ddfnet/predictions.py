"""Predictions other than a model's own of an image: of some classes only, or averaged over views of the image."""

import importlib.resources
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.functional import five_crop

from ddfnet.errors import UserError, first_line

_BUNDLED = ('imagenet_a', 'imagenet_r')


class SomeClasses(nn.Module):
    """A classifier of some of its classes: the outputs at `classes`, in that order."""

    def __init__(self, model: nn.Module, classes: list[int]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer('classes', torch.tensor(classes), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)[:, self.classes]


class Views(nn.Module):
    """Averages a classifier's probabilities over views of each image (test-time augmentation).

    Two views are the image and its mirror image, as they are; five are its centre and its corners, crops of `size`; ten
    are those and their mirror images (Krizhevsky et al., NIPS 2012, section 4.1).

    Returns, from `forward` of images (B, C, H, W): logarithms of the mean probabilities, float32 (B, classes).
    """

    def __init__(self, model: nn.Module, views: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.views = views
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        views = [images] if self.views == 2 else list(five_crop(images, list(self.size)))
        if self.views != 5:
            views += [view.flip(-1) for view in views]
        total = None
        for view in views:
            log_probabilities = self.model(view).float().log_softmax(dim=1)
            total = log_probabilities if total is None else torch.logaddexp(total, log_probabilities)
        assert total is not None
        return total - math.log(len(views))


def size_for_views(settings: dict[str, Any], views: int) -> dict[str, Any]:
    """The input settings whose images hold the corners too: all of what crop_pct would cut off.

    Raises:
        UserError: Nothing would be cut off, so that the crops would all be the same.
    """
    if views < 5:
        return settings
    channels, *size = settings['input_size']
    larger = [math.floor(side / settings['crop_pct']) for side in size]
    if larger == size:
        raise UserError(
            f'--tta {views} takes its views from what crop_pct cuts off, but crop_pct is {settings["crop_pct"]:g}: '
            'give a smaller --crop-pct, or --tta 2'
        )
    return {**settings, 'input_size': (channels, *larger), 'crop_pct': 1.0}


def read_classes(source: str, num_classes: int) -> list[int]:
    """The classes that count, from a file of an index per line or from timm's for ImageNet-A and -R.

    Raises:
        UserError: No such file, or not `num_classes` or fewer different indices.
    """
    path: Any = Path(source)
    if source in _BUNDLED:
        path = importlib.resources.files('timm.data') / '_info' / f'{source}_indices.txt'
    try:
        classes = [int(line) for line in path.read_text().split()]
    except (OSError, ValueError) as error:
        raise UserError(f'--valid-labels: cannot read {source} as an index per line: {first_line(error)}') from error
    wrong = [index for index in classes if not 0 <= index < num_classes]
    if wrong or not classes or len(set(classes)) < len(classes):
        raise UserError(
            f'--valid-labels: expected different indices from 0 to {num_classes - 1}, the classes of the model, got '
            + (str(wrong[0]) if wrong else 'one of them twice' if classes else 'none')
        )
    return classes
