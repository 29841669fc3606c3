"""Names and signatures of the operators `torch.ops.ddf.*`; `ddf.operators` says what they do, `ddf.fused` the last one.

The same in every operator: dilation and stride in pixels, head, kernel_combine 'mul' or 'add', and norm_gain: None, or
the scale to which the spatial filter, then raw logits, is normalised over its taps.
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

library = namespace.claim(__version__)  # None where another copy of this package serves the process
if library is not None:
    library.define(f'forward(Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
    library.define(f'input_gradient(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> Tensor')
    library.define(f'filter_gradients(Tensor grad_output, Tensor input, {_FILTERS}, {_SETTINGS}) -> (Tensor, Tensor)')
    library.define(f'dynamic_filter(Tensor input, {_WEIGHTS}, int kernel_size, {_SETTINGS}, {_NORMS}) -> Tensor')

forward = torch.ops.ddf.forward.default
input_gradient = torch.ops.ddf.input_gradient.default
filter_gradients = torch.ops.ddf.filter_gradients.default
dynamic_filter = torch.ops.ddf.dynamic_filter.default
