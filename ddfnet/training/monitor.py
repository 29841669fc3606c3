"""What a user sees of a run: lines of progress, summary.csv, TensorBoard events and curves.png."""

import csv
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from ddfnet.training.curves import draw_curves
from ddfnet.training.engine import StepReport
from ddfnet.training.run_directory import RunDirectory

_logger = logging.getLogger('ddfnet')


class Monitor:
    """Reports a run from its primary process, into its folder.

    Args:
        start_epoch: Epochs already done. What an interrupted run reported of later ones is dropped.
        images_per_step: Over all processes.
    """

    def __init__(
        self,
        directory: RunDirectory,
        start_epoch: int,
        num_epochs: int,
        steps_per_epoch: int,
        images_per_step: int,
        log_interval: int,
        tensorboard: bool,
    ) -> None:
        self.directory = directory
        self.num_epochs = num_epochs
        self.steps_per_epoch = steps_per_epoch
        self.images_per_step = images_per_step
        self.log_interval = log_interval
        self.rows = [row for row in _read_rows(directory.summary) if int(row['epoch']) < start_epoch]
        self.writer = SummaryWriter(str(directory.path), purge_step=start_epoch) if tensorboard else None
        self.start_epoch(start_epoch)

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.start_time = time.perf_counter()

    def step(self, report: StepReport) -> None:
        """Writes a line every log_interval optimiser steps; only then is the loss read from the device."""
        step = report.step
        if step % self.log_interval and step != self.steps_per_epoch:
            return
        loss = report.loss.item()
        rate = step * self.images_per_step / (time.perf_counter() - self.start_time)
        _logger.info(
            f'epoch {self.epoch:3d}/{self.num_epochs} [{step:4d}/{self.steps_per_epoch}] loss {loss:.4f}  '
            f'{rate:.0f} samples/s'
        )

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Adds a row to summary.csv and the same values to TensorBoard and to the curves."""
        text = '  '.join(f'{name} {value:.6g}' for name, value in metrics.items())
        _logger.info(f'epoch {self.epoch:3d}/{self.num_epochs} done  {text}')
        self.rows.append({'epoch': str(self.epoch), **{name: repr(value) for name, value in metrics.items()}})
        _write_rows(self.rows, self.directory.summary)
        draw_curves(self.rows, self.directory.curves)
        if self.writer is not None:
            for name, value in metrics.items():
                self.writer.add_scalar(name, value, self.epoch)
            self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


def _write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """Every row has every column: one that a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    temporary = path.with_name(f'{path.name}.tmp')
    with open(temporary, 'w', newline='') as file:
        writer = csv.DictWriter(file, columns, restval='')
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)
