"""Randomness without history: every consumer is seeded from a key, so no generator's state needs to be saved.

The same (seed, key) gives the same numbers whatever ran before, in whichever process. So the number of loader workers,
their read-ahead and restarts do not change a run.
"""

import hashlib
import random
from collections.abc import Hashable

import numpy as np
import torch


def reseed(seed: int, *key: Hashable) -> None:
    """Seeds Python's, numpy's and torch's CPU generator from (seed, key). `key` must have a stable repr."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    number = int.from_bytes(digest, 'little')
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    # torch.manual_seed would also visit every accelerator, which takes longer than decoding a small image
    torch.default_generator.manual_seed(number)


def reseed_step(seed: int, device: torch.device, *key: Hashable) -> None:
    """Seeds also the generator of the device that the model computes on (drop path, dropout)."""
    reseed(seed, *key)
    if device.type != 'cpu':
        torch.get_device_module(device).manual_seed(torch.default_generator.initial_seed() & 0x7FFFFFFF)
