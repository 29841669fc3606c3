"""Sample order and augmentation from keys (epoch, position), not from the history of random generators."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler

from ddfnet.data.datasets import WrappedDataset
from ddfnet.seeding import reseed

Key = tuple[int, int, int]  # epoch, position in the epoch's order, index in the dataset


class KeyedDataset(WrappedDataset):
    """Reads samples by key, seeding every generator from (epoch, position) first: augmentation depends on it alone."""

    def __init__(self, dataset: Any, seed: int) -> None:
        super().__init__(dataset)
        self.seed = seed

    def __getitem__(self, key: Key) -> Any:
        epoch, position, index = key
        reseed(self.seed, 'augmentation', epoch, position)
        return self.dataset[index]


class KeyedSampler(Sampler[Key]):
    """The epoch's order, drawn from (seed, epoch); rank r of n takes positions r, r + n, r + 2n, ...

    It starts at a position, 0 or where an interrupted epoch goes on. The end is cut so that a multiple of `group`
    remains, the samples of one optimiser step over all processes: every step is of full size.
    """

    def __init__(self, length: int, group: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.group = group
        self.dataset_length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
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
        return iter([(self.epoch, position, order[position]) for position in positions])


class KeyedErasing:
    """timm's batch-wise RandomErasing, each image seeded by its key: the prefetcher erases one batch ahead of use."""

    def __init__(self, random_erasing: Any, sampler: KeyedSampler) -> None:
        self.random_erasing = random_erasing
        self.sampler = sampler
        self.start_epoch()

    def start_epoch(self) -> None:
        self.position = self.sampler.start + self.sampler.rank

    def __call__(self, images: Tensor) -> Tensor:
        for image in images:  # views: erased in place
            reseed(self.sampler.seed, 'erasing', self.sampler.epoch, self.position)
            self.random_erasing(image)
            self.position += self.sampler.world_size
        return images
