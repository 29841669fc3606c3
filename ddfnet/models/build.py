"""Models and their input by configuration; mistakes become UserErrors before anything starts."""

import copy
import difflib
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg

from ddfnet.checkpoints import read_checkpoint
from ddfnet.config import ModelSource
from ddfnet.config.values import did_you_mean, flag
from ddfnet.errors import UserError, first_line


def model_in_chans(config: ModelSource, name: str) -> int:
    """Channels of the images for a model: as configured, else the model's own."""
    if config.input_size is not None:
        return config.input_size[0]
    if config.in_chans is not None:
        return config.in_chans
    check_model_name(name)
    pretrained_cfg = timm.get_pretrained_cfg(name)
    return pretrained_cfg.input_size[0] if pretrained_cfg is not None else 3


def check_model_name(name: str) -> None:
    """Raises UserError, with the nearest names, where no model of this name is registered."""
    if timm.is_model(name):
        try:
            timm.get_pretrained_cfg(name)
        except RuntimeError as error:
            raise UserError(f'model {name!r}: {error}') from error
        return
    nearest = difflib.get_close_matches(name, timm.list_models(), n=3)
    hint = f': did you mean {", ".join(nearest)}?' if nearest else ': timm.list_models() lists them'
    raise UserError(f'unknown model {name!r}{hint}')


def model_names(patterns: Iterable[str]) -> dict[str, bool]:
    """Names that are registered with timm, each once, with whether it was named itself and not by a `*` or `?`.

    Args:
        patterns: `@FILE`, or a name that ends with `.txt`, stands for the lines of a file.

    Raises:
        UserError: A name or a pattern that no model has, or a file that cannot be read or names none.
    """
    names: dict[str, bool] = {}
    for pattern in patterns:
        for name, named in _matching(pattern).items():
            names[name] = named or names.get(name, False)
    return names


def _matching(pattern: str) -> dict[str, bool]:
    """`model_names` of a single pattern."""
    if _is_list(pattern):
        return _names_of_file(pattern.removeprefix('@'))
    if not any(mark in pattern for mark in '*?['):
        check_model_name(pattern)
        return {pattern: True}
    found = timm.list_models(pattern)
    if not found:
        raise UserError(f'no model matches {pattern!r}: timm.list_models() lists them')
    return dict.fromkeys(found, False)


def _is_list(pattern: str) -> bool:
    return pattern.startswith('@') or pattern.endswith('.txt')


def _names_of_file(path: str) -> dict[str, bool]:
    """`model_names` of the lines of a file; what follows `#` is a comment."""
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise UserError(f'--model: cannot read {path}: {error.strerror}') from None
    except UnicodeDecodeError:
        raise UserError(f'--model: expected a text file of names, {path} is none') from None
    names: dict[str, bool] = {}
    for number, line in enumerate(lines, 1):
        pattern = line.partition('#')[0].strip()
        if _is_list(pattern):
            raise UserError(f'{path}, line {number}: expected a model, got another list, {pattern!r}')
        try:
            names |= model_names([pattern] if pattern else [])
        except UserError as error:
            raise UserError(f'{path}, line {number}: {error}') from None
    if not names:
        raise UserError(f'--model: {path} names no model: expected one on each line')
    return names


def build_model(
    config: ModelSource,
    name: str,
    num_classes: int | None,
    in_chans: int,
    *,
    new_classifier: bool = False,
    **regularisation: Any,
) -> torch.nn.Module:
    """A timm model in float32 on the CPU.

    Args:
        num_classes: None keeps the model's.
        new_classifier: Leave out the classifier that pretrained_path holds.
        regularisation: Further arguments of timm's create_model; those that are None are left out.

    Raises:
        UserError: Unknown model, published weights that do not exist or cannot be had, weights of another model, or
            arguments that the model does not take.
    """
    check_model_name(name)
    overlay = _weights_at(config.pretrained_path, name, num_classes, new_classifier)
    try:
        model: Any = timm.create_model(
            name,
            pretrained=config.pretrained or bool(overlay),
            pretrained_cfg_overlay=overlay,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=config.gp,
            **regularisation,
            **config.model_kwargs,
        )
        model.pretrained_cfg.pop('state_dict', None)  # has served
        return model
    except OSError as error:
        raise UserError(
            f'cannot get the published weights of model {name!r}: {first_line(error)}; is there a network? Weights in '
            'a file need none: --initial-checkpoint or, for a teacher, --kd-checkpoint'
        ) from error
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        unexpected = "unexpected keyword argument '{}'"
        refused = next((key for key in regularisation if unexpected.format(key) in str(error)), None)
        if refused:
            raise UserError(
                f'model {name!r} has no {refused}: leave {flag(refused.removesuffix("_rate"))} out'
            ) from error
        if overlay:
            problems = [line.strip()[:200] for line in str(error).strip().splitlines()]
            raise UserError(
                f'the weights of {config.pretrained_path} do not fit model {name}: {"; ".join(problems[:4])}'
            ) from error
        raise UserError(f'cannot build model {name!r}: {error}') from error


