"""Opens a data set by name: the built-in digits, or whatever timm's create_dataset takes."""

from pathlib import Path
from typing import Any

from timm.data import IterableImageDataset, create_dataset
from timm.data.readers.img_extensions import get_img_extensions
from torch.utils.data import Dataset

from ddfnet.data.digits import Digits
from ddfnet.errors import UserError

_SPLIT_FOLDERS = {
    'train': ('train', 'training'),
    'validation': ('val', 'valid', 'validation', 'eval', 'evaluation'),
}


class WrappedDataset(Dataset):
    """A data set read through another; the transform stays that of the inner one, where loaders set it."""

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


class NamedImages(WrappedDataset):
    """timm's images, with an unreadable one named. timm replaces it by its neighbour; `strict` stops there instead.

    Raises:
        UserError: On reading: the image, or where not strict ten in a row, cannot be read.
    """

    def __init__(self, dataset: Any, strict: bool) -> None:
        super().__init__(dataset)
        if strict:
            dataset._max_retries = 1

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except (OSError, RuntimeError) as error:
            named = hasattr(self.dataset, 'filename')
            name = self.dataset.filename(index, absolute=True) if named else f'number {index}'
            raise UserError(f'cannot read image {name}: it is damaged or no image; mend or remove it') from error


class FewerSamples(WrappedDataset):
    """`num_samples` samples, evenly spaced so that sets sorted by class keep all their classes."""

    def __init__(self, dataset: Any, num_samples: int) -> None:
        super().__init__(dataset)
        self.num_samples = num_samples

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index * len(self.dataset) // self.num_samples]


def open_dataset(
    name: str,
    root: str | None,
    split: str,
    *,
    in_chans: int,
    class_map: str = '',
    num_samples: int | None = None,
    download: bool = False,
    strict: bool = False,
) -> Any:
    """A map-style data set of (image, label), without transform.

    Args:
        name: '' (folder, or tar by the suffix of `root`), 'digits', or a name of timm's create_dataset.
        root: Folder or file of the data; not used by the digits.
        split: 'train', 'validation' or a split of the named data set. In a folder, a subfolder of that name.
        in_chans: 1 for grey images, 3 for RGB.
        class_map: Text file that maps class names to labels.
        num_samples: Take only so many, evenly spaced.
        download: Fetch it where the named data set can.
        strict: Stop at an image that cannot be read, rather than take its neighbour; for validation.

    Raises:
        UserError: Nothing there, nothing in it, or not a data set of this kind.
    """
    if name == 'digits':
        dataset: Any = Digits(split, in_chans)
    else:
        dataset = NamedImages(_open_with_timm(name, root, split, in_chans, class_map, download), strict)
    if num_samples is None or num_samples == len(dataset):
        return dataset
    if num_samples > len(dataset):
        raise UserError(f'{num_samples} samples wanted, but split {split!r} has {len(dataset)}: ask for fewer')
    return FewerSamples(dataset, num_samples)


def class_names(dataset: Any) -> list[str] | None:
    """The names of the classes by label, or None where the data set does not say."""
    while isinstance(dataset, WrappedDataset):
        dataset = dataset.dataset
    classes = getattr(dataset, 'classes', None)
    if classes is not None:
        return list(classes)
    reader = getattr(dataset, 'reader', None)
    class_to_idx = getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None)
    return sorted(class_to_idx, key=class_to_idx.__getitem__) if class_to_idx else None


def _locate(name: str, root: str | None, split: str) -> str:
    """Where a split of a data set lies: the subfolder of a folder, else `root` as it is."""
    if name and '/' not in name:
        raise UserError(
            f"unknown data set {name!r}: expected 'digits', or a kind and a name such as hfds/NAME or torch/NAME, or "
            'nothing for a folder'
        )
    if not root:
        raise UserError('no data: give a folder as DATA_DIR, or --dataset digits for the built-in digits')
    return root if name else _folder_of_split(Path(root), split)


def _open_with_timm(name: str, root: str | None, split: str, in_chans: int, class_map: str, download: bool) -> Any:
    root = _locate(name, root, split)
    if in_chans not in (1, 3):
        raise UserError(f'images are read with 1 or 3 channels, got in-chans {in_chans}')
    if class_map and not Path(class_map).is_file() and not (Path(root) / class_map).is_file():
        raise UserError(f'class map not found: {class_map}')
    try:
        dataset = create_dataset(
            name,
            root=root,
            split=split,
            search_split=bool(name),
            class_map=class_map,  # type: ignore[arg-type]
            download=download,
            input_img_mode='RGB' if in_chans == 3 else 'L',
        )
    except (AssertionError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f'cannot open data set {name or "folder"!r} at {root}: {error}') from error
    if isinstance(dataset, IterableImageDataset):
        raise UserError(f'streamed data sets are not supported yet, got {name!r}: use a folder or an indexed data set')
    return dataset


def _folder_of_split(root: Path, split: str) -> str:
    """The subfolder or tar of the split, under its own or a usual name; or `root` itself where it holds the classes."""
    if not root.exists():
        raise UserError(f'data not found: {root} does not exist')
    if root.is_file():
        return str(root)  # a tar of one split
    all_names = [name for names in _SPLIT_FOLDERS.values() for name in names]
    usual_names = next((names for names in _SPLIT_FOLDERS.values() if split in names), ())
    for folder in (split, *usual_names):
        if (root / folder).is_dir():
            return str(root / folder)
        if (root / f'{folder}.tar').is_file():
            return str(root / f'{folder}.tar')
    present = sorted(child.name for child in root.iterdir() if child.is_dir())
    if not present:
        extensions = ' '.join(get_img_extensions())
        raise UserError(f'{root} holds no folders: expected one folder per class with images ({extensions})')
    if split in _SPLIT_FOLDERS['train'] or any(name in all_names for name in present):
        raise UserError(
            f'split {split!r} not found in {root}: expected a subfolder {split!r} with one folder per class, '
            f'got {", ".join(present[:5])}{", ..." if len(present) > 5 else ""}'
        )
    return str(root)
