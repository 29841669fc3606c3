"""Runs tests through the emulated CUDA kernels, compiled once for every state of the sources."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddf import operators

from . import library


@pytest.fixture(scope='session')
def cache(pytestconfig: pytest.Config) -> Path:
    """Where compiled libraries are kept from one run of the tests to the next."""
    assert pytestconfig.cache is not None
    return pytestconfig.cache.mkdir('cuda_emulation')


@pytest.fixture(scope='session')
def emulation(cache: Path) -> library.Emulation:
    """The kernels of the working tree."""
    if not sys.platform.startswith('linux'):
        pytest.skip('the emulation is built with GCC, on Linux')
    return library.Emulation(library.cached_library(cache))


@pytest.fixture
def emulated_ddf(emulation: library.Emulation) -> Any:
    """The operation on the emulated kernels, with their gradients."""

    class EmulatedDDF(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            ctx.save_for_backward(*arguments[:3])
            ctx.settings = arguments[3:]
            return emulation.forward(*arguments)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple:  # type: ignore[override]
            arguments = (grad_output, *ctx.saved_tensors, *ctx.settings)
            return emulation.input_gradient(*arguments), *emulation.filter_gradients(*arguments), *(None,) * 5

    return EmulatedDDF.apply


@pytest.fixture
def backend(emulated_ddf: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """In the place of the fixture of that name: `ddf.ddf` and the modules run on the emulated kernels."""
    monkeypatch.setattr(operators, 'forward', emulated_ddf)
    return 'emulated'