def _weights_at(path: str, name: str, num_classes: int | None, new_classifier: bool) -> dict[str, Any] | None:
    """What makes timm take a checkpoint for the published weights; None without one."""
    if not path:
        return None
    state_dict = {key.removeprefix('module.'): value for key, value in read_checkpoint(path)['state_dict'].items()}
    published = timm.get_pretrained_cfg(name) or PretrainedCfg()
    # timm takes a classifier only where the published weights have as many classes as the model
    overlay: dict[str, Any] = {
        'state_dict': state_dict, 'num_classes': -1 if new_classifier else num_classes or published.num_classes
    }  # fmt: skip
    first = state_dict.get(f'{published.first_conv}.weight')
    if first is not None:  # and needs to know the channels that the first convolution was trained on
        overlay['input_size'] = (first.shape[1], *published.input_size[1:])
    return overlay


def check_compiler(backend: str | None, device: torch.device | None = None) -> None:
    """Raises UserError where torch.compile has no such back end, those for debugging included, or where the C++
    compiler that inductor needs on a CPU is missing or fails. None is no back end."""
    if backend == 'inductor' and device is not None and device.type == 'cpu':
        check_cpp_compiler('--torchcompile inductor')
    if backend is None or backend in torch.compiler.list_backends(exclude_tags=()):
        return
    usual = torch.compiler.list_backends()
    raise UserError(
        f'--torchcompile: expected one of {", ".join(usual)}, got {backend!r}{did_you_mean(backend, usual)}'
    )


def check_cpp_compiler(wanted: str) -> None:
    """Raises UserError where torch.compile finds no C++ compiler, which what is `wanted` needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes seconds to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
        _compile_nothing(compiler)
    except (InvalidCxxCompiler, OSError, subprocess.CalledProcessError) as error:
        reason = _last_line(error.stderr) if isinstance(error, subprocess.CalledProcessError) else ''
        raise UserError(
            f'{wanted} needs a C++ compiler that works on a CPU ({reason or first_line(error)}): install g++, name '
            'another in CXX, or leave it out'
        ) from error


def _compile_nothing(compiler: str) -> None:
    """Compiles and links a source with the headers of C++ and Python that inductor's own has."""
    include = sysconfig.get_path('include')
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [compiler, '-x', 'c++', '-', '-shared', '-fPIC', f'-I{include}', '-o', f'{folder}/nothing.so'],
            input='#include <cmath>\n#include <Python.h>\n', capture_output=True, text=True, check=True,
        )  # fmt: skip


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), '')


def check_forward(model: torch.nn.Module, input_size: tuple[int, int, int], batch_size: int, train: bool) -> None:
    """Runs a copy of the model once, so that an input that it does not take is found before anything starts.

    Raises:
        UserError: The model does not take images of this size, or in training too few of them for its BatchNorm.
    """
    copied = copy.deepcopy(model).train(train)
    try:
        with torch.no_grad():
            copied(torch.zeros(min(batch_size, 2), *input_size))
    except (AssertionError, RuntimeError, ValueError) as error:
        shape = ' x '.join(map(str, input_size))
        raise UserError(
            f'model {type(model).__name__} does not take a batch of {batch_size} images of {shape}: '
            f'{first_line(error)}; give another --img-size or --batch-size, or --model-kwargs that fit'
        ) from error


def resolve_input(config: ModelSource, model: torch.nn.Module, in_chans: int, **settings: Any) -> dict[str, Any]:
    """input_size (C, H, W), mean, std, interpolation, crop_pct, crop_mode: as configured, else the model's.

    The model's mean and std are averaged over channels where it was made for another number of them.

    Args:
        settings: Further settings of timm's resolve_data_config: crop_mode, use_test_size.

    Raises:
        UserError: A mean or std of the wrong length.
    """
    for name in ('mean', 'std'):
        values = getattr(config, name)
        if values is not None and len(values) not in (1, in_chans):
            raise UserError(f'{name} takes one value, or one per channel ({in_chans}), got {list(values)}')
    names = ('input_size', 'img_size', 'mean', 'std', 'interpolation', 'crop_pct')
    wanted = {name: getattr(config, name) for name in names} | {'crop_mode': settings.pop('crop_mode', None)}
    resolved = resolve_data_config({**wanted, 'in_chans': in_chans}, model=model, **settings)
    resolved['input_size'] = (in_chans, *resolved['input_size'][-2:])
    for name in ('mean', 'std'):
        if len(resolved[name]) != in_chans:
            resolved[name] = (sum(resolved[name]) / len(resolved[name]),) * in_chans
    return resolved
