"""What scales the loss, so that float16 gradients neither vanish nor overflow: torch, or NVIDIA's apex."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

import ddf.modules
from ddfnet.config import TrainPrecisionConfig
from ddfnet.errors import UserError, first_line
from ddfnet.precision import Precision

_APEX_DEVICES = ('cuda',)


class LossScaler(Protocol):
    """Scales losses and unscales gradients for one optimiser, which its user steps, or not, between the two."""

    state_dict_key: str  # in checkpoints, as in timm

    def is_enabled(self) -> bool:
        """Whether anything is scaled at all; if so, the host waits for the device once a step."""

    def scaled(self, loss: Tensor, last: bool) -> contextlib.AbstractContextManager[Tensor]:
        """The loss to be differentiated inside; `last` of the batches of an optimiser step."""

    def unscale(self) -> None:
        """After the last batch: the gradients become those of the loss itself."""

    def update(self) -> None:
        """After the optimiser's step, taken or left out."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class NativeScaler:
    """torch's GradScaler."""

    state_dict_key = 'amp_scaler'

    def __init__(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        self._scaler = scaler
        self._optimizer = optimizer
        self.is_enabled = scaler.is_enabled
        self.update = scaler.update
        self.state_dict = scaler.state_dict
        self.load_state_dict = scaler.load_state_dict

    @contextlib.contextmanager
    def scaled(self, loss: Tensor, last: bool) -> Iterator[Tensor]:
        yield self._scaler.scale(loss)

    def unscale(self) -> None:
        self._scaler.unscale_(self._optimizer)


class ApexScaler:
    """apex.amp at its level O1: functions of torch are patched to cast, weights stay in float32.

    Patches torch, and the DDF operation with it, for the whole process, and the optimiser's `step`.

    Args:
        amp: The module apex.amp.
        model: On its device, not yet wrapped for several processes.
    """

    state_dict_key = 'amp'

    def __init__(self, amp: Any, model: torch.nn.Module, optimizer: Optimizer) -> None:
        amp.register_half_function(ddf.modules, 'ddf')  # as under torch.autocast, for its three inputs have one dtype
        amp.initialize(model, optimizer, opt_level='O1', verbosity=0)
        self._amp = amp
        self._optimizer = optimizer
        self._own_step = optimizer.step
        self.state_dict = amp.state_dict
        self.load_state_dict = amp.load_state_dict

    def is_enabled(self) -> bool:
        return True

    @contextlib.contextmanager
    def scaled(self, loss: Tensor, last: bool) -> Iterator[Tensor]:
        with self._amp.scale_loss(loss, self._optimizer, delay_unscale=not last) as scaled:
            yield scaled

    def unscale(self) -> None:
        """Done by apex, at the end of the last batch's backward pass."""

    def update(self) -> None:
        """Where gradients overflowed, apex has put something in the place of the optimiser's step that does nothing but
        put the step back: it has to be called where no step was taken."""
        if self._optimizer.step != self._own_step:
            self._optimizer.step()


def create_scaler(
    config: TrainPrecisionConfig, precision: Precision, model: torch.nn.Module, optimizer: Optimizer
) -> LossScaler:
    """The scaler of a run; apex is set up where it is asked for.

    Raises:
        UserError: apex cannot be used, as import_apex says, or does not work with this torch.
    """
    amp = import_apex(config, precision.device)
    if amp is None:
        return NativeScaler(precision.grad_scaler(), optimizer)
    try:
        return ApexScaler(amp, model, optimizer)
    except Exception as error:  # made for another torch, it fails in any way
        raise UserError(f'apex.amp does not work here: {first_line(error)}; leave --amp-impl apex out') from error


def import_apex(config: TrainPrecisionConfig, device: torch.device) -> Any:
    """The module apex.amp where it is asked for, else None.

    Raises:
        UserError: It is not there or cannot be imported, or the device is not one that it serves.
    """
    if not config.amp or config.amp_impl != 'apex':
        return None
    if device.type not in _APEX_DEVICES:
        raise UserError(f"--amp-impl apex works on CUDA only, not on {device.type}: leave it out, for torch's own amp")
    try:
        return importlib.import_module('apex.amp')
    except Exception as error:  # made for another torch, it fails in any way
        raise UserError(
            f"--amp-impl apex needs NVIDIA's apex from before 25.07, with its module apex.amp ({first_line(error)}): "
            "leave it out, for torch's own amp"
        ) from error
