"""The process of one row: builds what the parent asks for and measures it, until the parent closes the pipe."""

import gc
import logging
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from ddfnet.benchmarking.environment import environment
from ddfnet.benchmarking.networks import Network
from ddfnet.benchmarking.operations import Operation
from ddfnet.benchmarking.subjects import Job, Subject
from ddfnet.config import InferenceConfig
from ddfnet.errors import UserError, first_line
from ddfnet.memory import (
    OutOfMemory,
    does_not_fit,
    free_memory,
    is_out_of_memory,
    peak_memory,
    release,
)
from ddfnet.precision import Precision
from ddfnet.timing import Pass, capture, time_once, time_passes, warm_up

_TRIAL_BATCH = 2
_TRIAL_PASSES = 5
_TRIAL_SECONDS = 0.2
_WITH_OWN_GRAPHS = ('reduce-overhead', 'max-autotune')


@dataclass(frozen=True)
class Built:
    """What is known before the full batch is run.

    Attributes:
        input_size: (C, H, W).
        gmacs: 10^9 multiply-adds of one forward pass of one image.
        seconds: What a pass of the whole batch will take, as a trial with few images has it.
        setup_seconds: What making its weights and inputs will take, likewise.
        needed: What it will take of memory, in bytes; None where that cannot be measured.
        free: Memory that is free, in bytes; None where that is not known.
    """

    input_size: tuple[int, ...]
    params: int
    gmacs: float
    seconds: float
    setup_seconds: float
    needed: int | None
    free: int | None


@dataclass(frozen=True)
class Prepared:
    """What is known before the timing starts.

    Attributes:
        batch_size: Images per pass; fewer than asked for where memory did not suffice.
        seconds: Of the last pass of the warm-up.
        peak_memory: Bytes at the peak of a pass; None where that cannot be measured.
        error: Relative distance from the definition; None where there is none.
        tolerance: The largest error that rounding explains.
        graph: Whether passes are replayed as a CUDA graph.
        note: What the user should know besides.
    """

    batch_size: int
    seconds: float
    peak_memory: int | None
    error: float | None
    tolerance: float
    graph: bool
    note: str = ''


class Worker:
    """Measures one subject after another on one device; requests of the parent are calls of its methods."""

    def __init__(self, config: InferenceConfig, device: torch.device) -> None:
        self._config = config.benchmark
        self._device = device
        self._precision = Precision(config.precision, device)
        self._job: Job | None = None
        self._subject: Subject | None = None
        self._run: Pass | None = None
        self._estimate = 0.0
        self._trial: tuple[int, int | None] = (1, None)
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        if device.type == 'cuda':
            torch.cuda.set_device(device if device.index is not None else 0)
            torch.backends.cudnn.benchmark = True

    def environment(self) -> dict[str, Any]:
        return environment(self._device)

    def build(self, job: Job) -> Built:
        """Makes the subject, and tries it with few images, uncompiled. Raises UserError for what the user can mend."""
        self.drop()
        torch.manual_seed(0)
        subject: Subject = (Network if job.shape is None else Operation)(job, self._config, self._precision)
        self._job, self._subject = job, subject
        trial = min(_TRIAL_BATCH, job.batch_size)
        start = time.perf_counter()
        work = subject.work(trial, compiled=False)
        setup_seconds = time.perf_counter() - start
        work.run()
        seconds = self._fastest(work.run)
        self._trial = trial, peak_memory(work.run, work.held(), self._device)
        del work
        release(self._device)
        return Built(
            subject.input_size,
            subject.params,
            subject.gmacs,
            seconds * job.batch_size / trial,
            setup_seconds * job.batch_size / trial,
            self._needed_memory(job.batch_size),
            free_memory(self._device),
        )

    def prepare(self, job: Job, batch_size: int, may_halve: bool) -> Prepared:
        """Makes the pass, warms it up, compares its results and measures its memory; builds first what was dropped.

        Raises:
            OutOfMemory: It does not fit, not even a single image where the batch may be halved.
        """
        if self._job != job:
            self.build(job)
        while True:
            try:
                self._check_free_memory(batch_size)
                return self._prepare(batch_size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                problem = first_line(error)
            self._run = None
            release(self._device)
            if not may_halve or batch_size == 1:
                raise OutOfMemory(problem)
            batch_size //= 2

    def time(self, seconds: float) -> list[float]:
        """Seconds of single passes, which add up to at least `seconds`."""
        assert self._run is not None
        return time_passes(self._run, seconds, self._device, self._estimate)

    def drop(self) -> None:
        """Gives the memory back."""
        self._job = self._subject = self._run = None
        release(self._device)

    def _fastest(self, run: Pass) -> float:
        """Seconds of a pass, the least of a few if it is short: other work may get in between."""
        times = [time_once(run, self._device)]
        while len(times) < _TRIAL_PASSES and sum(times) < _TRIAL_SECONDS:
            times.append(time_once(run, self._device))
        return min(times)

    def _needed_memory(self, batch_size: int) -> int | None:
        """Bytes at the peak: weights (in training with gradients and momenta) and a share for each image."""
        assert self._subject is not None
        images, peak = self._trial
        fixed = self._subject.params * 4 * (3 if self._config.train else 1)
        return None if peak is None else fixed + max(0, peak - fixed) * batch_size // images

    def _check_free_memory(self, batch_size: int) -> None:
        """Running out of memory may end any process of the system: better not to try."""
        if problem := does_not_fit(self._needed_memory(batch_size), free_memory(self._device)):
            raise OutOfMemory(problem)

    def _prepare(self, batch_size: int) -> Prepared:
        assert self._subject is not None
        work = self._subject.work(batch_size, compiled=True)
        work.run()
        error = None if work.error is None else work.error()
        peak = peak_memory(work.run, work.held(), self._device)
        run, note = self._captured(work.run)
        self._estimate = warm_up(run, self._device, self._config.min_time)
        self._run = run
        return Prepared(batch_size, self._estimate, peak, error, work.tolerance, run is not work.run, note)

    def _captured(self, run: Pass) -> tuple[Pass, str]:
        """The pass as a CUDA graph where that is wanted and works, else as it is, and why."""
        config = self._config
        own = config.torchcompile and config.torchcompile_mode in _WITH_OWN_GRAPHS
        if self._device.type != 'cuda' or not config.cuda_graphs or config.train or own:
            return run, ''
        try:
            return capture(run), ''
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return run, f'timed without a CUDA graph: {first_line(error)}'


def serve(connection: Connection, config: InferenceConfig, device: torch.device) -> None:
    """Answers (method, arguments) with (outcome, value, details) until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    gc.freeze()  # collections need not search what was imported
    warnings.simplefilter('ignore')  # each process would repeat them
    logging.disable(logging.WARNING)
    worker: Worker | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            worker = worker or Worker(config, device)
            reply = ('done', getattr(worker, method)(*arguments), '')
        except UserError as error:
            reply = ('mistake', str(error), '')
        except Exception as error:
            outcome = 'memory' if is_out_of_memory(error) else 'failure'
            reply = (outcome, _in_one_line(error), traceback.format_exc())
        sys.stdout.flush()
        connection.send(reply)


def _in_one_line(error: Exception) -> str:
    line = first_line(error)
    return line if isinstance(error, OutOfMemory) else f'{type(error).__name__}: {line}'
