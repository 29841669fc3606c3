"""Modules and maps for the tests of those that run in one call."""

import pytest
import torch

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
