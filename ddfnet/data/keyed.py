"""Sample order and augmentation from keys (epoch, position), not from the history of random generators."""

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ddfnet.data.images import UnreadableImage, WrappedDataset
from ddfnet.data.unreadable import Tally
from ddfnet.errors import UserError
from ddfnet.seeding import reseed

Key = tuple[int, int, int]  # epoch, position in the epoch's order, index in the dataset
_MOST_REPLACEMENTS = 10


class KeyedDataset(WrappedDataset):
    """Reads samples by key, seeding every generator from (epoch, position) first: augmentation depends on it alone.

    An image that cannot be read is counted in `tally` and replaced by one drawn from the same key.

    Args:
        strict: Stop instead.

    Raises:
        UserError: On reading: an unreadable image where strict, or ten of them drawn in a row.
    """

    def __init__(self, dataset: Any, seed: int, strict: bool = False) -> None:
        super().__init__(dataset)
        self.seed = seed
        self.strict = strict
        self.tally = Tally(dataset)

    def __getitem__(self, key: Key) -> Any:
        epoch, position, index = key
        reseed(self.seed, 'augmentation', epoch, position)
        try:
            return self.dataset[index]
        except UnreadableImage as error:
            if self.strict:
                raise UserError(f'{error}, or leave --strict-data out') from error
            self.tally.add(index)
            return self._replacement(epoch, position)

    def _replacement(self, epoch: int, position: int) -> Any:
        for attempt in range(_MOST_REPLACEMENTS):
            reseed(self.seed, 'replacement', epoch, position, attempt)
            index = random.randrange(len(self.dataset))
            try:
                return self.dataset[index]
            except UnreadableImage as error:
                self.tally.add(index)
                last = error
        raise UserError(f'{_MOST_REPLACEMENTS} images drawn in a row are unreadable, the last: {last}') from last


class KeyedSampler(Sampler[Key]):
    """The epoch's order, drawn from (seed, epoch); rank r of n takes positions r, r + n, r + 2n, ...

    It starts at a position, 0 or where an interrupted epoch goes on. The end is cut so that a multiple of `group`
    remains, the samples of one optimiser step over all processes: every step is of full size. With `repeats`, so many
    positions in a row hold the same image, and the epoch stays as long (repeated augmentation, arXiv 1901.09335).
    """

    def __init__(
        self, length: int, group: int, seed: int, rank: int = 0, world_size: int = 1, repeats: int = 0
    ) -> None:
        self.group = group
        self.dataset_length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.repeats = max(1, repeats)
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """`start` counts samples over all processes."""
        self.epoch = epoch
        self.start = start

    def steps(self, start: int) -> int:
        """Optimiser steps that an epoch has left after `start` samples."""
        return max(0, self.dataset_length - start) // self.group

    def __len__(self) -> int:
        return self.steps(self.start) * self.group // self.world_size

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.dataset_length, generator=generator).tolist()
        end = self.start + self.steps(self.start) * self.group
        positions = range(self.start + self.rank, end, self.world_size)
        return iter([(self.epoch, position, order[position // self.repeats]) for position in positions])


class KeyedErasing:
    """timm's batch-wise RandomErasing, each image seeded by its key: the prefetcher erases one batch ahead of use.

    Args:
        splits: Versions of each image in a batch, one after the other for the whole batch.
    """

    def __init__(self, random_erasing: Any, sampler: KeyedSampler, splits: int = 0) -> None:
        self.random_erasing = random_erasing
        self.sampler = sampler
        self.splits = max(1, splits)
        self.start_epoch()

    def start_epoch(self) -> None:
        self.position = self.sampler.start + self.sampler.rank

    def __call__(self, images: Tensor) -> Tensor:
        samples = len(images) // self.splits
        clean_parts = self.random_erasing.num_splits  # timm's resplit: the first of so many parts stays whole
        clean = len(images) // clean_parts if clean_parts > 1 else 0
        for number, image in enumerate(images):  # views: erased in place
            if number >= clean:
                split, sample = divmod(number, samples)
                position = self.position + sample * self.sampler.world_size
                reseed(self.sampler.seed, 'erasing', self.sampler.epoch, position, *((split,) if split else ()))
                self.random_erasing(image)
        self.position += samples * self.sampler.world_size
        return images
