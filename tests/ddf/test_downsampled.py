"""The shortcut of a residual block: the products of its layers, without the stride that costs a copy."""

import copy

import pytest
import torch
from torch import nn

from ddf.residual import downsampled

from .module_cases import downsample_avg, downsample_conv, output_and_gradients

CONTIGUOUS = torch.contiguous_format


@pytest.mark.parametrize('memory_format', [CONTIGUOUS, torch.channels_last], ids=str)
@pytest.mark.parametrize('size', [(6, 8), (7, 5), (1, 1)], ids=str)
@pytest.mark.parametrize('stride', [1, 2, 3])
def test_equals_the_layers(stride, size, memory_format):
    torch.manual_seed(0)
    layers = downsample_conv(4, 6, stride).double()
    x = torch.randn(3, 4, *size, dtype=torch.float64).to(memory_format=memory_format)
    others = copy.deepcopy(layers)
    results = output_and_gradients(lambda x: downsampled(x, layers), x, layers.parameters())
    for result, expected in zip(results, output_and_gradients(others, x, others.parameters()), strict=True):
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(layers.state_dict(), others.state_dict())


@pytest.mark.parametrize(
    ('memory_format', 'in_autocast', 'expected'),
    [(CONTIGUOUS, False, (1, 1)), (CONTIGUOUS, True, (1, 1)), (torch.channels_last, False, (2, 2))],
    ids=str,
)
def test_stride_of_the_convolution(memory_format, in_autocast, expected):
    x = torch.randn(2, 4, 6, 6).to(memory_format=memory_format).requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=in_autocast):
        output = downsampled(x, nn.Sequential(nn.Conv2d(4, 6, 1, 2)))
    assert output.shape == (2, 6, 3, 3)
    assert output.grad_fn._saved_stride == expected


@pytest.mark.parametrize(
    'layers',
    [
        downsample_conv(4, 6, 2, 3),
        downsample_avg(4, 6),
        nn.Sequential(nn.Conv2d(4, 6, 1, 2, padding=1)),
        nn.Sequential(nn.Conv2d(4, 6, 1, 2, groups=2), nn.BatchNorm2d(6)),
        nn.Sequential(),
        nn.MaxPool2d(2),
    ],
    ids=['3x3', 'pooled', 'padded', 'grouped', 'none', 'another layer'],
)
def test_other_layers_are_called(layers):
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    torch.testing.assert_close(downsampled(x, layers), layers(x))


@pytest.mark.parametrize('name', ['0', '1', ''], ids=['convolution', 'norm', 'shortcut'])
def test_hooked_layers_are_called(name):
    layers, x, seen = downsample_conv(4, 6, 2), torch.randn(2, 4, 6, 6, requires_grad=True), []
    layers.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    downsampled(x, layers)
    assert seen == [name]


def test_hook_of_all_modules_sees_every_layer():
    layers, x, seen = downsample_conv(4, 6, 2), torch.randn(2, 4, 6, 6, requires_grad=True), []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    downsampled(x, layers)
    handle.remove()
    assert seen == [*layers, layers]
