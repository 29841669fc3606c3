"""Where images come from and how they are read and batched."""

import dataclasses
from typing import Annotated, Literal

from tyro.conf import arg

from ddfnet.config.values import Count, Whole


@dataclasses.dataclass(frozen=True)
class DataSource:
    """Images and their loader; training and validation share it."""

    data_dir: str | None = None
    """Folder of the images; may also stand alone as DATA_DIR."""
    dataset: Annotated[str, arg(aliases=['-d'])] = ''
    """Kind of data: empty for a folder or tar files, digits (built in), or a timm name (torch/, hfds/, wds/, tfds/)."""
    class_map: str = ''
    """File that maps class names to indices."""
    input_img_mode: Literal['L', 'RGB'] | None = None
    """Colour mode that images are read in; none follows in-chans."""
    input_key: str | None = None
    """Where a sample's image is: column (hfds, hfids, tfds), suffixes of files (wds, folder, with ; between)."""
    target_key: str | None = None
    """Where a sample's label is: column (hfds, hfids, tfds), or field of the json file (wds)."""
    allow_corrupt: bool = False
    """Leave images that cannot be read out of a validation's counts, rather than stop."""
    workers: Annotated[Whole, arg(aliases=['-j'])] = 4
    """Loader processes of each process; 0 loads in the process itself."""
    pin_mem: bool = False
    """Load into page-locked memory, for faster copies to the GPU."""
    no_prefetcher: Annotated[bool, arg(name='prefetcher')] = False
    """Normalise and erase on the device while the next batch loads, by timm's prefetcher; off does so in the loader."""

    @property
    def kind(self) -> str:
        """What stands before the slash of a timm name, '' where there is none."""
        prefix, slash, _ = self.dataset.partition('/')
        return prefix.lower() if slash else ''

    @property
    def streamed(self) -> bool:
        """Whether the images come in an order of their own."""
        return self.kind in ('hfids', 'tfds', 'wds')


@dataclasses.dataclass(frozen=True)
class DataConfig(DataSource):
    """Training and validation images and their loader."""

    train_split: str = 'train'
    """Split, or subfolder, to train on."""
    val_split: str = 'validation'
    """Split, or subfolder, to validate on."""
    train_num_samples: Count | None = None
    """Train on so many of the images, evenly spaced; none takes all."""
    val_num_samples: Count | None = None
    """Validate on so many of the images, evenly spaced; none takes all."""
    dataset_download: bool = False
    """Let datasets that can, download themselves."""
    strict_data: bool = False
    """Stop at a training image that cannot be read, rather than take another in its place."""
    use_multi_epochs_loader: bool = False
    """Accepted, without effect: loader processes outlive an epoch anyway."""


@dataclasses.dataclass(frozen=True)
class ValidateDataConfig(DataSource):
    """The images to validate on and their loader."""

    split: str = 'validation'
    """Split, or subfolder, to validate on."""
    num_samples: Count | None = None
    """Validate on so many of the images, evenly spaced; none takes all."""


@dataclasses.dataclass(frozen=True)
class BatchConfig:
    """Images per step."""

    batch_size: Annotated[Count, arg(aliases=['-b'])] = 128
    """Images per process and forward pass."""
    validation_batch_size: Annotated[Count | None, arg(aliases=['-vb'])] = None
    """Images per process in validation; none takes the training batch size."""
    grad_accum_steps: Count = 1
    """Forward and backward passes per optimiser step."""
