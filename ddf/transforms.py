"""torch.vmap of the operators: the mapped dimension is folded into the batch, so one call serves all of it."""

from typing import Any

import torch
from torch import Tensor

from .schemas import filter_gradients, forward, input_gradient


def register(library: torch.library.Library) -> None:
    """Makes the rules those of the operators."""
    for name, rule in (
        ('forward', _forward),
        ('input_gradient', _input_gradient),
        ('filter_gradients', _filter_gradients),
    ):
        torch.library.register_vmap(f'ddf::{name}', rule, lib=library)


def _forward(info: Any, dims: tuple, input: Tensor, channel: Tensor, spatial: Tensor, *settings: Any) -> tuple:
    length = info.batch_size
    input = _mapped_first(input, dims[0], length)  # (V, B, C, H, W)
    filters = _shared_or_folded((channel, spatial), dims[1:3], length, input.shape[1])
    return _unfold(forward(input.flatten(0, 1), *filters, *settings), length), 0


def _input_gradient(
    info: Any, dims: tuple, grad_output: Tensor, input: Tensor, channel: Tensor, spatial: Tensor, *settings: Any
) -> tuple:
    length = info.batch_size
    grad_output, input = (_mapped_first(map, dim, length) for map, dim in zip((grad_output, input), dims))
    filters = _shared_or_folded((channel, spatial), dims[2:4], length, input.shape[1])
    gradient = input_gradient(grad_output.flatten(0, 1), input.flatten(0, 1), *filters, *settings)
    return _unfold(gradient, length), 0


def _filter_gradients(
    info: Any, dims: tuple, grad_output: Tensor, input: Tensor, channel: Tensor, spatial: Tensor, *settings: Any
) -> tuple:
    length = info.batch_size
    tensors = [_mapped_first(x, dim, length) for x, dim in zip((grad_output, input, channel, spatial), dims)]
    batch = tensors[0].shape[1]
    # each element of the mapped dimension has gradients of its own: shared filters are repeated and summed over B only
    folded = (tensor.expand(-1, batch, -1, -1, -1).flatten(0, 1) for tensor in tensors)
    gradients = (_unfold(gradient, length) for gradient in filter_gradients(*folded, *settings))
    return tuple(gradient.sum_to_size(like.shape) for gradient, like in zip(gradients, tensors[2:])), (0, 0)


def _mapped_first(tensor: Tensor, dim: int | None, length: int) -> Tensor:
    return tensor.expand(length, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _shared_or_folded(filters: tuple, dims: tuple, length: int, batch: int) -> list[Tensor]:
    """Filters for a batch of length * batch: as they are where one serves all of it."""
    return [
        tensor
        if dim is None and tensor.shape[0] == 1
        else _mapped_first(tensor, dim, length).expand(-1, batch, -1, -1, -1).flatten(0, 1)
        for tensor, dim in zip(filters, dims)
    ]


def _unfold(tensor: Tensor, length: int) -> Tensor:
    return tensor.unflatten(0, (length, tensor.shape[0] // length))
