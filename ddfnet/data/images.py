"""Reads single images: any pixel format to grey or RGB, passing errors again, and unreadable files by their name."""

import struct
import tarfile
import time
import zlib
from typing import Any

import numpy as np
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset

from ddfnet.errors import UserError, first_line

_UNREADABLE = (
    EOFError, IndexError, OSError, SyntaxError, ValueError, struct.error, tarfile.TarError, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
_ATTEMPTS = 3
_PAUSE = 0.1  # seconds before the second attempt; doubled for each further one


class UnreadableImage(UserError):
    """An image that is damaged, missing or no image at all."""


class WrappedDataset(Dataset):
    """A data set read through another; transform and names stay those of the inner one."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, index: int) -> str:
        """The file of an image, or its number where it has none."""
        return self.dataset.name(index) if hasattr(self.dataset, 'name') else f'number {index}'


class Images(WrappedDataset):
    """timm's or torchvision's images in one colour mode, 'L' or 'RGB', each read by itself.

    timm takes the neighbour of an image that it cannot read. Here an error of the file system is tried again, and what
    stays unreadable raises.

    Raises:
        UnreadableImage: On reading.
    """

    def __init__(self, dataset: Any, mode: str) -> None:
        super().__init__(dataset)
        self.mode = mode
        self._transform: Any = None

    @property
    def transform(self) -> Any:
        return self._transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self._transform = transform

    def __getitem__(self, index: int) -> Any:
        image, label = self._read(index)
        return (image if self._transform is None else self._transform(image)), label

    def name(self, index: int) -> str:
        if not hasattr(self.dataset, 'filename'):
            return f'number {index}'
        return self.dataset.filename(index, absolute=True) or f'number {index}'

    def _read(self, index: int) -> tuple[Image.Image, int]:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return self._read_once(index)
            except _UNREADABLE as error:
                passing = isinstance(error, OSError) and error.errno is not None
                if not passing or attempt == _ATTEMPTS:
                    raise UnreadableImage(
                        f'cannot read image {self.name(index)} ({first_line(error)}): mend or remove it'
                    ) from error
                time.sleep(_PAUSE * 2 ** (attempt - 1))
        raise AssertionError('unreachable')

    def _read_once(self, index: int) -> tuple[Image.Image, int]:
        if not isinstance(self.dataset, ImageDataset):  # torchvision's: an image
            image, label = self.dataset[index]
            return to_mode(image, self.mode), label
        file, label, *_ = self.dataset.reader[index]
        with file:
            return to_mode(Image.open(file), self.mode), label


class FewerSamples(WrappedDataset):
    """`num_samples` samples, evenly spaced so that sets sorted by class keep all their classes."""

    def __init__(self, dataset: Any, num_samples: int) -> None:
        super().__init__(dataset)
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self._inner(index)]

    def name(self, index: int) -> str:
        return super().name(self._inner(index))

    def _inner(self, index: int) -> int:
        return index * len(self.dataset) // self.num_samples


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """Decodes an image into a colour mode, as Pillow does but for two cases.

    16-bit grey is scaled to 8 bits, where Pillow would clip it at 255. A palette with transparency goes through RGBA,
    which spares a warning. Transparency is dropped, and EXIF orientation is not applied, as in timm and torchvision.
    """
    if image.mode == mode:
        image.load()
        return image
    if image.mode.startswith('I'):
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.mode in ('P', 'PA') and 'transparency' in image.info:
        image = image.convert('RGBA')
    return image.convert(mode)
