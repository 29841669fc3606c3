"""Modules and maps for the tests of those that run in one call."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from torch import nn

LAYOUTS = pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)

PACKS = [
    ((2, 8, 5, 6), {}),
    ((1, 64, 56, 56), {}),
    ((8, 64, 28, 28), {'stride': 2}),
    ((3, 66, 17, 13), {'kernel_size': 5, 'stride': 2, 'head': 3, 'kernel_combine': 'add'}),
    ((2, 130, 7, 7), {}),
    ((5, 130, 7, 7), {}),
    ((16, 34, 9, 9), {'kernel_size': 7, 'stride': 3, 'head': 2, 'dilation': 2}),
    ((1, 5, 1, 1), {'se_ratio': 1}),
    ((4, 20, 1, 1), {'se_ratio': 1}),
    ((2, 16, 3, 28), {'stride': 40}),
]


@contextmanager
def calls_of(owner, name):
    """The arguments of every call of a function, which is looked up where it is called."""
    seen, function = [], getattr(owner, name)

    def call(*arguments):
        seen.append(arguments)
        return function(*arguments)

    with mock.patch.object(owner, name, call):
        yield seen


def output_and_gradients(function, x, parameters=()):
    """What a function gives for x, and the gradients of x and of parameters for some weights of the output."""
    x = x.detach().requires_grad_()
    output = function(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    return output, *torch.autograd.grad(output, [x, *parameters], weights)


def downsample_conv(in_channels, out_channels, stride=1, kernel_size=1):
    """The shortcut of timm's ResNets."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


def downsample_avg(in_channels, out_channels):
    """That of its other ResNets, at stride 2."""
    return nn.Sequential(nn.AvgPool2d(2, ceil_mode=True), *downsample_conv(in_channels, out_channels))
