"""Measures a DDF ResNet against timm's ResNet of the same depth, and prints what is required beside it:

    python benchmarks/model.py
    python benchmarks/model.py --torchcompile
    python benchmarks/model.py --quick --rows single

Both have random weights, run in the same mode and layout, and take turns in one run; a ratio is that of their medians.
Before a case is timed, logits (in training: gradients, of a twin on small images) are compared with those of a copy in
float64 that runs the operation by its definition; where they differ there is no ratio, and the exit status is 1. The
last BatchNorm of each block, which timm starts at zero, is not zero here: it would hide what is compared. Beside each
ratio stands that of the same network without its DDF modules, which no faster module can bring it below.

All rows take about four minutes on two cores; --torchcompile adds rows, and minutes of compiling.
"""

import sys
from pathlib import Path

import torch

if not __package__:  # run as a script: measure the packages of this checkout, installed or not
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.interleaved import CPU, Visits, restart_with_warm_allocator
from benchmarks.network import NetworkBench
from benchmarks.options import count, make_parser, parse
from benchmarks.requirements import MODEL_ROWS
from ddfnet.benchmarking.environment import environment
from ddfnet.errors import UserError, command

_MODELS = [f'ddf_{combine}_resnet{depth}' for combine in ('mul', 'add') for depth in (26, 50, 101, 152)]


@command
def main(argv: list[str]) -> None:
    """Prints case by case, then the table; exits with 1 where results were wrong."""
    parser = make_parser(__doc__, MODEL_ROWS, seconds=3, rounds=3, visits=2)
    parser.add_argument(
        '--model', choices=_MODELS, default='ddf_mul_resnet50', help='the network (default: ddf_mul_resnet50)'
    )
    parser.add_argument('--img-size', type=count, default=224, metavar='N', help='side of the images (default: 224)')
    parser.add_argument('--torchcompile', action='store_true', help='the compiled rows too: compiling takes minutes')
    options = parse(parser, argv, MODEL_ROWS)
    if not options.torchcompile:
        if options.rows == [row for row in options.rows if row.key == 'compiled']:
            raise UserError('--rows compiled needs --torchcompile: compiling takes minutes')
        options.rows = [row for row in options.rows if row.key != 'compiled']
    torch.set_num_threads(options.num_threads)
    torch.manual_seed(0)
    bench = NetworkBench(Visits(options.seconds, options.rounds), options.model, options.img_size)
    method = (
        f'{options.model} against {bench.baseline}, {options.img_size} pixels, {options.visits} visits to every case, '
        f'{options.seconds:g} s of passes for each in {options.rounds} rounds, at least one pass a round; float32'
    )
    tables.fill(tables.Report(environment(CPU), method), options, bench.measure)


if __name__ == '__main__':
    restart_with_warm_allocator()
    sys.exit(main())
