"""Tensors of the same values that lie differently in memory."""

import random

import torch
from torch import Tensor

LAYOUTS = ('contiguous', 'channels_last', 'at the end', 'gaps', 'steps', 'permuted', 'expanded')


def laid_out(tensor: Tensor, layout: str, choose: random.Random) -> Tensor:
    """The values of a tensor in another layout, amid NaN; of 'expanded' only the first along some dimensions."""
    if layout == 'contiguous':
        return tensor
    if layout == 'channels_last':
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == 'at the end':
        storage = torch.full((tensor.numel() + choose.choice([1, 3, 7]),), float('nan'), dtype=tensor.dtype)
        return storage[storage.numel() - tensor.numel() :].view(tensor.shape).copy_(tensor)
    if layout == 'gaps':
        before = [choose.choice([0, 1, 3]) for _ in tensor.shape]
        storage = torch.full([a + b for a, b in zip(tensor.shape, before)], float('nan'), dtype=tensor.dtype)
        return storage[tuple(slice(start, None) for start in before)].copy_(tensor)
    if layout == 'steps':
        steps = [choose.choice([1, 2]) for _ in tensor.shape]
        sizes = [max(0, (size - 1) * step + 1) for size, step in zip(tensor.shape, steps)]
        storage = torch.full(sizes, float('nan'), dtype=tensor.dtype)
        return storage[tuple(slice(None, None, step) for step in steps)].copy_(tensor)
    if layout == 'permuted':
        order = choose.sample(range(4), 4)
        return tensor.permute(order).contiguous().permute([order.index(dim) for dim in range(4)])
    for dim in choose.sample(range(4), choose.choice([1, 1, 2, 4])):
        if tensor.shape[dim]:
            tensor = tensor.narrow(dim, 0, 1).clone().expand(tensor.shape)
    return tensor
