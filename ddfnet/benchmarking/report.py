"""What was measured, as text, CSV and JSON."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ddfnet.benchmarking.results import Row, Table
from ddfnet.errors import UserError

_MISSING = '-'


def table_text(table: Table, width: int | None = None) -> str:
    """The table for a terminal, with notes below; columns that do not fit into `width` characters follow beneath."""
    if table.left_out:
        return f'{table.title}: {table.left_out}'
    columns = _COLUMNS if table.rows[0].job.shape is not None else [_INPUT, *_COLUMNS]
    cells = [['', *(header for header, _ in columns)]]
    cells += [[row.label, *(cell(table, row) or _MISSING for _, cell in columns)] for row in table.rows]
    names, *others = zip(*cells)
    blocks = [_aligned(names)]
    for column in map(_aligned, others, [str.rjust] * len(others)):
        if width is not None and len(blocks[-1][0]) + 2 + len(column[0]) > width:
            blocks.append(_aligned(names))
        blocks[-1] = [f'{line}  {cell}' for line, cell in zip(blocks[-1], column)]
    notes = [f'  {row.label}: {note}' for row in table.rows for note in row.notes()]
    if table.base is not table.rows[0]:
        notes.append(f'  ratios are to {table.base.label}: {table.rows[0].label} was not timed')
    return '\n'.join([table.title, '\n\n'.join('\n'.join(block) for block in blocks), *notes])


def _aligned(cells: Sequence[str], justify: Callable[[str, int], str] = str.ljust) -> list[str]:
    width = max(map(len, cells))
    return [justify(cell, width) for cell in cells]


def write_csv(path: Path, tables: Sequence[Table]) -> None:
    """A line per row of every table."""
    records = [record for table in tables for record in table.records()]
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, list(records[0]) if records else [])
        writer.writeheader()
        writer.writerows(records)


def write_json(path: Path, tables: Sequence[Table], **about: Any) -> None:
    """Everything measured; `about` says of what, on what, and how."""
    rows = [{'title': table.title, 'left_out': table.left_out, 'rows': table.records()} for table in tables]
    path.write_text(json.dumps({**about, 'tables': rows}, indent=2) + '\n', encoding='utf-8')


def check_targets(targets: dict[str, str], suffixes: dict[str, Sequence[str]]) -> None:
    """Raises UserError, before anything is measured, for a file that could not be written, by flag.

    Args:
        suffixes: Those that the file of a flag may end with, where they matter.
    """
    given = {flag: Path(target) for flag, target in targets.items() if target}
    for flag, path in given.items():
        allowed = suffixes.get(flag)
        if allowed and path.suffix.lower() not in allowed:
            raise UserError(f'{flag}: expected a name that ends with one of {" ".join(allowed)}, got {str(path)!r}')
        existed = path.exists()
        try:
            path.open('a').close()
        except OSError as error:
            raise UserError(f'{flag}: cannot write {path}: {error.strerror}') from None
        if not existed:
            path.unlink()
    if len({path.resolve() for path in given.values()}) < len(given):
        raise UserError(f'{" and ".join(given)}: expected different files, got {" ".join(map(str, given.values()))}')


def _milliseconds(name: str) -> Callable[[Table, Row], str]:
    def cell(table: Table, row: Row) -> str:
        return f'{getattr(row.statistics, name) * 1e3:.3f}' if row.statistics else ''

    return cell


def _samples_per_s(table: Table, row: Row) -> str:
    return f'{1 / row.seconds_per_sample:.1f}' if row.seconds_per_sample else ''


def _peak_memory(table: Table, row: Row) -> str:
    peak = row.prepared.peak_memory if row.prepared else None
    return '' if peak is None else f'{peak / 1e6:.1f}'


def _ratio(table: Table, row: Row) -> str:
    ratio = table.ratio(row)
    return '' if ratio is None else f'{ratio:.3f}'


_INPUT = ('input', lambda table, row: 'x'.join(map(str, row.built.input_size)) if row.built else '')
_COLUMNS: list[tuple[str, Callable[[Table, Row], str]]] = [
    ('median ms', _milliseconds('median')),
    ('p10', _milliseconds('p10')),
    ('p90', _milliseconds('p90')),
    ('p99', _milliseconds('p99')),
    ('passes', lambda table, row: str(len(row.times)) if row.times else ''),
    ('samples/s', _samples_per_s),
    ('peak MB', _peak_memory),
    ('GMACs', lambda table, row: f'{row.built.gmacs:.4g}' if row.built else ''),
    ('params', lambda table, row: f'{row.built.params:,}' if row.built else ''),
    ('ratio', _ratio),
]
