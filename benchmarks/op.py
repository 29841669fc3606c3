"""Measures the operation against the depthwise convolution of torch, and prints what is required beside it:

    python benchmarks/op.py
    python benchmarks/op.py --quick --rows forward backward
    python benchmarks/op.py --json op.json --markdown

`dw` is torch.nn.functional.conv2d with groups=C on the same map, `dw_cl` the same in channels_last. Before a case is
timed its output and its three gradients are compared with the definition in float64; where they differ there is no
ratio, and the exit status is 1. All subjects of a case take turns in one run, in several visits that lie minutes apart;
a ratio is that of their medians over all visits.

All rows take about six minutes on two idle cores, --quick about one.
"""

import sys
from pathlib import Path

import torch

if not __package__:  # run as a script: measure the packages of this checkout, installed or not
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.interleaved import CPU, Visits, restart_with_warm_allocator
from benchmarks.operation import OperationBench
from benchmarks.options import make_parser, parse
from benchmarks.requirements import OPERATION_ROWS
from benchmarks.roofline import measure_limits
from ddfnet.benchmarking.environment import environment
from ddfnet.errors import command


@command
def main(argv: list[str]) -> None:
    """Prints case by case, then the table; exits with 1 where results were wrong."""
    parser = make_parser(__doc__, OPERATION_ROWS, seconds=0.2, rounds=10, visits=3)
    options = parse(parser, argv, OPERATION_ROWS)
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(0)
    limits = measure_limits(options.seconds)
    bench = OperationBench(Visits(options.seconds, options.rounds), options.num_threads, limits)
    method = (
        f'{options.visits} visits to every case, {options.seconds:g} s of passes for each subject in {options.rounds} '
        'rounds; float32'
    )
    report = tables.Report(environment(CPU), method, str(limits))
    tables.fill(report, options, bench.measure)


if __name__ == '__main__':
    restart_with_warm_allocator()
    sys.exit(main())
