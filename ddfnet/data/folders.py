"""Folders of images: where a split lies, and what in it is no class."""

import logging
import os
from pathlib import Path

from timm.data.readers.img_extensions import get_img_extensions
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.utils.misc import natural_key

from ddfnet.errors import UserError

_SPLIT_FOLDERS = {
    'train': ('train', 'training'),
    'validation': ('val', 'valid', 'validation', 'eval', 'evaluation'),
}
_STRAY_FOLDERS = ('__MACOSX', 'lost+found')

_logger = logging.getLogger('ddfnet')


def folder_of_split(root: Path, split: str) -> str:
    """The subfolder or tar of the split, under its own or a usual name; or `root` itself where it holds the classes.

    Raises:
        UserError: Nothing there, or no folder of this split.
    """
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


def drop_strays(reader: ReaderImageFolder, mapped: bool) -> None:
    """Leaves out hidden files and folders and images beside the class folders, so that none becomes a class.

    Says in the log what it left out, and which folders hold no images.

    Args:
        mapped: The labels are those of a class map, and stay.

    Raises:
        UserError: Nothing else is there.
    """
    start = len(reader.root.rstrip(os.sep)) + 1
    kept, used_folders = [], set()
    for path, label in reader.samples:
        parts = path[start:].split(os.sep)
        used_folders.add(parts[0])
        if len(parts) > 1 and not any(part.startswith('.') or part in _STRAY_FOLDERS for part in parts):
            kept.append((path, label))
    if not kept:
        raise UserError(f'Found 0 images in folders of classes under {reader.root}: expected one folder per class')
    folders = sorted(entry.name for entry in os.scandir(reader.root) if entry.is_dir())
    empty = [name for name in folders if name not in used_folders and not name.startswith('.')]
    dropped = len(reader.samples) - len(kept)
    if dropped:
        _note(f'{reader.root}: left out {dropped} images that are hidden or lie outside the folders of classes')
    if empty:
        reason = 'without images or not in the class map' if mapped else 'without images'
        _note(f'{reader.root}: left out folders {reason}: {", ".join(empty[:10])}{", ..." if empty[10:] else ""}')
    if dropped and not mapped:
        names = {label: name for name, label in reader.class_to_idx.items()}
        used = sorted({names[label] for _, label in kept}, key=natural_key)
        reader.class_to_idx = {name: label for label, name in enumerate(used)}
        kept = [(path, reader.class_to_idx[names[label]]) for path, label in kept]
    reader.samples = kept


def _note(message: str) -> None:
    """A line in the log of the primary process; data sets are opened in each."""
    if int(os.environ.get('RANK', '0')) == 0:
        _logger.info(message)
