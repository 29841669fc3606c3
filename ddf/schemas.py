"""Names and signatures of the operators `torch.ops.ddf.*`.

What the first three do says `ddf.operators`, what the `dynamic_filter*` do `ddf.fused` and `ddf.fused_training`,
the last three `ddf.batch_norm`.

The same in every operator with filters: dilation and stride in pixels, head, kernel_combine 'mul' or 'add', and
norm_gain: None, or the scale to which the spatial filter, then raw logits, is normalised over its taps.
"""

import torch

from . import namespace
from ._version import __version__

_FILTERS = 'Tensor channel_filter, Tensor spatial_filter'
_SETTINGS = 'int dilation, int stride, int head, str kernel_combine, float? norm_gain'
_WEIGHTS = (
    'Tensor spatial_weight, Tensor spatial_bias, Tensor squeeze_weight, Tensor squeeze_bias, Tensor excite_weight, '
    'Tensor excite_bias, Tensor scale'
)
_NORMS = 'Tensor[] input_norm, Tensor[] output_norm, float input_eps, float output_eps'
_PREDICTIONS = 'Tensor logits, Tensor means, Tensor hidden, Tensor excited'

library = namespace.claim(__version__)  # None where another copy of this package serves the process
if library is not None:
    library.define(f'forward(Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
    library.define(f'input_gradient(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
    library.define(f'filter_gradients(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> (Tensor, Tensor)')
    _module = f'Tensor input, {_WEIGHTS}', f'int kernel_size, {_SETTINGS}'
    library.define(f'dynamic_filter({", ".join(_module)}, {_NORMS}) -> Tensor')
    library.define(f'dynamic_filter_predictions({", ".join(_module)}) -> ({", ".join(["Tensor"] * 5)})')
    library.define(
        f'dynamic_filter_gradients(Tensor grad_output, {_module[0]}, {_PREDICTIONS}, {_module[1]}) '
        f'-> ({", ".join(["Tensor"] * 8)})'
    )
    library.define(
        'normalized_sum_(Tensor(a!) output, Tensor map, Tensor[] norm, Tensor? shortcut, Tensor[] shortcut_norm, '
        'float eps, float shortcut_eps) -> ()'
    )
    library.define(
        'normalized_sum_gradients(Tensor grad_output, Tensor output, Tensor[] norm, Tensor[] shortcut_norm, '
        f'bool adds_shortcut) -> ({", ".join(["Tensor"] * 6)})'
    )
    library.define(
        'batch_statistics_(Tensor map, Tensor(a!) running_mean, Tensor(b!) running_variance, float momentum) '
        '-> (Tensor, Tensor)'
    )

forward = torch.ops.ddf.forward.default
input_gradient = torch.ops.ddf.input_gradient.default
filter_gradients = torch.ops.ddf.filter_gradients.default
dynamic_filter = torch.ops.ddf.dynamic_filter.default
dynamic_filter_predictions = torch.ops.ddf.dynamic_filter_predictions.default
dynamic_filter_gradients = torch.ops.ddf.dynamic_filter_gradients.default
normalized_sum_ = torch.ops.ddf.normalized_sum_.default
normalized_sum_gradients = torch.ops.ddf.normalized_sum_gradients.default
batch_statistics_ = torch.ops.ddf.batch_statistics_.default
