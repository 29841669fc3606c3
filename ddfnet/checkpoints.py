"""Checkpoint files: written so that a crash never leaves half of one, read without running code from them.

The keys are timm's (epoch, arch, state_dict, state_dict_ema, optimizer, metric, args as a plain dict), so that
`timm.models.load_checkpoint` opens them; what only this toolkit needs is under `run`.
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from ddfnet.errors import UserError

_WEIGHTS = ('state_dict', 'state_dict_ema', 'model')


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Writes to a temporary file beside `path`, flushes it to the disk, then renames it into place."""
    temporary = path.with_name(f'{path.name}.tmp')
    with open(temporary, 'wb') as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint on the CPU: this toolkit's, timm's or the official release's.

    A bare state_dict comes back under the key `state_dict`.

    Raises:
        UserError: Not there, or not a checkpoint.
    """
    if not Path(path).is_file():
        raise UserError(f'checkpoint not found: {path} is not a file')
    try:
        # the official release and timm keep their settings as an argparse.Namespace
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes of a damaged file lead to
        raise UserError(
            f'cannot read checkpoint {path}: it is damaged, or holds more than weights and plain settings '
            f'({type(error).__name__})'
        ) from error
    if isinstance(checkpoint, dict) and not any(key in checkpoint for key in _WEIGHTS):
        checkpoint = {'state_dict': checkpoint}
    elif isinstance(checkpoint, dict) and 'state_dict' not in checkpoint and 'model' in checkpoint:
        checkpoint['state_dict'] = checkpoint['model']
    if not _is_checkpoint(checkpoint):
        raise UserError(f'{path} is not a checkpoint: expected weights by name, as state_dict() gives them')
    return checkpoint


def _is_checkpoint(checkpoint: Any) -> bool:
    """Whether the parts that are read later have the types they must have."""
    if not isinstance(checkpoint, dict):
        return False
    weights = [checkpoint[key] for key in _WEIGHTS if checkpoint.get(key) is not None]
    return (
        bool(weights)
        and all(isinstance(part, dict) and part and all(isinstance(name, str) for name in part) for part in weights)
        and isinstance(checkpoint.get('args') or {}, dict | argparse.Namespace)
        and isinstance(checkpoint.get('epoch', 0), int)
        and isinstance(checkpoint.get('run', {}), dict)
    )


def checkpoint_settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint was made with, as far as it holds any: flags with underscores."""
    settings = checkpoint.get('args') or {}
    settings = dict(settings) if isinstance(settings, dict) else vars(settings)
    if 'arch' in checkpoint:
        settings['model'] = checkpoint['arch']
    return settings


def load_weights(model: torch.nn.Module, checkpoint: dict[str, Any], path: str | Path, use_ema: bool = False) -> None:
    """Loads a checkpoint's weights into a model of the same architecture.

    Raises:
        UserError: The checkpoint has no such weights, or they are those of another architecture.
    """
    key = 'state_dict_ema' if use_ema else 'state_dict'
    if checkpoint.get(key) is None:
        raise UserError(f'{path} holds no {"averaged (EMA) " if use_ema else ""}weights: no key {key!r}')
    state_dict = {name.removeprefix('module.'): value for name, value in checkpoint[key].items()}
    own = model.state_dict()
    # of a model trained with --split-bn the statistics of the varied splits serve training alone
    state_dict = {name: value for name, value in state_dict.items() if '.aux_bn.' not in name or name in own}
    try:
        model.load_state_dict(state_dict)
    except (RuntimeError, AttributeError) as error:
        arch = checkpoint.get('arch')
        problems = [problem.strip().rstrip('.')[:200] for problem in str(error).strip().splitlines()]
        raise UserError(
            f'the weights of {path}{f" (model {arch})" if arch else ""} do not fit model {type(model).__name__}: '
            f'{"; ".join(problems[1:4] or problems)}. Give the --model and --num-classes '
            'that the checkpoint was made with'
        ) from error
