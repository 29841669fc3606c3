"""Measures the cases of the networks' rows, each after a comparison with a copy in float64."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddfnet  # noqa: F401  registers the models
from benchmarks.interleaved import Visits
from benchmarks.requirements import Measurement, Row, Setting
from ddf import DDFPack, guards, operators, reference
from ddfnet.benchmarking.operations import relative_error
from ddfnet.timing import Pass

_TOLERANCE = 1e-4  # of float32 over the whole depth, relative to the largest value; rounding comes to 1e-5
_IMAGES_COMPARED = 2
_SMALL = (4, 3, 64, 64)
_BARE = 'without DDF modules'


@dataclass
class NetworkBench:
    """Measures cases.

    Attributes:
        visits: Times the passes.
        model: Name of the DDF network.
        img_size: Side of its images in pixels.
    """

    visits: Visits
    model: str
    img_size: int
    _passes: dict[tuple[str, Setting], tuple[Pass, str]] = field(default_factory=dict)

    @property
    def baseline(self) -> str:
        """timm's network of the same depth."""
        return self.model.rpartition('_')[2]

    def measure(self, row: Row, setting: Setting) -> Measurement:
        """Refused, without a time, where any result is wrong."""
        passes, faults = {}, []
        for name in (self.model, self.baseline):
            if (name, setting) not in self._passes:
                self._passes[name, setting] = self._pass(name, setting)
            passes[name], fault = self._passes[name, setting]
            faults += [f'{name}: {fault}'] if fault else []
        if faults:
            return Measurement(str(setting), fault='; '.join(faults), refused=True)
        turns = self.visits.take_turns((row.key, setting), {**passes, _BARE: self._bare_pass(setting)})
        names = self.model, self.baseline
        times = {name: turns.statistics(name) for name in names}
        note = f'{_BARE} {turns.ratio(_BARE, self.baseline):.3f}'
        return Measurement(str(setting), turns.ratio(*names), turns.spread(*names), times=times, note=note)

    def _pass(self, name: str, setting: Setting) -> tuple[Pass, str]:
        """The pass to time, and what is wrong with its results."""
        model = timm.create_model(name, zero_init_last=False)
        run, images = self._make_pass(model, setting)
        if setting.train:
            return run, _gradient_fault(name, _memory_format(setting))
        return run, _logits_fault(model, images[:_IMAGES_COMPARED], run()[:_IMAGES_COMPARED])

    def _bare_pass(self, setting: Setting) -> Pass:
        """Of the DDF network with its DDF modules taken out: no faster module can bring the network below its time."""
        if (_BARE, setting) not in self._passes:
            model = timm.create_model(self.model, zero_init_last=False)
            replace_filters(model)
            self._passes[_BARE, setting] = self._make_pass(model, setting)[0], ''
        return self._passes[_BARE, setting][0]

    def _make_pass(self, model: nn.Module, setting: Setting) -> tuple[Pass, Tensor]:
        """The pass, of the network in the setting's mode and layout, and the images that it takes."""
        memory_format = _memory_format(setting)
        model.train(setting.train).to(memory_format=memory_format)
        images = torch.randn(setting.batch_size, 3, self.img_size, self.img_size).to(memory_format=memory_format)
        if setting.train:
            return _training_step(model, images), images
        return _inference(torch.compile(model, dynamic=False) if setting.compiled else model, images), images


class _Subsampling(nn.Module):
    """In the place of a DDF module with a stride: every `stride`-th pixel of every `stride`-th row."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[:, :, :: self.stride, :: self.stride]
        return pixels.contiguous(memory_format=reference.memory_format_of(x))


def replace_filters(model: nn.Module) -> None:
    """Puts what does next to nothing in the place of each DDF module."""
    for name, module in list(model.named_modules()):
        if isinstance(module, DDFPack):
            model.set_submodule(name, _Subsampling(module.stride) if module.stride > 1 else nn.Identity())


def _memory_format(setting: Setting) -> torch.memory_format:
    return torch.channels_last if setting.channels_last else torch.contiguous_format


def _inference(model: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run() -> Tensor:
        return model(images)

    return run


def _training_step(model: nn.Module, images: Tensor) -> Pass:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    labels = torch.arange(len(images))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return run


def _logits_fault(model: nn.Module, images: Tensor, logits: Tensor) -> str:
    with torch.inference_mode(), _by_definition():
        exact = copy.deepcopy(model).double()(images.double())
    return _fault('logits', relative_error(logits, exact))


def _gradient_fault(name: str, memory_format: torch.memory_format) -> str:
    """Of a twin on small images, without what would magnify rounding to percents.

    That is the kink of ReLU, where a value on its other side changes gradients, and BatchNorm's statistics of few
    pixels: the twin has SiLU, and normalises by running statistics.
    """
    model = timm.create_model(name, zero_init_last=False, act_layer='silu').eval().to(memory_format=memory_format)
    images = torch.randn(_SMALL).to(memory_format=memory_format)
    gradients = _gradients(copy.deepcopy(model), images)
    with _by_definition():
        exact = _gradients(model.double(), images.double())
    errors = {parameter: relative_error(gradients[parameter], gradient) for parameter, gradient in exact.items()}
    parameter = max(errors, key=errors.__getitem__)
    return _fault(f'gradient of {parameter}', errors[parameter])


def _fault(name: str, error: float) -> str:
    return '' if error <= _TOLERANCE else f'{name} differs by {error:.1e} (allowed {_TOLERANCE:.0e})'


def _gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    F.cross_entropy(model(images), torch.arange(len(images))).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@contextlib.contextmanager
def _by_definition() -> Iterator[None]:
    """Within it the operation runs in plain torch, by its definition, and its modules by their layers."""
    operation = mock.patch.object(operators, 'forward', reference.forward)
    with operation, mock.patch.object(guards, 'has_kernel', return_value=False):
        yield
