"""The command `inference_time.py`: the operation against convolutions, or models against each other, as tables."""

import math
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddfnet.benchmarking.budget import Budget
from ddfnet.benchmarking.environment import usable_cores
from ddfnet.benchmarking.networks import check_model_kwargs
from ddfnet.benchmarking.operations import LABELS
from ddfnet.benchmarking.progress import Progress
from ddfnet.benchmarking.report import check_targets, table_text, write_csv, write_json
from ddfnet.benchmarking.results import Row, Table
from ddfnet.benchmarking.session import Session
from ddfnet.benchmarking.subjects import Job
from ddfnet.config import BenchmarkConfig, InferenceConfig, load_inference_config, to_flat_dict
from ddfnet.config.inference import map_shape
from ddfnet.distributed import resolve_device
from ddfnet.errors import UserError, command
from ddfnet.models.build import check_compiler, check_cpp_compiler, model_names
from ddfnet.precision import Precision

_PAPER_SIZES = ('7', '14', '28', '56', '112', '224', '2x256x200x300')
_DEFAULT_BUDGET_S = 60.0
_RESERVE = 1.3
_PUBLISHED_IMG_SIZE = 224


@command
def main(argv: list[str]) -> None:
    """Measures what the flags say: tables on stdout, progress on stderr, files where they are asked for.

    Exits with 1 where a row failed or gave wrong results, after all others were measured and reported, and likewise
    with 2 for a model that cannot be timed as asked, such as one that does not take the image size.
    """
    start = time.monotonic()
    config = load_inference_config(argv)
    device = resolve_device(config.benchmark.device)
    accuracies = _check(config.benchmark, device)
    tables = model_tables(config.benchmark) if config.benchmark.model else operation_tables(config.benchmark)
    check_model_kwargs(config.benchmark, (row.job.name for row in tables[0].rows))
    progress = Progress(len(tables))
    measured: list[Table] = []
    environment: dict[str, Any] = {}
    complete = False
    with Session(config, device, progress) as session:
        try:
            environment = session.environment()
            print(_header(environment, config, Precision(config.precision, device)), flush=True)
            budget = _budget(config.benchmark, tables, start)
            for table in tables:
                measured.append(table)
                _measure(session, table, budget, progress)
            complete = True
        finally:
            progress.clear()
            _write(config, measured, environment, complete, accuracies)
    print(_hints(config.benchmark, measured, time.monotonic() - start), end='')
    if failed := [row for table in measured for row in table.rows if row.failed]:
        print(*(f'{row.label}: {row.details}' for row in failed if row.details), sep='\n', file=sys.stderr)
        sys.exit(1)
    if mistaken := [row for table in measured for row in table.rows if row.mistaken]:
        raise UserError(f'{mistaken[0].label}: {mistaken[0].problem}')


def operation_tables(config: BenchmarkConfig) -> list[Table]:
    """A table per shape of the map, the least first; by default the paper's (arXiv 2104.14107, Table 2 and Table A)."""
    names: Sequence[str] = config.op or [name for name in LABELS if name != 'compiled']
    every = 'all' in names
    names = list(LABELS) if every else names
    shapes = {
        map_shape(size, batch_size, config.channels)
        for size in config.sizes or _PAPER_SIZES
        for batch_size in config.batch_size
    }
    mode = ', forward and backward' if config.train else ''
    return [
        Table(
            f'{" x ".join(map(str, shape))}, kernel {config.kernel_size}{mode}',
            [
                Row(Job(name, shape[0], shape), LABELS[name], position, dispensable=every)
                for position, name in enumerate(names)
            ],
        )
        for shape in sorted(shapes, key=lambda shape: (math.prod(shape), shape))
    ]


def model_tables(config: BenchmarkConfig) -> list[Table]:
    """A table per batch size. Raises UserError for a name that no model has."""
    names = model_names(config.model or ())
    mode = ', training step' if config.train else ''
    return [
        Table(
            f'batch {batch_size}{mode}',
            [
                Row(Job(name, batch_size), name, position, dispensable=not named)
                for position, (name, named) in enumerate(names.items())
            ],
        )
        for batch_size in dict.fromkeys(config.batch_size)
    ]


