"""Streamed data sets (wds, tfds, hfids): read in their own order, so keys cannot reach them.

An epoch repeats for the same seed and the same numbers of processes and workers: its workers start anew, seeded from
(seed, epoch), and augmentation is seeded from (epoch, rank, worker, position in the worker).
"""

from collections.abc import Iterator
from typing import Any

from timm.data import IterableImageDataset
from torch.utils.data import get_worker_info

from ddfnet.config import DataSource
from ddfnet.distributed import Processes
from ddfnet.errors import UserError, first_line
from ddfnet.seeding import reseed


class KeyedStream(IterableImageDataset):
    """A stream for training, each of its samples augmented from a key of its own."""

    def __init__(self, stream: IterableImageDataset, seed: int, rank: int) -> None:
        super().__init__('', reader=stream.reader)
        self.seed = seed
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, count: int) -> None:
        """Workers must start after it; what the reader kept of an earlier epoch is dropped."""
        super().set_epoch(count)
        self.epoch = count
        self.reader.ds = None
        reseed(self.seed, 'stream', count)

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        worker_id = worker.id if worker else 0
        position = -1
        for position, (image, label) in enumerate(_samples(self.reader)):
            reseed(self.seed, 'augmentation', self.epoch, self.rank, worker_id, position)
            yield (image if self.transform is None else self.transform(image)), label
        if position < 0:
            raise UserError('no image of the streamed training set could be read: look at --input-key and the shards')


class WholeStream(IterableImageDataset):
    """A stream for validation: each sample once, over all workers and processes.

    timm's wds reader would fill up every process to the same count, with samples twice; nothing here needs equal
    counts.
    """

    def __init__(self, stream: IterableImageDataset, allow_corrupt: bool) -> None:
        super().__init__('', reader=stream.reader)
        self.allow_corrupt = allow_corrupt

    def __iter__(self) -> Iterator[Any]:
        for image, label in _samples(self.reader, share_alike=False):
            yield (image if self.transform is None else self.transform(image)), label

    @property
    def stated_length(self) -> int | None:
        """The samples that the data set states, or None where it does not say."""
        return self.reader.num_samples or None if _is_wds(self.reader) else None


def check_shards(stream: Any, data: DataSource, processes: Processes) -> None:
    """Raises UserError where a loader worker would have no shard to read."""
    filenames = stream.reader.split_info.filenames if _is_wds(stream.reader) else ()
    readers = max(1, data.workers) * processes.world_size
    if filenames and len(filenames) < readers:
        raise UserError(
            f'{len(filenames)} shards cannot be shared by {readers} loader workers ({data.workers} workers x '
            f'{processes.world_size} processes): give a smaller --workers (0 is allowed), or make more shards'
        )


def _samples(reader: Any, *, share_alike: bool = True) -> Iterator[Any]:
    """The reader's (image, label) for this worker; with `share_alike`, wds gives equally many to all.

    Raises:
        UserError: wds finds no such target.
    """
    if not _is_wds(reader):
        yield from reader
        return
    from timm.data.readers.reader_wds import WdsTargetKeyError, wds

    if reader.ds is None:
        reader._lazy_init()
        # timm looks for the decoded image under its input_key, but always puts it under jpg
        pipeline: Any = reader.ds
        pipeline.pipeline[-1] = wds.rename(image='jpg', target='target')
        if not share_alike:
            reader.dist_num_replicas = 1  # read by what follows alone: the shards are already shared out
    try:
        yield from reader
    except WdsTargetKeyError as error:
        raise UserError(f'--target-key: {first_line(error)}') from error


def _is_wds(reader: Any) -> bool:
    return type(reader).__name__ == 'ReaderWds'
