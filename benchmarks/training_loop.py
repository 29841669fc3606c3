"""Measures the loop of train.py against a bare one over the same model and loader, and prints what is required:

    python benchmarks/training_loop.py
    python benchmarks/training_loop.py --quick

The bare loop is what one writes by hand: batch, forward, loss, backward, SGD step. First each trains a model of its
own from equal weights for an epoch, with the same batches in the same order, on scikit-learn's digits; losses and
weights must then be equal, bit for bit. Where they are not there is no ratio, and the exit status is 1. Then both go
on with one model, loader and optimiser, so that what they are given lies in the same memory. They take turns: a round
is an epoch of each, and its ratio is that of two neighbours in time; the value is the median over the rounds of all
visits, by the clock, beside it that of processor time (of all threads), which other work on the machine disturbs less.
With `--num-threads 1` the latter counts no waiting of one thread for another. The loop of train.py reads its report at
every tenth step, as a progress line would. All rows take about three minutes on two idle cores.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from timm.loss import LabelSmoothingCrossEntropy

if not __package__:  # run as a script: measure the packages of this checkout, installed or not
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.interleaved import CPU, restart_with_warm_allocator
from benchmarks.options import make_parser, parse
from benchmarks.requirements import Measurement, Row
from ddfnet.benchmarking.environment import environment
from ddfnet.config import load_train_config
from ddfnet.distributed import Processes
from ddfnet.errors import command
from ddfnet.timing import Statistics, warm_up
from ddfnet.training.components import Components, build_components
from ddfnet.training.engine import Progress, StepReport, train_epoch

_LOG_INTERVAL = 10
_COMMON = (
    '--dataset digits --in-chans 1 -j 0 --device cpu --epochs 1000 --warmup-epochs 0 --lr 0.01 '
    f'--log-interval {_LOG_INTERVAL}'
)


@dataclass(frozen=True)
class Workload:
    """What both loops train: flags of train.py."""

    flags: str

    def __str__(self) -> str:
        return self.flags


_NETWORK = '--model ddf_mul_resnet26'
LOOP_ROWS = (
    Row(
        'small',
        'small steps: a thin network, 32 images of 32x32',
        'loop',
        1.02,
        None,
        (Workload(f'{_NETWORK} --model-kwargs channels=(16,32,64,128) --img-size 32 -b 32 --train-num-samples 320'),),
    ),
    Row(
        'large',
        'large steps: 8 images of 112x112',
        'loop',
        1.02,
        None,
        (Workload(f'{_NETWORK} --img-size 112 -b 8 --train-num-samples 24'),),
    ),
)


class BareLoop:
    """A training loop written by hand.

    Args:
        components: Whose model, loader and optimiser it uses, and nothing else.
    """

    def __init__(self, components: Components) -> None:
        self.model, self.optimizer = components.model, components.optimizer
        self.loader = components.train_loader
        self.criterion = LabelSmoothingCrossEntropy(components.config.loss.smoothing)
        self.epochs = 0

    def __call__(self) -> float:
        """The mean loss of an epoch."""
        self.model.train()
        total, steps = torch.zeros(()), 0
        for images, targets in self.loader.epoch(self.epochs):
            loss = self.criterion(self.model(images), targets)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            total, steps = total + loss.detach(), steps + 1
        self.epochs += 1
        return total.item() / steps


class ToolkitLoop:
    """The loop of train.py, with its reports read where a progress line would be written."""

    def __init__(self, components: Components) -> None:
        self.components, self.progress = components, Progress()

    def __call__(self) -> float:
        loss = train_epoch(self.components, self.progress, Processes(CPU), self._read)
        self.progress.start_epoch(self.progress.epoch + 1)
        return loss

    def _read(self, report: StepReport) -> None:
        if report.step % _LOG_INTERVAL == 0:
            report.loss.item()
            report.grad_norm.item()


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch: by the clock, and of processor time in all threads."""

    wall: float
    processor: float


@dataclass
class Comparison:
    """Two loops over one model, and what they took.

    Attributes:
        fault: How they train differently; '' where they do not.
        turns: Rounds of all visits, an epoch of each loop in a round.
    """

    loops: dict[str, Callable[[], float]]
    fault: str
    turns: dict[str, list[Epoch]]


