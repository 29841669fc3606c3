"""The tables of docs/cuda.md as Markdown, by the names of their markers."""

import math
from collections.abc import Iterable, Iterator, Sequence

from . import traffic
from .compiler import ARCHITECTURES, Kernel, Resources
from .launches import Launch, Recorder, Work

RESNET50 = ((32, 64, 56, 56), (32, 128, 28, 28), (32, 256, 14, 14), (32, 512, 7, 7))  # its 3 by 3 maps at 224 pixels
# forward in ms on an RTX 2080 Ti, 32 images of 256 channels: arXiv 2104.14107, supplement, Table A
_PUBLISHED = ((28, 'depthwise', 0.22), (28, 'DDF', 0.48), (56, 'depthwise', 0.79), (56, 'DDF', 1.80),
              (224, 'depthwise', 11.97), (224, 'DDF', 28.62))  # fmt: skip
_PUBLISHED_BANDWIDTH = 616e9  # bytes/s of that GPU, as NVIDIA states it
CHECKED = (32, 256, 56, 56)  # what `python -m ddf check` times on a GPU
_LAYOUTS = ('contiguous', 'channels_last')
_WORKED = tuple(Work(RESNET50[0], dtype, layout) for dtype in ('float32', 'bfloat16') for layout in (False, True))
_STRIDED = Work((32, 128, 56, 56), stride=2)
_HALF = Work(RESNET50[2])  # rows of no whole vector
_SINGLE = Work(RESNET50[3])  # rows of an odd number
_GENERAL = Work((32, 63, 56, 56), channels_last=True)  # pixels of no whole vector
Measured = dict[str, dict[Kernel, Resources]]


def make(measured: Measured, recorder: Recorder, release: str) -> dict[str, str]:
    """Every table; the first names the compiler."""
    launches = _representatives(recorder)
    tables = {
        'compiler': f'Compiled by nvcc {release} with `-O3`, for {_listed(ARCHITECTURES)}: '
        f'{len(measured[ARCHITECTURES[0]])} kernels and functions for each.\n'
    }
    for architecture in ARCHITECTURES:
        name = architecture.removesuffix('+PTX')
        tables[f'sm_{name.replace(".", "")}'] = _resources(name, measured[architecture], launches)
    tables['gather'] = _gather_table(recorder)
    tables['filter-gradients'] = _filter_table(recorder)
    tables['passes'] = _passes(recorder)
    tables['official'] = _official()
    tables['predictions'] = _predictions(recorder)
    return tables


def _representatives(recorder: Recorder) -> list[Launch]:
    """Launches of the kernels that the tables show: one of each, in the order of the passes."""
    chosen: dict[Kernel, Launch] = {}
    for work in (*_WORKED, _STRIDED, _HALF, _SINGLE, _GENERAL):
        for launch in (*recorder.forward(work), *recorder.filter_gradients(work)):
            chosen.setdefault(launch.kernel, launch)
    order = ('gather', 'filter', 'finish')
    return sorted(chosen.values(), key=lambda launch: order.index(launch.kernel.name.partition('_')[0]))


def _resources(architecture: str, kernels: dict[Kernel, Resources], launches: Sequence[Launch]) -> str:
    head = ('kernel', 'threads', 'registers', 'shared memory, B', 'occupancy', 'spills, B', '16-byte loads', 'stores')
    rows = []
    for launch in launches:
        found = kernels[launch.kernel]
        share = traffic.occupancy(architecture, found.registers, launch.threads, launch.shared)
        counts = (f'{found.vector_loads} of {found.loads}', f'{found.vector_stores} of {found.stores}')
        rows.append((f'`{launch.kernel}`', launch.threads, found.registers, launch.shared, f'{share:.0%}', found.spills,
                     *counts))  # fmt: skip
    return _table(head, rows)


def _gather_table(recorder: Recorder) -> str:
    head = ('map', 'layout', 'dtype', 'kernel', 'blocks', 'must move', 'from L2', 'ratio', 'inductor from L2', 'ratio')
    rows = []
    for work in _shown():
        (launch,) = recorder.forward(work)
        must = traffic.forward_bytes(work)
        moved, other = traffic.gather_traffic(work, launch), traffic.inductor_traffic(work)
        numbers = (launch.blocks, _mb(must), _mb(moved), f'{moved / must:.2f}', _mb(other), f'{other / must:.2f}')
        rows.append((*_named(work), f'`{launch.kernel}`', *numbers))
    return _table(head, rows)


