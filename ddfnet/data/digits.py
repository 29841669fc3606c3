"""scikit-learn's digits: 1797 handwritten digits of 8 x 8 pixels, in its package, so no download is needed.

Split as in scikit-learn's own example (plot_digits_classification): the first 898 for training, the other 899 for
validation. The SVM of that example reaches 97 % on them.
"""

from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ddfnet.errors import UserError

NUM_CLASSES = 10
_NUM_TRAIN = 898


class Digits(Dataset):
    """Items are (image, label); images are 8-bit, grey for one channel and RGB for three, then transformed.

    Raises:
        UserError: scikit-learn is not installed, or an unknown split.
    """

    def __init__(self, split: str, in_chans: int) -> None:
        if in_chans not in (1, 3):
            raise UserError(f'digits have 1 or 3 channels, got in-chans {in_chans}: give --in-chans 1 or 3')
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise UserError(
                'the digits come with scikit-learn, which is not installed: pip install scikit-learn'
            ) from None
        part = {
            'train': slice(None, _NUM_TRAIN),
            'validation': slice(_NUM_TRAIN, None),
        }.get({'val': 'validation'}.get(split, split))
        if part is None:
            raise UserError(f"digits have the splits 'train' and 'validation', got {split!r}")
        bunch = load_digits()
        self.images = (bunch.images[part] * 255 / 16).round().astype('uint8')  # (N, 8, 8), from 0..16
        self.labels = bunch.target[part].tolist()
        self.classes = [str(digit) for digit in range(NUM_CLASSES)]
        self.mode = 'L' if in_chans == 1 else 'RGB'
        self.transform: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.fromarray(self.images[index]).convert(self.mode)
        return (image if self.transform is None else self.transform(image)), self.labels[index]