@dataclass
class LoopBench:
    """Measures workloads, each as often as it is visited.

    Attributes:
        seconds: Time for each loop in one visit, at least.
        rounds: Epochs of each loop in one visit, at least.
    """

    seconds: float
    rounds: int
    _comparisons: dict[Workload, Comparison] = field(default_factory=dict)

    def measure(self, _: Row, workload: Workload) -> Measurement:
        """Of all visits to a workload so far, this one included. Refused, without a time, where the loops train
        differently."""
        if workload not in self._comparisons:
            self._comparisons[workload] = _compare(workload)
        comparison = self._comparisons[workload]
        if comparison.fault:
            return Measurement(str(workload), fault=comparison.fault, refused=True)
        turns = comparison.turns
        for name, epochs in take_short_turns(comparison.loops, self.seconds, self.rounds).items():
            turns[name] += epochs
        value, low, high = _quartiles(turns, lambda epoch: epoch.wall)
        processor = _quartiles(turns, lambda epoch: epoch.processor)
        note = (
            'processor time {:.3f}, quartiles {:.3f} to {:.3f}; by the clock {:.3f} to {:.3f}'.format(
                *processor, low, high
            )
            + f'; {len(turns["bare"])} rounds'
        )
        times = {name: Statistics.of([epoch.wall for epoch in epochs]) for name, epochs in turns.items()}
        return Measurement(str(workload), value, note=note, times=times)


def _compare(workload: Workload) -> Comparison:
    """Trains an epoch with each loop, from equal weights, and gives both the model of the first."""
    config = load_train_config([*_COMMON.split(), *workload.flags.split()])
    ours, theirs = (build_components(config, Processes(CPU)) for _ in range(2))
    fault = _difference({'train.py': ToolkitLoop(ours)(), 'bare': BareLoop(theirs)()}, ours, theirs)
    loops: dict[str, Callable[[], float]] = {'train.py': ToolkitLoop(ours), 'bare': BareLoop(ours)}
    return Comparison(loops, fault, {name: [] for name in loops})


def take_short_turns(loops: dict[str, Callable[[], float]], seconds: float, rounds: int) -> dict[str, list[Epoch]]:
    """An epoch of each per round, in alternating order, until there were `rounds` and each has had `seconds`."""
    for run in loops.values():
        warm_up(run, CPU, seconds / 10)
    turns: dict[str, list[Epoch]] = {name: [] for name in loops}
    start = time.perf_counter()
    while len(turns['bare']) < rounds or time.perf_counter() - start < seconds * len(loops):
        for name in list(loops)[:: 1 if len(turns['bare']) % 2 == 0 else -1]:
            before = Epoch(time.perf_counter(), time.process_time())
            loops[name]()
            turns[name].append(Epoch(time.perf_counter() - before.wall, time.process_time() - before.processor))
    return turns


def _quartiles(turns: dict[str, list[Epoch]], seconds: Callable[[Epoch], float]) -> tuple[float, float, float]:
    """Median, first and third quartile of the rounds' ratios of train.py to bare."""
    ratios = [seconds(ours) / seconds(bare) for ours, bare in zip(turns['train.py'], turns['bare'])]
    low, median, high = statistics.quantiles(ratios, n=4, method='inclusive') if len(ratios) > 1 else ratios * 3
    return median, low, high


def _difference(losses: dict[str, float], ours: Components, theirs: Components) -> str:
    if losses['train.py'] != losses['bare']:
        return f'losses of the first epoch differ: {losses["train.py"]} and {losses["bare"]}'
    weights = theirs.model.state_dict()
    different = [name for name, value in ours.model.state_dict().items() if not torch.equal(value, weights[name])]
    return f'weights differ after the first epoch: {", ".join(different[:3])}' if different else ''


@command
def main(argv: list[str]) -> None:
    """Prints case by case, then the table; exits with 1 where the loops trained differently."""
    options = parse(make_parser(__doc__, LOOP_ROWS, seconds=20, rounds=12, visits=2), argv, LOOP_ROWS)
    torch.set_num_threads(options.num_threads)
    bench = LoopBench(options.seconds, options.rounds)
    method = (
        f'the loop of train.py against a bare one, {options.visits} visits to every row, {options.seconds:g} s of '
        f"epochs for each, at least {options.rounds} rounds of an epoch of each; medians of the rounds' ratios; float32"
    )
    tables.fill(tables.Report(environment(CPU), method), options, bench.measure)


if __name__ == '__main__':
    restart_with_warm_allocator()
    sys.exit(main())
