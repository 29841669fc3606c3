"""What a user sees of a run: a line of progress, summary.csv, TensorBoard events and curves.png."""

import contextlib
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from ddfnet.config import to_flat_dict
from ddfnet.distributed import Processes
from ddfnet.memory import memory_in_use
from ddfnet.training.components import Components
from ddfnet.training.curves import draw_curves
from ddfnet.training.engine import Progress, StepReport
from ddfnet.training.events import Events
from ddfnet.training.pictures import filters_shown, inputs_shown
from ddfnet.training.run_directory import RunDirectory
from ddfnet.training.status_line import StatusLine
from ddfnet.training.summary import Summary

_logger = logging.getLogger('ddfnet')
_PICTURED_EPOCHS = 10


class Monitor:
    """Reports a run from its primary process, into its folder. What an interrupted run reported of later is dropped."""

    def __init__(
        self, components: Components, progress: Progress, directory: RunDirectory, processes: Processes
    ) -> None:
        config = components.config
        self.components = components
        self.directory = directory
        self.device = processes.device
        self.num_epochs = components.num_epochs
        self.steps_per_epoch = components.train_loader.updates_per_epoch
        self.log_interval = config.run.log_interval
        self.loader = components.train_loader
        self.summary = Summary(directory.summary, progress.epoch)
        self.events: Events | None = None
        self.first_step = progress.epoch * self.steps_per_epoch + progress.step
        if config.run.tensorboard:
            names = [
                f'{name}/{key}'
                for name in ('validation', 'ema')[: 1 + config.ema.model_ema]
                for key in ('loss', 'top1')
            ]
            self.events = Events(directory.path, self.first_step, to_flat_dict(config), ['train/loss', *names])
        self.line = StatusLine()
        _logger.addFilter(self.line)
        self.start_time = time.perf_counter()
        self.text = ''

    def start_epoch(self, progress: Progress) -> None:
        self.epoch = progress.epoch
        self.resumed = progress.step > 0
        self._mark(progress.step, 0.0, progress.loss_sum, progress.nonfinite, 0, 0)

    def _mark(
        self, step: int, data_seconds: float, loss_sum: float, nonfinite: int, correct: int, labelled: int
    ) -> None:
        """Where the next line's averages begin."""
        self.marked = time.perf_counter(), step, data_seconds, loss_sum, nonfinite, correct, labelled

    def step(self, report: StepReport) -> None:
        """Reports a logging step. Of other steps only the count is shown, on a terminal; none waits for the device."""
        head = f'epoch {self.epoch:3d}/{self.num_epochs} [{report.step:4d}/{self.steps_per_epoch}]'
        if report.step % self.log_interval and report.step != self.steps_per_epoch:
            if self.line.due():
                self.line.show(f'{head} {self.text}')
            return
        values = self._read(report)
        steps_done = self.epoch * self.steps_per_epoch + report.step
        self.text = self._text(values, steps_done)
        if self.line.on_terminal:
            self.line.show(f'{head} {self.text}')
        else:
            _logger.info(f'{head} {self.text}')
        if self.events:
            self.events.scalars({f'step/{name}': value for name, value in values.items()}, steps_done)

    def _read(self, report: StepReport) -> dict[str, float | None]:
        """Values of a logging step; rates, loss and top-1 since the last one."""
        loss_sum, norm = report.loss_sum.item(), report.grad_norm.item()
        nonfinite, correct = int(report.nonfinite), int(report.correct)
        then, step, data_then, loss_then, nonfinite_then, correct_then, labelled_then = self.marked
        if self.resumed:  # reading a stream up to where it goes on is no training
            skipped, self.resumed = self.loader.skip_seconds, False
            then, data_then, self.start_time = then + skipped, data_then + skipped, self.start_time + skipped
        seconds = max(time.perf_counter() - then, 1e-9)
        labelled = report.labelled - labelled_then
        batches = (report.step - step - (nonfinite - nonfinite_then)) * report.accumulation  # of steps that were taken
        memory = memory_in_use(self.device)
        values = {
            'loss': (loss_sum - loss_then) / batches if batches else math.nan,
            'top1': 100 * (correct - correct_then) / labelled if labelled else None,
            'samples_per_s': (report.step - step) * self.loader.samples_per_step / seconds,
            'waiting_for_data_percent': 100 * (report.data_seconds - data_then) / seconds,
            'lr': report.lr,
            'grad_norm': norm,
            'nonfinite': nonfinite,
            'memory_gb': memory / 1e9 if memory is not None else None,
        }
        self._mark(report.step, report.data_seconds, loss_sum, nonfinite, correct, report.labelled)
        return values

    def _text(self, values: Mapping[str, float | None], steps_done: int) -> str:
        seconds = (time.perf_counter() - self.start_time) / max(1, steps_done - self.first_step)
        left = round(seconds * (self.num_epochs * self.steps_per_epoch - steps_done))
        top1 = '' if values['top1'] is None else f'top-1 {values["top1"]:.2f} %  '
        suppressed = f'{values["nonfinite"]:.0f} not finite  ' if values['nonfinite'] else ''
        memory = '' if values['memory_gb'] is None else f'  {values["memory_gb"]:.2f} GB'
        return (  # what a narrow terminal may leave out comes last
            f'loss {values["loss"]:.4f}  {top1}{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left  {suppressed}'
            f'{values["samples_per_s"]:.0f} samples/s  data {values["waiting_for_data_percent"]:.0f} %  '
            f'lr {values["lr"]:.4g}{memory}'
        )

    def pictures(self, training: bool) -> contextlib.AbstractContextManager[Any]:
        """Meanwhile takes pictures, if this epoch is one of those: of the training's or of the validation's images."""
        every = max(1, self.num_epochs // _PICTURED_EPOCHS)
        config = self.components.config
        if not (self.events and config.run.save_images and self.epoch % every == 0):
            return contextlib.nullcontext()
        events, done = self.events, (self.epoch + 1) * self.steps_per_epoch
        take, module = (
            (inputs_shown, self.components.task.trainable_module)
            if training
            else (filters_shown, self.components.model)
        )
        mean, std = config.model.mean, config.model.std
        assert mean is not None  # resolved, as is std
        assert std is not None
        return take(module, mean, std, lambda name, picture: events.picture(name, picture, done))

    def end_epoch(self, metrics: Mapping[str, float | None]) -> None:
        """Adds a row to summary.csv and the same values to TensorBoard and to the curves."""
        found = {name: value for name, value in metrics.items() if value is not None}
        text = '  '.join(f'{name} {value:.6g}' for name, value in found.items())
        _logger.info(f'epoch {self.epoch:3d}/{self.num_epochs} done  {text}')
        self.summary.add(self.epoch, found)
        draw_curves(self.summary.rows, self.directory.curves)
        if self.events:
            self.events.scalars({**found, 'epoch': self.epoch}, (self.epoch + 1) * self.steps_per_epoch)
            self.events.flush()

    def close(self, finished: bool) -> None:
        self.line.clear()
        _logger.removeFilter(self.line)
        if self.events:
            self.events.close(finished)
