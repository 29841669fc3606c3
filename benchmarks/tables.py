"""What was measured as text, Markdown and JSON: required, aim and measured side by side."""

import dataclasses
import json
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from benchmarks.requirements import Measurement, Row, mean, verdict, worst

_SUMMARY = ('row', 'required', 'aim', 'worst', 'mean', 'verdict')


@dataclass
class Report:
    """Everything measured so far, on what and how.

    Attributes:
        environment: As `ddfnet.benchmarking.environment` has it.
        method: How it was measured, in words.
        limits: What the machine reaches, in words; '' where it was not asked.
        results: Every row with its measurements, in order.
        complete: Whether all rows were measured.
    """

    environment: dict[str, Any]
    method: str
    limits: str = ''
    results: list[tuple[Row, list[Measurement]]] = field(default_factory=list)
    complete: bool = False

    def header(self) -> list[str]:
        """Hardware, versions and method, a line each."""
        environment = self.environment
        processor, threads = environment['processor'], environment['threads']['intra_op']
        allocator = ' '.join(f'{name}={value}' for name, value in environment['allocator'].items() if name.isupper())
        load = processor['load_average']
        lines = [
            f'{processor["name"]}, {processor["usable_cores"]} cores, {processor["instructions"]}; {threads} threads',
            f'Python {environment["python"]}, torch {environment["torch"]}, timm {environment["timm"]}; '
            + environment['ddf'][0].partition(', /')[0],
            f'allocator: {allocator or "default, which returns memory after each pass: page faults are timed too"}',
            self.method,
        ]
        lines += [self.limits] if self.limits else []
        if load:
            busy = load[0] > processor['usable_cores']
            advice = ': other work keeps the machine busy, and nothing below can be relied on' if busy else ''
            lines.append(f'load average at the start: {load[0]:.1f}{advice}')
        return lines

    def write_json(self, path: Path) -> None:
        rows = []
        for row, measurements in self.results:
            record = {name: getattr(row, name) for name in ('key', 'title', 'required', 'aim')}
            figures = {'worst': worst(measurements), 'mean': mean(measurements)}
            record |= {name: None if math.isnan(value) else value for name, value in figures.items()}
            cases = [dataclasses.asdict(one) for one in measurements]
            rows.append({**record, 'verdict': verdict(row, measurements), 'cases': cases})
        about = {
            'command': sys.orig_argv,
            'complete': self.complete,
            'method': self.method,
            'limits': self.limits,
            'environment': self.environment,
        }
        path.write_text(json.dumps({**about, 'rows': rows}, indent=2) + '\n', encoding='utf-8')


def fill(report: Report, options: Any, measure: Callable[[Row, Any], Measurement]) -> None:
    """Measures the rows that the options name, prints and writes what they ask for; exits with 1 for wrong results.

    Ctrl-C keeps what was measured. Lines per case go to stdout, or to stderr where that holds Markdown.
    """
    stream = sys.stderr if options.markdown else sys.stdout
    print(*report.header(), sep='\n', file=stream, flush=True)
    try:
        for visit in range(options.visits):
            if options.visits > 1:
                print(f'\nvisit {visit + 1} of {options.visits}', file=stream, flush=True)
            _visit(report, options.rows, measure, stream)
        report.complete = True
    finally:
        print(markdown(report) if options.markdown else f'\n{summary_text(report)}', flush=True)
        if options.json:
            report.write_json(Path(options.json))
    if any(one.refused for _, measurements in report.results for one in measurements):
        print('results differ: see the rows that are refused', file=sys.stderr)
        sys.exit(1)


def _visit(report: Report, rows: Sequence[Row], measure: Callable[[Row, Any], Measurement], stream: TextIO) -> None:
    """Measures all cases once; what comes of a case takes the place of what an earlier visit left."""
    for index, row in enumerate(rows):
        print(f'\n{_row_text(row)}', file=stream, flush=True)
        if index == len(report.results):
            report.results.append((row, []))
        measurements = report.results[index][1]
        for number, case in enumerate(row.cases):
            measurements[number : number + 1] = [measure(row, case)]
            print(_measurement_text(measurements[number]), file=stream, flush=True)


def _row_text(row: Row) -> str:
    """The head of a row: its title and what is asked of it."""
    asked = [f'{name} {value:.2f}' for name, value in (('required', row.required), ('aim', row.aim)) if value]
    return ': '.join(filter(None, [row.title, ', '.join(asked)]))


def _measurement_text(one: Measurement) -> str:
    """One line for one case."""
    if one.value is None:
        return f'  {one.label}: {"no ratio, " if one.refused else ""}{one.fault or one.note}'
    return '  ' + '  '.join(filter(None, [one.label.ljust(44), *_cells(one)]))


def summary_text(report: Report) -> str:
    """A line per row, for a terminal."""
    lines = [_SUMMARY, *map(_summary_cells, report.results)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return '\n'.join(
        '  '.join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in lines
    )


def markdown(report: Report) -> str:
    """The summary and a table of all cases, with command, hardware, versions and runs."""
    command = shlex.join(['python', *(word for word in sys.orig_argv[1:] if word != '--markdown')])
    lines = [f'`{command}`', '', *(f'- {line}' for line in report.header()), '', *_markdown_table(_SUMMARY)]
    lines += [_markdown_line(_summary_cells(result)) for result in report.results]
    for row, measurements in report.results:
        lines += ['', f'{row.title}:', '', *_markdown_table(('case', 'value', 'rounds', 'medians', 'roofline, notes'))]
        lines += [_markdown_line([one.label, *_cells(one)]) for one in measurements]
    return '\n'.join(lines)


def _summary_cells(result: tuple[Row, Sequence[Measurement]]) -> tuple[str, ...]:
    row, measurements = result
    limits = {one.required for one in measurements if one.required is not None}
    required = ' to '.join(_number(limit) for limit in sorted({min(limits), max(limits)})) if limits else None
    return (
        row.title,
        required or _number(row.required),
        _number(row.aim),
        _number(worst(measurements)),
        _number(mean(measurements)),
        verdict(row, measurements),
    )


def _cells(one: Measurement) -> list[str]:
    """Value, range of the rounds, medians, and the rest of what is known."""
    if one.value is None:
        return ['-', '', '', one.fault or one.note]
    spread = f'{one.spread[0]:.3f} to {one.spread[1]:.3f}' if one.spread else ''
    times = ', '.join(f'{name} {time.median * 1e3:.3f} ms' for name, time in one.times.items())
    shares = [f'{name} {share:.0%}' for name, share in one.roofline.items()]
    limit = [f'allowed {one.required:.3f}'] if one.required is not None else []
    rest = ', '.join(filter(None, [*shares, *limit, one.fault, one.note]))
    return [f'{one.value:.3f}', spread, times, rest]


def _markdown_table(titles: Sequence[str]) -> list[str]:
    return [_markdown_line(titles), '|' + '---|' * len(titles)]


def _markdown_line(cells: Sequence[str]) -> str:
    return f'| {" | ".join(cells)} |'


def _number(value: float | None) -> str:
    return '-' if value is None or math.isnan(value) else f'{value:.3f}'
