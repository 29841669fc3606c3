"""The stem's max pooling: torch's to the bit, and torch's own wherever more is asked."""

import pytest
import timm
import torch
from torch import nn

from ddfnet.models import max_pool
from ddfnet.models.max_pool import MaxPool2d
from tests.ddf.module_cases import calls_of, output_and_gradients

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')


@pytest.fixture
def calls():
    """An entry for each pooling that took the other layout."""
    with calls_of(max_pool._MaxPool, 'apply') as seen:
        yield seen


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('settings', [(3, 2, 1), ((3, 2), (2, 3), (1, 0), 2), (2, 2, 0, 1, False, True)], ids=str)
@pytest.mark.parametrize('shape', [(2, 8, 12, 13), (1, 3, 7, 6), (4, 5, 6, 6)], ids=str)
def test_equals_torch_to_the_bit(calls, shape, settings, dtype):
    """With values that occur often, whose gradient goes to the first, and with some that are not numbers."""
    layer = nn.MaxPool2d(*settings)
    x = torch.randint(-2, 3, shape).to(dtype).relu()
    x[0, 0, 1, 2] = float('nan')
    with torch.no_grad():
        values = MaxPool2d.like(layer)(x)
    results = values, *output_and_gradients(MaxPool2d.like(layer), x)
    output, gradient = output_and_gradients(layer, x)
    for result, expected in zip(results, (output, output, gradient), strict=True):
        assert result.is_contiguous()
        assert torch.equal(result.nan_to_num(9), expected.nan_to_num(9))
        assert torch.equal(result.isnan(), expected.isnan())
    assert len(calls) == 2


def test_second_derivatives():
    x = torch.randperm(2 * 2 * 5 * 6).double().view(2, 2, 5, 6).requires_grad_()
    assert torch.autograd.gradgradcheck(MaxPool2d(3, 2, 1), x)


def channels_last(layer, x):
    assert torch.equal(layer(x.to(memory_format=torch.channels_last)), nn.MaxPool2d(3, 2, 1)(x))


def without_a_batch(layer, x):
    assert torch.equal(layer(x[0]), nn.MaxPool2d(3, 2, 1)(x[0]))


def with_indices(_layer, x):
    assert len(MaxPool2d(3, 2, 1, return_indices=True)(x)) == 2


def in_half_precision(layer, x):
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def in_vmap(layer, x):
    torch.testing.assert_close(torch.vmap(layer)(x[None])[0], nn.MaxPool2d(3, 2, 1)(x))


def compiled(layer, x):
    torch.testing.assert_close(torch.compile(layer, backend='eager', fullgraph=True)(x), nn.MaxPool2d(3, 2, 1)(x))


@pytest.mark.filterwarnings('ignore:.*torch.jit')
def scripted(layer, x):
    torch.testing.assert_close(torch.jit.script(layer)(x), nn.MaxPool2d(3, 2, 1)(x))


@pytest.mark.parametrize(
    'use',
    [channels_last, without_a_batch, with_indices, in_half_precision, in_vmap, compiled, scripted],
    ids=lambda use: use.__name__,
)
def test_torchs_own_serves_where_more_is_asked(calls, use):
    layer, x = MaxPool2d(3, 2, 1), torch.randn(2, 3, 9, 8)
    layer(x)
    assert len(calls) == 1, 'or what follows would prove nothing'
    use(layer, x)
    assert len(calls) == 1


def test_models_have_it_where_timm_has_torchs():
    assert type(timm.create_model('ddf_mul_resnet26').maxpool) is MaxPool2d
    assert not isinstance(timm.create_model('ddf_mul_resnet26', replace_stem_pool=True).maxpool, nn.MaxPool2d)
    assert any(
        type(module) is MaxPool2d for module in timm.create_model('ddf_mul_resnet26', features_only=True).modules()
    )
