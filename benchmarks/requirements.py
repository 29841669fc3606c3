"""The rows of the tables: what is measured, what is required of it, and what it came to."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ddf.check import Case
from ddfnet.timing import Statistics


@dataclass(frozen=True)
class Setting:
    """How a network is run."""

    batch_size: int
    channels_last: bool = False
    train: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        return f'batch {self.batch_size}, {"channels_last" if self.channels_last else "contiguous"}'


@dataclass(frozen=True)
class Row:
    """A line of the table. What is required of it holds for the worst of its cases.

    Attributes:
        key: Its name on the command line.
        title: Its name in the table, with what the ratio is to.
        measure: The way each case is measured.
        required: The largest value allowed; None where nothing is required.
        aim: The largest value aimed at; None where there is no aim.
    """

    key: str
    title: str
    measure: str
    required: float | None
    aim: float | None
    cases: tuple[Any, ...]


@dataclass
class Measurement:
    """One case of a row.

    Attributes:
        value: Ratio of medians, or what else the row's title says; None where refused or not to be measured here.
        spread: The least and the greatest ratio of a single round.
        required: Where it differs from case to case; else the row's holds.
        fault: Why the requirement is not met whatever the value.
        refused: Whether `fault` is that results were wrong, so that there is no value.
        note: What the reader should know besides.
        times: Statistics of the passes, in seconds, by subject; first the one that is measured, then the baseline.
        roofline: Fractions of what the machine reaches, by name.
    """

    label: str
    value: float | None = None
    spread: tuple[float, float] | None = None
    required: float | None = None
    fault: str = ''
    refused: bool = False
    note: str = ''
    times: dict[str, Statistics] = dataclasses.field(default_factory=dict)
    roofline: dict[str, float] = dataclasses.field(default_factory=dict)


def verdict(row: Row, measurements: Sequence[Measurement]) -> str:
    """What the worst of the measurements amounts to, in words; '-' where nothing is required."""
    if any(one.refused for one in measurements):
        return 'REFUSED: results differ'
    measured = [one for one in measurements if one.value is not None]
    limits = [row.required if one.required is None else one.required for one in measured]
    if not measured or None in limits:
        return '-'
    if any(one.fault or one.value > limit for one, limit in zip(measured, limits)):  # type: ignore[operator]
        return 'MISSED'
    if row.aim is None:
        return 'met'
    return 'aim met' if worst(measured) <= row.aim else 'met, not the aim'


def worst(measurements: Sequence[Measurement]) -> float:
    """The largest value; NaN where there is none."""
    return max((one.value for one in measurements if one.value is not None), default=math.nan)


def mean(measurements: Sequence[Measurement]) -> float:
    """The geometric mean of the values; NaN where there is none."""
    values = [one.value for one in measurements if one.value]
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


# channels, side and stride of the 3x3 layers of ResNet-50 at 224 pixels, with the stride in the first block of a stage
STAGES = ((64, 56, 1), (128, 56, 2), (128, 28, 1), (256, 14, 1), (512, 7, 1))
_STRIDED = ((128, 56, 2), (256, 28, 2), (512, 14, 2))
_LARGE = (2, 256, 200, 300)
_DILATED = ((8, 256, 28, 28), (8, 512, 28, 28))
_MEMORY_BOUND = ((32, 64, 56, 56), _LARGE)
_COMBINES = ('mul', 'add')


def _stages(
    batches: Sequence[int] = (8, 32),
    kernel_size: int = 3,
    channels_last: bool = False,
    stages: Sequence[tuple[int, int, int]] = STAGES,
) -> tuple[Case, ...]:
    return tuple(
        Case(
            (batch, channels, side, side),
            kernel_size,
            stride=stride,
            kernel_combine=combine,
            channels_last=channels_last,
        )
        for batch in batches
        for channels, side, stride in stages
        for combine in _COMBINES
    )


def _sizes(sizes: Sequence[tuple[int, int, int, int]], layouts: Sequence[bool], **settings: Any) -> tuple[Case, ...]:
    return tuple(
        Case(size, 3, kernel_combine=combine, channels_last=channels_last, **settings)
        for size in sizes
        for channels_last in layouts
        for combine in _COMBINES
    )


_WHOLE_PLANES = tuple(stage for stage in STAGES if stage[2] == 1)
_SAVED = _sizes([(8, 64, 56, 56)], [False, True])

OPERATION_ROWS = (
    Row('forward', 'forward, k=3, contiguous, to dw', 'forward', 0.70, 0.45, _stages()),
    Row('forward-cl', 'forward, k=3, channels_last, to dw_cl', 'forward', 1.05, 0.80, _stages(channels_last=True)),
    Row('large', 'forward, 2x256x200x300, to dw', 'forward', 0.90, 0.65, _sizes([_LARGE], [False])),
    Row('large-cl', 'the same, channels_last, to dw_cl', 'forward', None, None, _sizes([_LARGE], [True])),
    Row('k5', 'forward, k=5, to dw', 'forward', 0.90, 0.70, _stages([8], 5)),
    Row('k7', 'forward, k=7, to dw', 'forward', 1.40, 1.00, _stages([8], 7)),
    Row('stride', 'forward, stride 2, to dw', 'forward', 0.70, 0.45, _stages([8], stages=_STRIDED)),
    Row(
        'stride-cl',
        'forward, stride 2, channels_last, to dw_cl',
        'forward',
        1.05,
        0.80,
        _stages([8], channels_last=True, stages=_STRIDED),
    ),
    Row('dilation', 'forward, dilation 2, to dw', 'forward', 0.70, 0.45, _sizes(_DILATED, [False], dilation=2)),
    Row(
        'dilation-cl',
        'forward, dilation 2, channels_last, to dw_cl',
        'forward',
        1.05,
        0.80,
        _sizes(_DILATED, [True], dilation=2),
    ),
    Row('backward', 'forward + backward, k=3, contiguous, to dw', 'backward', 0.90, 0.55, _stages()),
    Row(
        'backward-cl',
        'forward + backward, k=3, channels_last, to dw_cl',
        'backward',
        1.20,
        0.85,
        _stages(channels_last=True),
    ),
    Row(
        'saved',
        'saved for backward, in sizes of x',
        'saved',
        None,
        None,
        _SAVED + _sizes([(8, 64, 56, 56)], [False], norm_gain=1.0),
    ),
    Row(
        'memory', 'peak memory of forward + backward, over x', 'memory', 2.50, 2.10, _stages([32], stages=_WHOLE_PLANES)
    ),
    Row(
        'bfloat16',
        'forward in bfloat16, memory-bound, to float32',
        'bfloat16',
        1.00,
        None,
        _sizes(_MEMORY_BOUND, [False, True]),
    ),
    Row(
        'threads',
        'forward with all threads, to one thread',
        'threads_compared',
        None,
        None,
        _stages([1, 32], stages=STAGES[::4]),
    ),
)

MODEL_ROWS = (
    Row('inference', 'inference, B=16, eager', 'network', 0.70, 0.60, (Setting(16), Setting(16, True))),
    Row(
        'compiled',
        'inference, B=16, torch.compile',
        'network',
        0.80,
        0.60,
        (Setting(16, compiled=True), Setting(16, True, compiled=True)),
    ),
    Row('single', 'inference, B=1, eager', 'network', 0.80, 0.65, (Setting(1), Setting(1, True))),
    Row(
        'training',
        'training step, B=8, eager',
        'network',
        0.72,
        0.62,
        (Setting(8, train=True), Setting(8, True, train=True)),
    ),
)
