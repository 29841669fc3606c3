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

    The end is cut to a multiple of `group`, the samples of one optimiser step over all processes, so that every step
    is of full size.
    """

    def __init__(self, length: int, group: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.length = length - length % group
        self.dataset_length = length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.dataset_length, generator=generator).tolist()
        positions = range(self.rank, self.length, self.world_size)
        return iter([(self.epoch, position, order[position]) for position in positions])


class KeyedErasing:
    """timm's batch-wise RandomErasing, each image seeded by its key: the prefetcher erases one batch ahead of use."""

    def __init__(self, random_erasing: Any, sampler: KeyedSampler) -> None:
        self.random_erasing = random_erasing
        self.sampler = sampler
        self.start_epoch()

    def start_epoch(self) -> None:
        self.position = self.sampler.rank

    def __call__(self, images: Tensor) -> Tensor:
        for image in images:  # views: erased in place
            reseed(self.sampler.seed, 'erasing', self.sampler.epoch, self.position)
            self.random_erasing(image)
            self.position += self.sampler.world_size
        return images
