"""The folder of a run: its name, its files, and whether a new run may use it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from timm.models import safe_model_name

from ddfnet.config import RunConfig, TrainConfig
from ddfnet.distributed import Processes
from ddfnet.errors import UserError


@dataclass(frozen=True)
class RunDirectory:
    """Paths of everything a run leaves behind."""

    path: Path

    @property
    def settings(self) -> Path:
        return self.path / 'args.yaml'

    @property
    def summary(self) -> Path:
        return self.path / 'summary.csv'

    @property
    def curves(self) -> Path:
        return self.path / 'curves.png'

    @property
    def last(self) -> Path:
        return self.path / 'last.pth.tar'

    @property
    def best(self) -> Path:
        return self.path / 'model_best.pth.tar'

    def checkpoint(self, epoch: int) -> Path:
        return self.path / f'checkpoint-{epoch}.pth.tar'

    @property
    def stopped(self) -> Path:
        """There while the run is stopped by a signal and can go on: what a scheduler looks for."""
        return self.path / 'stopped.json'

    def create(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder and writes the resolved settings, enough to repeat the run with `-c`."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.stopped.unlink(missing_ok=True)
            self.settings.write_text(yaml.safe_dump(dict(settings), sort_keys=False))
        except OSError as error:
            raise UserError(f'cannot write to the run folder {self.path}: {error}') from error


def plan_run(config: RunConfig, model_name: str, image_size: int) -> tuple[RunDirectory, Path | None]:
    """Where the run goes, and the checkpoint it goes on from, or None. Writes nothing.

    `resume` is a checkpoint or 'auto'. Without a name of its own, a run resumed from a checkpoint of a run folder goes
    on in that folder.

    Raises:
        UserError: A folder that exists where nothing is resumed, a checkpoint that is not there, or 'auto' without a
            name to look for.
    """
    if config.resume == 'auto':
        if not config.experiment:
            raise UserError('--resume auto needs --experiment NAME: a run without a name cannot be found again')
        directory = RunDirectory(Path(config.output) / config.experiment)
        return directory, directory.last if directory.last.is_file() else None
    if config.resume:
        checkpoint: Path | None = Path(config.resume)
        if not Path(config.resume).is_file():
            raise UserError(f'checkpoint to resume not found: {checkpoint} is not a file')
        own_folder = RunDirectory(Path(config.resume).parent)
        if not config.experiment and own_folder.settings.is_file():
            return own_folder, checkpoint
    else:
        checkpoint = None
    directory = RunDirectory(_folder(config, model_name, image_size))
    own = checkpoint is not None and checkpoint.resolve().parent == directory.path.resolve()
    if not own and directory.path.exists() and (not directory.path.is_dir() or any(directory.path.iterdir())):
        raise UserError(
            f'the run folder {directory.path} exists: go on with --resume auto, or give another --experiment'
        )
    _check_writable(directory.path)
    return directory, checkpoint


def plan_for_all(config: TrainConfig, processes: Processes) -> tuple[RunDirectory, Path | None]:
    """`plan_run` of the first process, for all of them. A collective call; raises what that does, in each."""
    mistake = planned = None
    if processes.is_primary:
        try:
            planned = plan_run(config.run, config.model.model, config.model.img_size or 0)
        except UserError as error:
            mistake = str(error)
    planned, mistake = processes.broadcast((planned, mistake))
    if planned is None:
        raise UserError(mistake)
    return planned


def _folder(config: RunConfig, model_name: str, image_size: int) -> Path:
    default = f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(model_name)}-{image_size}'
    return Path(config.output) / (config.experiment or default)


def _check_writable(path: Path) -> None:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise UserError(f'cannot write to {existing}: give another --output')
