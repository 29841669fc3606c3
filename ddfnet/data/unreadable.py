"""Counts the images of a set that could not be read, over loader workers and processes."""

import logging
from typing import Any

import torch

from ddfnet.data.images import UnreadableImage, WrappedDataset
from ddfnet.distributed import Processes

NO_LABEL = -1  # of an image that stands for one that could not be read
_MOST_NAMES = 20

_logger = logging.getLogger('ddfnet')


class Tally:
    """How often each image of a set could not be read, in memory that the loader's workers share."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._counts = torch.zeros(len(dataset), dtype=torch.int32).share_memory_()

    def add(self, index: int) -> None:
        self._counts[index] += 1

    def take(self, processes: Processes, consequence: str) -> int:
        """The total over all processes since the last call; the primary one logs the names. A collective call.

        Args:
            consequence: What became of them, for the log.
        """
        counts = processes.total(self._counts.clone().to(processes.device)).cpu()
        self._counts.zero_()
        total = int(counts.sum())
        if total and processes.is_primary:
            indices = counts.nonzero().flatten().tolist()
            names = [self._dataset.name(index) for index in indices[:_MOST_NAMES]]
            more = f' and {len(indices) - _MOST_NAMES} others' if len(indices) > _MOST_NAMES else ''
            _logger.warning(f'images that could not be read: {total}, {consequence}: {", ".join(names)}{more}')
        return total


class ExactDataset(WrappedDataset):
    """For validation: an image that cannot be read is an error that says what leaves it out."""

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            raise UnreadableImage(f'{error}, or leave it out with --allow-corrupt') from error


class LenientDataset(WrappedDataset):
    """For validation: an image that cannot be read becomes a blank one with NO_LABEL, and is counted."""

    def __init__(self, dataset: Any, blank: Any) -> None:
        super().__init__(dataset)
        self.blank = blank
        self.tally = Tally(dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except UnreadableImage:
            self.tally.add(index)
            return (self.blank if self.transform is None else self.transform(self.blank)), NO_LABEL
