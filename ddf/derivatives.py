"""Derivatives of the operators, in reverse and forward mode.

The operators close over each other: the derivatives of each are sums of the same three (and of
`reference.normalise_derivative` where the spatial filter is normalised), so derivatives of any order exist.

They are the operators' kernels for the autograd keys. There each transform of torch.func arrives by itself, so that a
function of a single level serves nested transforms too, through `ddf.ddf` and through `torch.ops.ddf.*` alike; and
forward mode, which kernels made by `torch.library.register_autograd` pass over in silence, is noticed.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

from . import reference
from .schemas import filter_gradients, forward, input_gradient

_SETTINGS = 5  # the last arguments of every operator: dilation, stride, head, kernel_combine, norm_gain
_AFTER_AUTOGRAD = torch._C._after_autograd_keyset

Tensors = tuple[Tensor, ...]
Terms = tuple[Tensor | None, ...]


def register(library: torch.library.Library) -> None:
    """Makes the derivatives those of the operators."""
    library.impl('forward', _kernel(_Forward), 'Autograd', with_keyset=True)
    library.impl('input_gradient', _kernel(_InputGradient), 'Autograd', with_keyset=True)
    library.impl('filter_gradients', _kernel(_FilterGradients), 'Autograd', with_keyset=True)


def _kernel(function: 'type[_Operator]') -> Callable:
    operator = function.operator
    apply: Callable = function.apply  # type: ignore[attr-defined]

    def run(keyset: Any, *arguments: Any) -> Any:
        tracked = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if not tracked and not _may_be_in_forward_mode():
            return operator.redispatch(keyset & _AFTER_AUTOGRAD, *arguments)
        if operator is filter_gradients and arguments[-1] is not None:
            return _composed_filter_gradients(*arguments)
        if not torch._C._are_functorch_transforms_active():
            return apply(keyset, None, *arguments)
        with enable_single_level_autograd_function():
            return apply(keyset, torch.is_grad_enabled(), *arguments)

    return run


def _may_be_in_forward_mode() -> bool:
    """Graphs of torch.compile enter the forward mode of torch.func without Python's noticing its level."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _call_below(operator: Any, keyset: Any, arguments: tuple) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keyset & _AFTER_AUTOGRAD, *arguments)


class _Operator(torch.autograd.function._SingleLevelFunction):
    """Calls the kernel below autograd and keeps the arguments for the derivatives."""

    operator: torch._ops.OpOverload

    @classmethod
    def forward(cls, ctx: Any, keyset: Any, grad_enabled_below: bool | None, *arguments: Any) -> Any:
        tensors = arguments[:-_SETTINGS]
        ctx.save_for_backward(*tensors)
        if _may_be_in_forward_mode():
            ctx.save_for_forward(*tensors)
        ctx.settings = arguments[-_SETTINGS:]
        ctx.set_materialize_grads(False)
        if grad_enabled_below is None:
            return _call_below(cls.operator, keyset, arguments)
        # the transforms below this one record derivatives of their own, which this call has switched off
        with torch.set_grad_enabled(grad_enabled_below), forward_ad._set_fwd_grad_enabled(True):
            return _call_below(cls.operator, keyset, arguments)

    @classmethod
    def backward(cls, ctx: Any, *grads: Tensor | None) -> tuple:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        gradients = cls.gradients(ctx.needs_input_grad[2:], grads, ctx.saved_tensors, ctx.settings)
        return None, None, *gradients, *(None,) * _SETTINGS

    @classmethod
    def jvp(cls, ctx: Any, *along: Any) -> Any:
        along = along[2:-_SETTINGS]
        if not torch._C._are_functorch_transforms_active():
            return cls.derivative(along, ctx.saved_tensors, ctx.settings)
        # torch switches forward mode off here, and with it that of the transforms below this one
        tensors = tuple(forward_ad.unpack_dual(tensor, level=0).primal for tensor in ctx.saved_tensors)
        with forward_ad._set_fwd_grad_enabled(True):
            return cls.derivative(along, tensors, ctx.settings)

    @staticmethod
    def gradients(needed: tuple[bool, ...], grads: Terms, tensors: Tensors, settings: tuple) -> Terms:
        """Gradients of the operator's tensors, None where not needed, given those of its results."""
        raise NotImplementedError

    @staticmethod
    def derivative(along: Terms, tensors: Tensors, settings: tuple) -> Any:
        """Change of the operator's results along a change of its tensors, in which None stands for zeros."""
        raise NotImplementedError


class _Forward(_Operator):
    operator = forward

    @staticmethod
    def gradients(needed: tuple[bool, ...], grads: Terms, tensors: Tensors, settings: tuple) -> Terms:
        arguments = (grads[0], *tensors, *settings)
        grad_input = input_gradient(*arguments) if needed[0] else None
        grad_filters = filter_gradients(*arguments) if any(needed[1:3]) else (None, None)
        return grad_input, *grad_filters

    @staticmethod
    def derivative(along: Terms, tensors: Tensors, settings: tuple) -> Tensor | None:
        input, *filters = tensors
        terms = [forward(input, *changed) for changed in _filters_along(along[1:], filters, settings)]
        if along[0] is not None:
            terms.append(forward(along[0], *filters, *settings))
        return _sum(terms)


