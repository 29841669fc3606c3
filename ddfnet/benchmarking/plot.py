"""Latency as a picture: of operations over the size of the map, of models against accuracy or multiply-adds."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ddfnet.benchmarking.results import Row, Table
from ddfnet.errors import UserError

# top-1 on ImageNet in percent at 224 pixels: arXiv 2104.14107, Table 4 and text, the plain ResNets as retrained there;
# the add models from the model zoo of the official repository
PUBLISHED_TOP1 = {
    'ddf_mul_resnet50': 79.1,
    'ddf_mul_resnet101': 80.2,
    'ddf_add_resnet50': 78.8,
    'ddf_add_resnet101': 79.9,
    'resnet50': 77.2,
    'resnet101': 78.9,
}


def read_accuracies(path: str) -> dict[str, float]:
    """Top-1 in percent by model, from a CSV file with columns model and top1. Raises UserError."""
    try:
        with open(path, newline='', encoding='utf-8') as file:
            return {record['model']: float(record['top1']) for record in csv.DictReader(file)}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--accuracy-file: cannot read {path}: {error}') from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise UserError(
            f'--accuracy-file {path}: expected a CSV file with columns model and top1 in percent, got {error!r}'
        ) from None


def draw_operations(tables: Sequence[Table], path: Path) -> None:
    """Milliseconds per pass: a panel per batch size and number of channels, lines over the side, bars for one size."""
    panels: dict[tuple[int, ...], list[Row]] = {}
    for row in (row for table in tables for row in table.rows if row.times):
        panels.setdefault(_shape(row)[:2], []).append(row)
    figure = Figure(figsize=(6.5 * len(panels), 4.5), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, ((batch, channels), rows) in zip(axes, panels.items()):
        axis.set_title(f'batch {batch}, {channels} channels')
        shapes = {_shape(row) for row in rows}
        if len(shapes) == 1:
            height, width = shapes.pop()[2:]
            axis.set_xlabel(f'median ms per pass of {height} x {width} pixels')
            _draw_bars(axis, rows)
        else:
            _draw_lines(axis, rows)
    figure.savefig(path, dpi=150)


def _draw_bars(axis: Any, rows: Sequence[Row]) -> None:
    labels = [row.label for row in rows]
    bars = axis.barh(range(len(rows)), [_milliseconds(row) for row in rows], color=[f'C{row.position}' for row in rows])
    axis.bar_label(bars, fmt='%.3g', padding=3)
    axis.set_yticks(range(len(rows)), labels)
    axis.invert_yaxis()
    axis.margins(x=0.15)


def _draw_lines(axis: Any, rows: Sequence[Row]) -> None:
    for position, label in dict.fromkeys((row.position, row.label) for row in rows):
        points = sorted((_side(row), _milliseconds(row)) for row in rows if row.position == position)
        axis.plot(*zip(*points), marker='o', markersize=4, label=label, color=f'C{position}')
    axis.set(xscale='log', yscale='log', xlabel='side of the map in pixels', ylabel='median ms per pass')
    sides = sorted({_side(row) for row in rows})
    axis.set_xticks(sides, [f'{side:.0f}' for side in sides])
    axis.xaxis.minorticks_off()
    axis.yaxis.set_major_formatter('{x:g}')
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')


def draw_models(tables: Sequence[Table], path: Path, top1: Mapping[str, float]) -> None:
    """Accuracy over milliseconds per image where all accuracies are known, else GMACs; bars from p10 to p90.

    Batch sizes have colours, and a model has its name once, at the first of them.
    """
    rows = [row for table in tables for row in table.rows if row.times]
    known = bool(rows) and all(row.job.name in top1 for row in rows)
    figure = Figure(figsize=(7, 5), layout='constrained')
    axis = figure.subplots()
    points = [_point(row, top1[row.job.name] if known else None) for row in rows]
    middle = (min(point[1] for point in points) + max(point[1] for point in points)) / 2
    colours = {size: f'C{number}' for number, size in enumerate(dict.fromkeys(row.batch_size for row in rows))}
    for size, colour in colours.items():
        chosen = [point for row, point in zip(rows, points) if row.batch_size == size]
        lows, medians, highs, heights = zip(*chosen)
        bars = [[m - low for m, low in zip(medians, lows)], [high - m for m, high in zip(medians, highs)]]
        axis.errorbar(medians, heights, xerr=bars, fmt='o', capsize=3, color=colour, label=f'batch {size}')
    named: set[str] = set()
    for row, (_, median, _, height) in zip(rows, points):
        if row.job.name in named:
            continue
        named.add(row.job.name)
        side, offset = ('left', 4) if median <= middle else ('right', -4)
        axis.annotate(
            row.job.name,
            (median, height),
            xytext=(offset, 6),
            textcoords='offset points',
            ha=side,
            fontsize='small',
        )
    axis.set(xlabel='ms per image (median, bar from p10 to p90)')
    axis.set(ylabel='top-1 on ImageNet (%)' if known else 'GMACs per image')
    axis.margins(0.2)
    axis.set_xlim(left=0)
    axis.legend(fontsize='small')
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


def _point(row: Row, top1: float | None) -> tuple[float, float, float, float]:
    """p10, median and p90 in milliseconds per image, and the height: top-1, else GMACs."""
    statistics, built = row.statistics, row.built
    assert statistics is not None
    assert built is not None
    low, median, high = (1e3 * value / row.batch_size for value in (statistics.p10, statistics.median, statistics.p90))
    return low, median, high, built.gmacs if top1 is None else top1


def _shape(row: Row) -> tuple[int, ...]:
    assert row.job.shape is not None
    return row.job.shape


def _side(row: Row) -> float:
    """Of the square with as many pixels."""
    return math.sqrt(math.prod(_shape(row)[2:]))


def _milliseconds(row: Row) -> float:
    assert row.statistics is not None
    return row.statistics.median * 1e3
