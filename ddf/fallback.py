"""What serves a device without compiled kernels: the reference, on GPUs compiled by torch, which fuses its taps.

Kernels of `torch.ops.ddf.*` see plain tensors only: tracing, autograd and vmap have had their turn before.
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch

from . import extension

# device types whose reference passes through torch.compile
COMPILED_DEVICES = {'cuda'}

_SETTINGS = 5  # the last arguments of every operator

_failed: set[str] = set()  # device types for which torch.compile did not work


def run(kernel: Callable, device_type: str, *arguments: Any) -> Any:
    """`kernel(*arguments)`, a function of `ddf.reference`, by the way that `name` gives; says so once per device."""
    _warn(device_type)
    if is_compiled(device_type):
        tensors, settings = arguments[:-_SETTINGS], arguments[-_SETTINGS:]
        try:
            with torch.no_grad():
                return _compiled(kernel, settings)(*(tensor.detach() for tensor in tensors))
        except torch._dynamo.exc.TorchDynamoException as error:
            _failed.add(device_type)
            reason = str(error).partition('\n')[0]
            warnings.warn(
                f'ddf: torch.compile fails on {device_type!r} ({reason}): plain torch serves, slower', stacklevel=2
            )
    return kernel(*arguments)


def is_compiled(device_type: str) -> bool:
    """Whether the reference passes through torch.compile on a device, where no compiled kernel serves."""
    return (
        device_type in COMPILED_DEVICES
        and device_type not in _failed
        and not extension.reference_is_wanted()
        and (device_type == 'cpu' or importlib.util.find_spec('triton') is not None)
    )


def name(device_type: str) -> str:
    """How the reference runs on a device."""
    return 'the compiled shifted sum (torch.compile)' if is_compiled(device_type) else 'plain torch'


def notes(devices: tuple[str, ...]) -> list[str]:
    """A line on the GPUs that torch sees here, where the library has no kernels for them."""
    if 'cuda' in devices or not torch.cuda.is_available() or extension.reference_is_wanted():
        return []
    return [f'note: no CUDA kernels here, {name("cuda")} serves GPUs. {_remedy()}']


@functools.cache
def _compiled(kernel: Callable, settings: tuple) -> Callable:
    def run(*tensors: Any) -> Any:
        return kernel(*tensors, *settings)

    # torch limits recompilations per code object, so each settings have one; sizes known in advance compile faster
    run.__code__ = run.__code__.replace()
    return torch.compile(run, dynamic=False)


def _remedy() -> str:
    return (
        f"With NVIDIA's nvcc on PATH or in CUDA_HOME `python -m {__package__} build` compiles them; "
        'FORCE_CUDA=1 has it say what is missing'
    )


@functools.cache
def _warn(device_type: str) -> None:
    if not extension.reference_is_wanted():
        remedy = f' {_remedy()}.' if device_type == 'cuda' else ''
        warnings.warn(
            f'ddf has no compiled kernel for {device_type!r} here and runs on {name(device_type)}, which is slower: '
            f'`python -m {__package__}` says why and how to mend it.{remedy}',
            stacklevel=3,
        )
