"""Optimiser steps whose gradients are no numbers leave a run as it was, without waiting for the device."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer

from ddfnet.errors import UserError


class NonFiniteCount:
    """Counts suppressed steps on the device: `total` of the epoch, `streak` in a row now, `longest` so far."""

    def __init__(self, device: torch.device, total: int = 0, streak: int = 0) -> None:
        self.total = torch.full((), total, dtype=torch.int64, device=device)
        self.streak = torch.full((), streak, dtype=torch.int64, device=device)
        self.longest = self.streak.clone()

    def add(self, finite: Tensor) -> None:
        """Takes whether a step's gradients were numbers, a boolean scalar on the device."""
        self.total += ~finite
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
        self.model = model
        self.optimizer = optimizer
        self.ema_model = ema_model
        self.host_decides = host_decides
        self._live: list[Tensor] = []
        self._saved: list[Tensor] = []

    @property
    def host_decides_now(self) -> bool:
        """Whether this step may ask the device, and so need not happen at all."""
        return self.host_decides or not self.optimizer.state

    def save(self) -> None:
        """To be called before a step's first forward pass, which moves the buffers."""
        live = list(self.model.buffers() if self.host_decides_now else self._state())
        if [tensor.data_ptr() for tensor in live] != [tensor.data_ptr() for tensor in self._live]:
            self._live, self._saved = live, [torch.empty_like(tensor) for tensor in live]
        if live:
            torch._foreach_copy_(self._saved, [tensor.detach() for tensor in live])

    @torch.no_grad()
    def restore(self) -> None:
        """Puts back what `save` saw."""
        if self._live:
            torch._foreach_copy_(self._live, self._saved)

    @torch.no_grad()
    def restore_unless(self, finite: Tensor) -> None:
        """Puts back what `save` saw where `finite`, a boolean scalar on the device, is false."""
        for live, saved in zip(self._live, self._saved):
            live.copy_(torch.where(finite, live, saved))

    def _state(self) -> Iterator[Tensor]:
        device = next(self.model.parameters()).device
        modules = filter(None, (self.model, self.ema_model))
        tensors = itertools.chain.from_iterable((*module.parameters(), *module.buffers()) for module in modules)
        states = (value for state in self.optimizer.state.values() for value in state.values())
        return (
            tensor for tensor in itertools.chain(tensors, states) if torch.is_tensor(tensor) and tensor.device == device
        )
