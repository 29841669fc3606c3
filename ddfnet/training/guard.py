"""Optimiser steps whose gradients are no numbers leave a run as it was, without waiting for the device."""

import itertools
import operator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddfnet.errors import UserError

_Slot = tuple[dict[str, Any], str]  # where a module keeps a tensor, and its name there
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class NonFiniteCount:
    """Counts suppressed steps on the device: `total` of the epoch, `streak` in a row now, `longest` so far."""

    def __init__(self, device: torch.device, total: int = 0, streak: int = 0) -> None:
        self.total = torch.full((), total, dtype=torch.int64, device=device)
        self.streak = torch.full((), streak, dtype=torch.int64, device=device)
        self.longest = self.streak.clone()

    def add(self, finite: Tensor) -> None:
        """Takes whether a step's gradients were numbers, a boolean scalar on the device."""
        self.total = self.total + ~finite
        self.streak = torch.where(finite, 0, self.streak + 1)
        self.longest = torch.maximum(self.longest, self.streak)

    def check(self, limit: int, epoch: int, step: int) -> None:
        """Raises UserError where `limit` steps in a row were suppressed. Waits for the device."""
        longest = int(self.longest)
        if longest >= limit:
            raise UserError(
                f'the gradients of {longest} optimiser steps in a row were no finite numbers, up to step {step} of '
                f'epoch {epoch}; none of them was applied: lower --lr, limit the gradients with --clip-grad, or allow '
                'more with --max-nonfinite'
            )


class StepGuard:
    """Takes back what a step did to weights, buffers, optimiser and average where its gradients are no numbers.

    On accelerators the device decides: everything is copied before the step and put back by a mask, so that the host
    need not wait. That costs memory for a second copy, and counters of steps that the optimiser keeps on the host count
    a suppressed step (`--opt-kwargs capturable=True` keeps torch's on the device). The host decides, exactly, where
    knowing costs nothing more: on the CPU, where a gradient scaler waits anyway, where the average is kept on the CPU,
    and at the first step, which makes the optimiser's state.
    """

    def __init__(
        self, model: torch.nn.Module, optimizer: Optimizer, ema_model: torch.nn.Module | None, host_decides: bool
    ) -> None:
        self.optimizer = optimizer
        self.host_decides = host_decides
        self._device = next(model.parameters()).device
        self._buffers = _slots([model], parameters=False)
        self._tensors = _slots([model] if ema_model is None else [model, ema_model])
        self._live: list[Tensor] = []
        self._saved: list[Tensor] = []
        self._by_size: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}  # their bits, as integers

    @property
    def host_decides_now(self) -> bool:
        """Whether this step may ask the device, and so need not happen at all."""
        return self.host_decides or not self.optimizer.state

    @torch.no_grad()
    def save(self) -> None:
        """To be called before a step's first forward pass, which moves the buffers."""
        live = _read(self._buffers) if self.host_decides_now else self._state()
        if len(live) != len(self._live) or not all(map(operator.is_, live, self._live)):
            self._live, self._saved = live, [torch.empty_like(tensor) for tensor in live]
            self._by_size = {}
        if live:
            torch._foreach_copy_(self._saved, live)

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back what `save` saw."""
        if self._live:
            torch._foreach_copy_(self._live, self._saved)

    @torch.no_grad()
    def restore_unless(self, finite: Tensor) -> None:
        """Puts back what `save` saw where `finite`, a boolean scalar on the device, is false; `save` must follow.

        Chooses by multiplying the bits with 0 and 1, since that takes a few launches in all, not some for each tensor.
        """
        if not self._by_size:
            for live, saved in zip(map(_bits, self._live), map(_bits, self._saved)):
                group = self._by_size.setdefault(live.dtype, ([], []))
                group[0].append(live)
                group[1].append(saved)
        for bits, (now, before) in self._by_size.items():
            torch._foreach_mul_(now, finite.to(bits))
            torch._foreach_mul_(before, (~finite).to(bits))
            torch._foreach_add_(now, before)

    def _state(self) -> list[Tensor]:
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return [
            tensor
            for tensor in itertools.chain(_read(self._tensors), states)
            if torch.is_tensor(tensor) and tensor.device == self._device
        ]


def _read(slots: list[_Slot]) -> list[Tensor]:
    """What is in the slots now; modules may have put other tensors there."""
    return [tensors[name] for tensors, name in slots if tensors[name] is not None]


def _slots(modules: list[torch.nn.Module], parameters: bool = True) -> list[_Slot]:
    """Where the modules keep their buffers, and parameters if wanted; a tensor that several share once."""
    found: dict[Any, _Slot] = {}
    for module in itertools.chain.from_iterable(module.modules() for module in modules):
        for tensors in (module._buffers, module._parameters) if parameters else (module._buffers,):
            for name, tensor in tensors.items():
                found[(id(module), name) if tensor is None else id(tensor)] = tensors, name
    return list(found.values())


def _bits(tensor: Tensor) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.view(_INTEGERS[real.element_size()])
