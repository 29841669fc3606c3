"""FLOP formulas of the operators for `torch.utils.flop_counter`: one multiply-add, 2 FLOPs, per tap of every result.

The counter's module takes longer to import than this package (it loads triton), so the formulas are handed over when
the program imports it, not before.
"""

import importlib.abc
import importlib.util
import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .schemas import (
    dynamic_filter,
    dynamic_filter_gradients,
    dynamic_filter_predictions,
    filter_gradients,
    forward,
    input_gradient,
)

_COUNTER = 'torch.utils.flop_counter'


def register() -> None:
    """Makes torch's FLOP counter know the operators, now or as soon as it is imported."""
    if _COUNTER in sys.modules:
        _hand_over(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _CounterFinder())


class _CounterFinder(importlib.abc.MetaPathFinder):
    """Finds the counter's module as ever, with the hand-over at the end of its import."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_hand_over(module: ModuleType) -> None:
                execute(module)
                _hand_over(module)

            spec.loader.exec_module = execute_and_hand_over  # type: ignore[method-assign]
        return spec


def _hand_over(counter: ModuleType) -> None:
    counter.register_flop_formula(forward.overloadpacket)(_forward)
    counter.register_flop_formula(input_gradient.overloadpacket)(_input_gradient)
    counter.register_flop_formula(filter_gradients.overloadpacket)(_filter_gradients)
    counter.register_flop_formula(dynamic_filter.overloadpacket)(_dynamic_filter)
    counter.register_flop_formula(dynamic_filter_predictions.overloadpacket)(_dynamic_filter_predictions)
    counter.register_flop_formula(dynamic_filter_gradients.overloadpacket)(_dynamic_filter_gradients)


def _forward(input: tuple, channel_filter: tuple, spatial_filter: tuple, *settings: Any, **_: Any) -> int:
    """Of shapes, as the counter passes tensors; the normalisation of a filter is not counted."""
    batch, channels = input[:2]
    kernel_size = channel_filter[-1]
    out_height, out_width = spatial_filter[-2:]
    return 2 * batch * channels * kernel_size**2 * out_height * out_width


def _input_gradient(grad_output: tuple, *tensors_and_settings: Any, **_: Any) -> int:
    return _forward(*tensors_and_settings)


def _filter_gradients(grad_output: tuple, *tensors_and_settings: Any, **_: Any) -> int:
    return 2 * _forward(*tensors_and_settings)


def _dynamic_filter(input: tuple, *weights_and_settings: Any, out_shape: tuple, **_: Any) -> int:
    """The operation, and the layers of both branches."""
    return _operation(out_shape, *weights_and_settings) + _branches(out_shape, *weights_and_settings)


def _dynamic_filter_predictions(*arguments: Any, out_shape: tuple, **_: Any) -> int:
    return _dynamic_filter(*arguments, out_shape=out_shape[0])


def _dynamic_filter_gradients(grad_output: tuple, input: tuple, *weights_and_settings: Any, **_: Any) -> int:
    """Three gradients of the operation, and two of each layer."""
    *weights, _, _, _, _ = weights_and_settings[:11]
    arguments = *weights, *weights_and_settings[11:]
    return 3 * _operation(grad_output, *arguments) + 2 * _branches(grad_output, *arguments)


def _operation(out_shape: tuple, *weights_and_settings: Any) -> int:
    kernel_size = weights_and_settings[7]
    return 2 * math.prod(out_shape) * kernel_size**2


def _branches(out_shape: tuple, *weights_and_settings: Any) -> int:
    spatial_weight, _, squeeze_weight, _, excite_weight = weights_and_settings[:5]
    batch, _, *out_size = out_shape
    spatial = math.prod(out_size) * math.prod(spatial_weight)
    return 2 * batch * (spatial + math.prod(squeeze_weight) + math.prod(excite_weight))
