"""Opens a data set by name: the built-in digits, or whatever timm's create_dataset takes."""

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timm.data import IterableImageDataset, create_dataset
from timm.data.readers.reader_image_folder import ReaderImageFolder

from ddfnet.config import DataSource
from ddfnet.data.digits import Digits
from ddfnet.data.folders import drop_strays, folder_of_split
from ddfnet.data.images import FewerSamples, Images, WrappedDataset
from ddfnet.errors import UserError, first_line

_PACKAGES = {
    'hfds': 'datasets',
    'hfids': 'datasets',
    'tfds': 'tensorflow_datasets',
    'wds': 'webdataset',
}
_WITHOUT_FOLDER = ('hfds', 'hfids', 'tfds')  # they keep a folder of their own


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """What a streamed data set must know when it is opened."""

    is_training: bool
    batch_size: int
    seed: int


def open_dataset(
    source: DataSource,
    split: str,
    *,
    in_chans: int,
    num_samples: int | None = None,
    download: bool = False,
    stream: StreamSettings | None = None,
) -> Any:
    """A data set of (image, label), without transform: map-style, or timm's IterableImageDataset where it is streamed.

    Args:
        split: 'train', 'validation' or a split of the named data set. In a folder, a subfolder of that name.
        in_chans: 1 for grey images, 3 for RGB, unless `source` names the mode.
        num_samples: Take only so many, evenly spaced; from a stream, so many in an epoch.
        download: Fetch it where the named data set can.
        stream: Needed by streamed data sets alone; None opens them for reading once, in order.

    Raises:
        UserError: Nothing there, nothing in it, or not a data set of this kind.
    """
    channels = {'L': 1, 'RGB': 3}.get(source.input_img_mode or '', in_chans)
    if channels != in_chans:
        raise UserError(
            f'--input-img-mode {source.input_img_mode} gives images of {channels} channels, but the model takes '
            f'{in_chans}: leave it out, or give --in-chans {channels}'
        )
    if source.dataset == 'digits':
        dataset: Any = Digits(split, in_chans)
    else:
        mode = source.input_img_mode or _mode(in_chans)
        stream = stream or StreamSettings(is_training=False, batch_size=1, seed=0)
        more = {**vars(stream), 'num_samples': num_samples} if source.streamed else {}
        dataset = _open_with_timm(source, split, mode, download, more)
        if source.streamed:
            return dataset
        if isinstance(getattr(dataset, 'reader', None), ReaderImageFolder):
            drop_strays(dataset.reader, mapped=bool(source.class_map))
        dataset = Images(dataset, mode)
    if num_samples is None or num_samples == len(dataset):
        return dataset
    if num_samples > len(dataset):
        raise UserError(f'{num_samples} samples wanted, but split {split!r} has {len(dataset)}: ask for fewer')
    return FewerSamples(dataset, num_samples)


def is_streamed(dataset: Any) -> bool:
    """Whether a data set can only be read in its own order, so that neither order nor augmentation can be by key."""
    return isinstance(dataset, IterableImageDataset)


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


def _mode(in_chans: int) -> str:
    if in_chans not in (1, 3):
        raise UserError(f'images are read with 1 or 3 channels, got in-chans {in_chans}')
    return 'L' if in_chans == 1 else 'RGB'


def _locate(source: DataSource, split: str) -> str | None:
    """Where a split of a data set lies: the subfolder of a folder, else its folder as it is."""
    name, root = source.dataset, source.data_dir
    if name and '/' not in name:
        raise UserError(
            f"unknown data set {name!r}: expected 'digits', or a kind and a name such as hfds/NAME or torch/NAME, or "
            'nothing for a folder'
        )
    if not root and source.kind not in _WITHOUT_FOLDER:
        raise UserError('no data: give a folder as DATA_DIR, or --dataset digits for the built-in digits')
    return root if name else folder_of_split(Path(root or ''), split)


def _open_with_timm(source: DataSource, split: str, mode: str, download: bool, more: dict[str, Any]) -> Any:
    name = source.dataset
    root = _locate(source, split)
    _check_package(source)
    class_map = source.class_map
    if class_map and not Path(class_map).is_file() and not (Path(root or '') / class_map).is_file():
        raise UserError(f'class map not found: {class_map}')
    try:
        return create_dataset(
            name,
            root=root,
            split=split,
            search_split=bool(name),
            class_map=class_map,  # type: ignore[arg-type]
            download=download,
            input_img_mode=mode,
            input_key=source.input_key,
            target_key=source.target_key,
            **more,
        )
    except (AssertionError, ImportError, KeyError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(_why_not_opened(name, root, error)) from error


def _check_package(source: DataSource) -> None:
    """Raises UserError where the package that reads a kind of data is missing; timm would print lines of its own."""
    package = _PACKAGES.get(source.kind)
    if package and find_spec(package) is None:
        raise UserError(
            f'data set {source.dataset!r} needs the package {package}, which is not installed: pip install {package}'
        )


def _why_not_opened(name: str, root: str | None, error: Exception) -> str:
    text = f'cannot open data set {name or "folder"!r}{f" at {root}" if root else ""}: {first_line(error)}'
    if 'unexpected keyword argument' in str(error):
        text += '; leave out the key or class map that this kind of data does not take'
    return text
