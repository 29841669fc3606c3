"""Fixtures shared by all tests: the official numbers, weights by formula, and the choice of backend."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import ddf
from ddf import guards, operators, reference

# builds that tests start leave out the CUDA kernels, which take minutes; what tests those asks for them
os.environ.setdefault('FORCE_CUDA', '0')

GOLDEN = Path(__file__).parent / 'golden'


def load_golden(name: str) -> Any:
    """A file of tests/golden: parsed JSON, or an npz archive."""
    path = GOLDEN / name
    return json.loads(path.read_text()) if path.suffix == '.json' else np.load(path)


def assert_golden(actual: Tensor, expected: np.ndarray) -> None:
    """Equal to the official number to float64 precision; the absolute part covers sums that cancel to about zero."""
    expected_tensor = torch.from_numpy(np.asarray(expected))
    scale = expected_tensor.abs().max().item() if expected_tensor.numel() else 0.0
    torch.testing.assert_close(actual.detach(), expected_tensor, rtol=1e-9, atol=1e-12 * max(scale, 1e-300))


def set_golden_weights(module: torch.nn.Module) -> None:
    """Fills a module with the weights that the official numbers were computed with (tests/golden/README.md)."""
    state = module.state_dict()
    module.load_state_dict({key: _golden_weight(key, tuple(value.shape)) for key, value in state.items()})


def _golden_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    random = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF)
    last = key.rsplit('.', 1)[-1]
    if last == 'num_batches_tracked':
        return torch.tensor(0)
    if last == 'running_var':
        return torch.from_numpy(0.75 + 0.5 * random.random_sample(shape))
    normal = random.standard_normal(shape)
    if last == 'std':
        return torch.from_numpy(0.5 * normal)
    if last in ('running_mean', 'mean', 'bias'):
        return torch.from_numpy(0.1 * normal)
    if len(shape) == 1:
        return torch.from_numpy((1 + 0.1 * normal) * (0.2 if key.endswith('bn3.weight') else 1.0))
    return torch.from_numpy(normal * np.sqrt(2.0 / np.prod(shape[1:])))


class _ReferenceDDF(torch.autograd.Function):
    """The reference with its own explicit backward, whatever library is loaded."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        ctx.save_for_backward(*arguments[:3])
        ctx.settings = arguments[3:]
        return reference.forward(*arguments)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple:  # type: ignore[override]
        arguments = (grad_output, *ctx.saved_tensors, *ctx.settings)
        return reference.input_gradient(*arguments), *reference.filter_gradients(*arguments), *(None,) * 5


@pytest.fixture
def compiled_cpu_kernels() -> None:
    """Fails a test of the compiled kernels where there are none."""
    if 'cpu' not in ddf.build_info().devices:
        pytest.fail(f'no compiled CPU kernel to test:\n{ddf.build_info()}')


@pytest.fixture
def random_numbers() -> None:
    """Starts torch's random numbers anew, so that a test draws the same ones alone and among others."""
    torch.manual_seed(0)


@pytest.fixture(params=['compiled', 'reference'])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test through the compiled kernels and through the reference."""
    if request.param == 'reference':
        monkeypatch.setattr(operators, 'forward', _ReferenceDDF.apply)
        monkeypatch.setattr(guards, 'has_kernel', lambda: False)
    else:
        request.getfixturevalue('compiled_cpu_kernels')
    return request.param


@pytest.fixture
def make_arguments() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Random (input, channel_filter, spatial_filter) for given sizes and settings."""

    def make(
        batch: int = 2,
        channels: int = 4,
        height: int = 6,
        width: int = 7,
        kernel_size: int = 3,
        stride: int = 1,
        head: int = 1,
        channel_batch: int | None = None,
        spatial_batch: int | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        grid = reference.output_size(height, stride), reference.output_size(width, stride)
        shapes = (
            (batch, channels, height, width),
            (batch if channel_batch is None else channel_batch, channels, kernel_size, kernel_size),
            (batch if spatial_batch is None else spatial_batch, head * kernel_size**2, *grid),
        )
        tensors = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
        return tuple(tensor.requires_grad_() for tensor in tensors)  # type: ignore[return-value]

    return make
