"""1x1 convolutions of large maps as matrix products: equal to the layer, which is called wherever more is asked."""

import pytest
import torch
from torch import nn

from ddf.pointwise import pointwise

from .module_cases import output_and_gradients

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')
LARGE = 2, 6, 28, 28


def is_product(x, layer):
    with torch.enable_grad():
        output = pointwise(x.detach().requires_grad_(), layer)
    return output.grad_fn.name() == 'UnsafeViewBackward0'


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('shape', [LARGE, (3, 5, 1, 784), (2, 70, 31, 57)], ids=str)
def test_equals_the_layer(shape, bias, dtype):
    layer = nn.Conv2d(shape[1], 9, 1, bias=bias, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    assert is_product(x, layer)
    results = output_and_gradients(lambda x: pointwise(x, layer), x, layer.parameters())
    for result, expected in zip(results, output_and_gradients(layer, x, layer.parameters()), strict=True):
        assert result.stride() == expected.stride()
        assert (result - expected).abs().max() <= (1e-5 if dtype == torch.float32 else 1e-14) * expected.abs().max()


@pytest.mark.parametrize(
    ('layer', 'x'),
    [
        (nn.Conv2d(6, 9, 1), torch.randn(2, 6, 27, 28)),
        (nn.Conv2d(6, 9, 1), torch.randn(1, 6, 28, 28)),
        (nn.Conv2d(6, 9, 1), torch.randn(LARGE).to(memory_format=torch.channels_last)),
        (nn.Conv2d(6, 9, 1, dtype=torch.bfloat16), torch.randn(LARGE, dtype=torch.bfloat16)),
        (nn.Conv2d(6, 9, 3), torch.randn(LARGE)),
        (nn.Conv2d(6, 9, 1, padding=1), torch.randn(LARGE)),
        (nn.Conv2d(6, 9, 1, groups=3), torch.randn(LARGE)),
        (nn.Conv2d(6, 9, 1, stride=2), torch.randn(LARGE)),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 9, 1)), torch.randn(LARGE)),
        (nn.Sequential(nn.Conv2d(6, 9, 1)), torch.randn(LARGE)),
    ],
    ids=[
        *('small map', 'one image', 'channels_last', 'half precision', '3x3', 'padded', 'grouped', 'strided'),
        *('parametrised', 'another layer'),
    ],
)
def test_other_layers_and_maps(layer, x):
    assert is_product(torch.randn(LARGE), nn.Conv2d(6, 9, 1)), 'or what follows would prove nothing'
    assert not is_product(x, layer)
    torch.testing.assert_close(pointwise(x, layer), layer(x))


@pytest.mark.parametrize('channels', [(256, 64), (64, 256), (512, 256)], ids=str)
def test_layers_of_networks_are_products(channels):
    assert is_product(torch.randn(2, channels[0], 28, 28), nn.Conv2d(*channels, 1))


def test_weights_that_outnumber_the_map_are_left_to_the_layer():
    """Each image has a gradient of them."""
    assert not is_product(torch.randn(2, 512, 28, 28), nn.Conv2d(512, 2048, 1))


def test_output_may_be_changed_in_place():
    with torch.no_grad():
        output = pointwise(torch.randn(LARGE), nn.Conv2d(6, 9, 1))
    output += nn.Parameter(torch.ones(1))
    assert output.requires_grad


def test_replaced_weight_counts():
    layer, x = nn.Conv2d(6, 9, 1), torch.randn(LARGE)
    layer.weight, layer.bias = nn.Parameter(layer.weight[:4].detach()), None
    assert is_product(x, layer)
    torch.testing.assert_close(pointwise(x, layer), layer(x))


def test_autocast_is_left_to_the_layer():
    with torch.autocast('cpu', torch.bfloat16):
        assert not is_product(torch.randn(LARGE), nn.Conv2d(6, 9, 1))


def test_hooked_layer_is_called():
    layer, seen = nn.Conv2d(6, 9, 1), []
    layer.register_forward_hook(lambda *_: seen.append('layer'))
    pointwise(torch.randn(LARGE), layer)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append('all'))
    pointwise(torch.randn(LARGE), nn.Conv2d(6, 9, 1))
    handle.remove()
    assert seen == ['layer', 'all']


def test_map_of_other_channels_is_refused_as_by_the_layer():
    with pytest.raises(RuntimeError, match='to have 6 channels'):
        pointwise(torch.randn(2, 5, 28, 28), nn.Conv2d(6, 9, 1))