def _check(config: BenchmarkConfig, device: torch.device) -> dict[str, float]:
    """Finds the user's mistakes before anything starts. Returns top-1 in percent by model, where the plot needs it."""
    check_targets(
        {'--json': config.json, '--csv': config.csv, '--plot': config.plot},
        {'--plot': ('.png', '.pdf', '.svg')},
    )
    check_compiler(config.torchcompile, device)
    if config.op and 'compiled' in config.op and device.type == 'cpu':
        check_cpp_compiler('--op compiled')
    if config.num_threads is not None and config.num_threads > usable_cores():
        most = f'expected at most {usable_cores()}, one for each core that may be used here'
        raise UserError(f'--num-threads: {most}, got {config.num_threads}')
    if not config.plot:
        return {}
    from ddfnet.benchmarking.plot import PUBLISHED_TOP1, read_accuracies

    published = PUBLISHED_TOP1 if config.img_size in (None, _PUBLISHED_IMG_SIZE) else {}
    return {**published, **(read_accuracies(config.accuracy_file) if config.accuracy_file else {})}


def _budget(config: BenchmarkConfig, tables: Sequence[Table], start: float) -> Budget | None:
    """None where everything is to be measured."""
    if config.budget is None and (config.model or config.sizes):
        return None
    return Budget(tables, start + (config.budget or _DEFAULT_BUDGET_S), config.min_time)


def _measure(session: Session, table: Table, budget: Budget | None, progress: Progress) -> None:
    """Measures and prints a table."""
    try:
        session.measure(table, budget)
    finally:
        progress.clear()
        if table.left_out or any(row.times or row.problem for row in table.rows):
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
            print('\n' + table_text(table, width), flush=True)


def _header(environment: dict[str, Any], config: InferenceConfig, precision: Precision) -> str:
    mode = [
        f'amp {precision.amp_dtype}' if precision.amp_dtype else str(precision.model_dtype or 'float32'),
        str(precision.memory_format).removesuffix('_format'),
    ]
    mode += [f'compiled by {config.benchmark.torchcompile}'] if config.benchmark.torchcompile else []
    allocator = ' '.join(f'{name}={value}' for name, value in environment['allocator'].items() if name.isupper())
    busy = environment['processor']['load_average']
    cores = environment['processor']['usable_cores']
    lines = [
        f'{environment["device_name"]}, torch {environment["torch"]}, {", ".join(mode).replace("torch.", "")}',
        environment['ddf'][0],
        f'allocator: {allocator or "default"}',
    ]
    if busy and busy[0] > cores:
        load = f'load average {busy[0]:.1f}, {cores} core' + ('s' if cores > 1 else '')
        lines.append(f'other work keeps this machine busy ({load}): times will vary')
    return '\n'.join(lines)


def _hints(config: BenchmarkConfig, tables: Sequence[Table], elapsed: float) -> str:
    """How to get what the defaults leave out."""
    hints = []
    if missing := sum(row.expected for table in tables for row in table.rows):
        enough = math.ceil((elapsed + _RESERVE * missing) / 10) * 10
        sizes = '' if config.model else ', or the maps alone by --sizes, which measures everything'
        hints.append(f'for what was left out: --budget {enough} (seconds){sizes}')
    if not config.model and not config.op:
        hints.append('with the compiled shifted sum, which takes long to compile: --op')
    return ''.join(f'\n{hint}' for hint in hints) + ('\n' if hints else '')


def _write(
    config: InferenceConfig,
    tables: Sequence[Table],
    environment: dict[str, Any],
    complete: bool,
    accuracies: dict[str, float],
) -> None:
    """The files that were asked for, with what there is; none where nothing was measured."""
    benchmark = config.benchmark
    if not any(row.times for table in tables for row in table.rows):
        return
    if benchmark.json:
        settings = to_flat_dict(config)
        write_json(
            Path(benchmark.json),
            tables,
            command=sys.argv,
            complete=complete,
            settings=settings,
            environment=environment,
        )
    if benchmark.csv:
        write_csv(Path(benchmark.csv), tables)
    if benchmark.plot:
        from ddfnet.benchmarking.plot import draw_models, draw_operations

        if benchmark.model:
            draw_models(tables, Path(benchmark.plot), accuracies)
        else:
            draw_operations(tables, Path(benchmark.plot))
