"""The points within an epoch at which a run is saved, because it is time or because a signal asks it to stop."""

import json
import logging
import signal
from collections.abc import Callable
from datetime import datetime

from ddfnet.config.values import interval
from ddfnet.distributed import Processes
from ddfnet.errors import Terminated
from ddfnet.training.checkpoint import Best, gather_ema_buffers, save_run
from ddfnet.training.components import Components
from ddfnet.training.engine import Progress
from ddfnet.training.run_directory import RunDirectory
from ddfnet.training.stopping import Agreement, Interval, StopRequest

_logger = logging.getLogger('ddfnet')


class Pauses:
    """Saves and stops, in all processes at the same step.

    Raises, from its methods:
        Terminated: A signal came and the run is saved; or KeyboardInterrupt for Ctrl-C.
    """

    def __init__(
        self,
        components: Components,
        progress: Progress,
        best: Best,
        directory: RunDirectory,
        processes: Processes,
        request: StopRequest,
    ) -> None:
        self.components = components
        self.progress = progress
        self.best = best
        self.directory = directory
        self.processes = processes
        self.request = request
        self.interval = Interval(*interval(components.config.run.checkpoint_interval))
        self.agreement = Agreement(processes, components.config.distribution.dist_timeout)
        self.has_validated = False

    def after_step(self, settle: Callable[[], None]) -> None:
        """After an optimiser step; `settle` brings the progress up to date, in all processes."""
        due = self.processes.is_primary and self.interval.due(self.progress.updates)
        number, due = self.agreement(self.request.number, due)
        if number or due:
            settle()
            self._save()
        if number:
            self._stop(number)

    def before_validation(self) -> None:
        """Saves before a run's first validation, which an image that cannot be read would end."""
        if not self.has_validated:
            self.has_validated = True
            self._save()

    def in_validation(self) -> None:
        """After a batch of the validation at an epoch's end; the run goes on with that validation."""
        number, _ = self.agreement(self.request.number, False)
        if number:
            self._save()
            self._stop(number)

    def after_epoch(self) -> None:
        """When an epoch's state is saved."""
        number, _ = self.agreement(self.request.number, False)
        if number:
            self._stop(number)

    def _save(self) -> None:
        ema_buffers = gather_ema_buffers(self.components, self.processes)
        if self.processes.is_primary:
            save_run(self.components, self.progress, self.best, self.directory, ema_buffers=ema_buffers)

    def _stop(self, number: int) -> None:
        self.agreement.settle()  # leaves no message on its way
        if self.processes.is_primary:
            _logger.info(
                f'stopped by {signal.Signals(number).name} at epoch {self.progress.epoch}, step {self.progress.step}: '
                f'go on with --resume {self.directory.last}'
            )
            state = {'signal': number, 'epoch': self.progress.epoch, 'step': self.progress.step}
            self.directory.stopped.write_text(json.dumps(state | {'time': f'{datetime.now():%Y-%m-%d %H:%M:%S}'}))
        raise Terminated(number)