def _filter_table(recorder: Recorder) -> str:
    head = ('map', 'layout', 'dtype', 'kernel', 'blocks', 'must move', 'partial sums, twice', 'ratio')
    rows = []
    for work in _shown():
        launch, *_ = recorder.filter_gradients(work)
        must, besides = traffic.filter_gradient_bytes(work), 2 * recorder.workspace(work)
        numbers = (launch.blocks, _mb(must), _mb(besides), f'{(must + besides) / must:.2f}')
        rows.append((*_named(work), f'`{launch.kernel}`', *numbers))
    return _table(head, rows)


def _passes(recorder: Recorder) -> str:
    head = ('dtype', 'pass', 'must move', 'these kernels', 'shifted sum, at least', 'official, at least')
    rows = []
    for dtype in ('float32', 'float16'):
        work = Work(CHECKED, dtype)
        forward, filters = traffic.forward_bytes(work), traffic.filter_gradient_bytes(work)
        least = (forward, forward, filters)
        ours = (forward, forward, filters + 2 * recorder.workspace(work))
        columns = (least, ours, least, traffic.official_least(work))
        for name, *counts in zip(('forward', 'gradient of `input`', "filters' gradients"), *columns):
            rows.append((dtype, name, *map(_mb, counts)))
    return _table(head, rows)


def _official() -> str:
    head = ('map', 'operation', 'latency as published', 'must move', 'can have moved at most', 'so at least',
            'of the published bandwidth')  # fmt: skip
    rows = []
    for side, name, latency in _PUBLISHED:
        work = Work((32, 256, side, side))
        depthwise = work.element * (2 * math.prod(work.size) + traffic.TAPS * work.size[1])
        must = traffic.forward_bytes(work) if name == 'DDF' else depthwise
        rate = must / latency * 1e3
        share = f'{rate / _PUBLISHED_BANDWIDTH:.0%}'
        most = latency * 1e-3 * _PUBLISHED_BANDWIDTH
        rows.append((_named(work)[0], name, f'{latency} ms', _mb(must), _mb(most), f'{rate / 1e9:.0f} GB/s', share))
    return _table(head, rows)


def _predictions(recorder: Recorder) -> str:
    head = ('map', 'dtype', 'GPU', 'forward: memory', 'forward: arithmetic', 'backward: memory')
    rows = []
    for size in (CHECKED, RESNET50[0], RESNET50[2]):
        for dtype in ('float32', 'bfloat16'):
            work = Work(size, dtype)
            forward = traffic.forward_bytes(work)
            backward = forward + traffic.filter_gradient_bytes(work) + 2 * recorder.workspace(work)
            for gpu in traffic.GPUS:
                times = (
                    traffic.memory_ms(gpu, forward),
                    traffic.arithmetic_ms(gpu, work),
                    traffic.memory_ms(gpu, backward),
                )
                rows.append((_named(work)[0], dtype, gpu.name, *(f'{time:.3f}' for time in times)))
    return _table(head, rows)


def _shown() -> Iterator[Work]:
    for size in RESNET50:
        for channels_last in (False, True):
            yield Work(size, 'float32', channels_last)
    for channels_last in (False, True):
        yield Work(RESNET50[0], 'bfloat16', channels_last)


def _named(work: Work) -> tuple[str, str, str]:
    return 'x'.join(map(str, work.size)), _LAYOUTS[work.channels_last], work.dtype


def _mb(count: float) -> str:
    return f'{count / 1e6:.1f} MB'


def _listed(architectures: Sequence[str]) -> str:
    words = [f'sm_{name.replace(".", "").replace("+PTX", " and its PTX")}' for name in architectures]
    return f'{", ".join(words[:-1])} and {words[-1]}'


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ['---'] * len(head), *rows]
    return ''.join(f'| {" | ".join(map(str, line))} |\n' for line in lines)
