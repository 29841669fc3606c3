"""Measures the loop of train.py against a bare one over the same model and loader, and prints what is required:

    python benchmarks/training_loop.py
    python benchmarks/training_loop.py --quick

The bare loop is what one writes by hand: batch, forward, loss, backward, SGD step. Both train a model of their own from
equal weights, with the same batches in the same order, on scikit-learn's digits; a pass is an epoch, and the two take
turns. Before they are timed each trains an epoch, after which losses and weights must be equal, bit for bit; where they
are not there is no ratio, and the exit status is 1. The loop of train.py reads its report at every tenth step, as a
progress line would. All rows take about two minutes on two cores.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.loss import LabelSmoothingCrossEntropy

if not __package__:  # run as a script: measure the packages of this checkout, installed or not
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.interleaved import CPU, restart_with_warm_allocator, take_turns
from benchmarks.options import make_parser, parse
from benchmarks.requirements import Measurement, Row
from ddfnet.benchmarking.environment import environment
from ddfnet.config import load_train_config
from ddfnet.distributed import Processes
from ddfnet.errors import command
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
        'epoch of steps of about 20 ms',
        'loop',
        1.02,
        None,
        (Workload(f'{_NETWORK} --model-kwargs channels=(16,32,64,128) --img-size 32 -b 32 --train-num-samples 320'),),
    ),
    Row(
        'large',
        'epoch of steps of about 0.3 s',
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


@dataclass
class LoopBench:
    """Measures workloads.

    Attributes:
        seconds: Time for each loop.
        rounds: Turns that it is divided into.
    """

    seconds: float
    rounds: int

    def measure(self, _: str, workload: Workload) -> Measurement:
        """Refused, without a time, where the loops train differently."""
        config = load_train_config([*_COMMON.split(), *workload.flags.split()])
        ours, theirs = (build_components(config, Processes(CPU)) for _ in range(2))
        passes: dict[str, Callable[[], float]] = {'train.py': ToolkitLoop(ours), 'bare': BareLoop(theirs)}
        losses = {name: run() for name, run in passes.items()}
        if fault := _difference(losses, ours, theirs):
            return Measurement(str(workload), fault=fault, refused=True)
        turns = take_turns(passes, self.seconds, self.rounds)
        times = {name: turns.statistics(name) for name in passes}
        return Measurement(str(workload), turns.ratio(*passes), turns.spread(*passes), times=times)


def _difference(losses: dict[str, float], ours: Components, theirs: Components) -> str:
    if losses['train.py'] != losses['bare']:
        return f'losses of the first epoch differ: {losses["train.py"]} and {losses["bare"]}'
    weights = theirs.model.state_dict()
    different = [name for name, value in ours.model.state_dict().items() if not torch.equal(value, weights[name])]
    return f'weights differ after the first epoch: {", ".join(different[:3])}' if different else ''


@command
def main(argv: list[str]) -> None:
    """Prints case by case, then the table; exits with 1 where the loops trained differently."""
    options = parse(make_parser(__doc__, LOOP_ROWS, seconds=25, rounds=10), argv, LOOP_ROWS)
    torch.set_num_threads(options.num_threads)
    bench = LoopBench(options.seconds, options.rounds)
    method = (
        f'the loop of train.py against a bare one, {options.seconds:g} s of epochs for each in {options.rounds} '
        'rounds, at least one epoch a round; float32'
    )
    tables.fill(tables.Report(environment(CPU), method), options, bench.measure)


if __name__ == '__main__':
    restart_with_warm_allocator()
    sys.exit(main())