class _InputGradient(_Operator):
    operator = input_gradient

    @staticmethod
    def gradients(needed: tuple[bool, ...], grads: Terms, tensors: Tensors, settings: tuple) -> Terms:
        # <grad, input_gradient(g, c, s)> = <g, forward(grad, c, s)>: differentiate the right-hand side
        grad_output, _, *filters = tensors
        grad_grad_output = forward(grads[0], *filters, *settings) if needed[0] else None
        grad_filters: Terms = (None, None)
        if any(needed[2:4]):
            grad_filters = filter_gradients(grad_output, grads[0], *filters, *settings)
        return grad_grad_output, None, *grad_filters

    @staticmethod
    def derivative(along: Terms, tensors: Tensors, settings: tuple) -> Tensor | None:
        grad_output, input, *filters = tensors
        changes = _filters_along(along[2:], filters, settings)
        terms = [input_gradient(grad_output, input, *changed) for changed in changes]
        if along[0] is not None:
            terms.append(input_gradient(along[0], input, *filters, *settings))
        return _or_zeros(_sum(terms), input)  # the values of `input` do not count


class _FilterGradients(_Operator):
    """With plain spatial filters; `_composed_filter_gradients` reduces normalised ones to these."""

    operator = filter_gradients

    @staticmethod
    def gradients(needed: tuple[bool, ...], grads: Terms, tensors: Tensors, settings: tuple) -> Terms:
        # <grads, filter_gradients(g, x, c, s)> = <g, derivative of forward(x, c, s) along grads>
        grad_output, input, *filters = tensors
        changes = list(_filters_along(grads, filters, settings))
        grad_grad_output = _sum([forward(input, *changed) for changed in changes]) if needed[0] else None
        grad_input = _sum([input_gradient(grad_output, input, *changed) for changed in changes]) if needed[1] else None
        grad_filters = _other_filter_gradients(grads, tensors, settings) if any(needed[2:4]) else (None, None)
        return grad_grad_output, grad_input, *grad_filters

    @staticmethod
    def derivative(along: Terms, tensors: Tensors, settings: tuple) -> Terms:
        grad_output, input, *filters = tensors
        terms = [_other_filter_gradients(along[2:], tensors, settings)]
        if along[0] is not None:
            terms.append(filter_gradients(along[0], input, *filters, *settings))
        if along[1] is not None:
            terms.append(filter_gradients(grad_output, along[1], *filters, *settings))
        return tuple(map(_or_zeros, map(_sum, zip(*terms)), filters))


def _filters_along(along: Terms, filters: list[Tensor], settings: tuple) -> Iterator[tuple]:
    """Filters and settings of the operators whose sum is the derivative along a change of both filters."""
    (along_channel, along_spatial), (channel, spatial) = along, filters
    *plain, norm_gain = settings
    *_, head, kernel_combine = plain
    if along_spatial is not None and norm_gain is not None:
        along_spatial = reference.normalise_derivative(spatial, along_spatial, head, norm_gain).to(spatial.dtype)
    if kernel_combine == 'add':
        if along_channel is not None or along_spatial is not None:
            yield _or_zeros(along_channel, channel), _or_zeros(along_spatial, spatial), *plain, None
        return
    if along_channel is not None:
        yield along_channel, spatial, *settings
    if along_spatial is not None:
        yield channel, along_spatial, *plain, None


def _other_filter_gradients(along: Terms, tensors: Tensors, settings: tuple) -> Terms:
    """Each filter's gradient along a change of the other one, in which it is linear ('mul') or constant ('add')."""
    if settings[-2] == 'add' or (along[0] is None and along[1] is None):
        return None, None
    grad_output, input, *filters = tensors
    return filter_gradients(grad_output, input, *map(_or_zeros, along, filters), *settings)


def _composed_filter_gradients(
    grad_output: Tensor, input: Tensor, channel: Tensor, spatial: Tensor, *settings: Any
) -> tuple[Tensor, Tensor]:
    """`filter_gradients` of normalised filters from the operator for plain ones, for derivatives of higher order."""
    *plain, norm_gain = settings
    *_, head, _ = plain
    filters = reference.normalise(spatial, head, norm_gain)
    maps = (tensor.to(filters.dtype) for tensor in (grad_output, input, channel))
    grad_channel, grad_filters = filter_gradients(*maps, filters, *plain, None)
    grad_spatial = reference.normalise_derivative(spatial, grad_filters, head, norm_gain)
    return grad_channel.to(channel.dtype), grad_spatial.to(spatial.dtype)


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


def _sum(terms: Any) -> Tensor | None:
    present = [term for term in terms if term is not None]
    return sum(present[1:], start=present[0]) if present else None
