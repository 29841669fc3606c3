"""Random calls of `torch.ops.ddf.*` against the definition, for a process in which faults of memory are noticed.

    python fuzz_operators.py agree 200 [SEED]     # sizes, settings, dtypes, layouts; wrong calls, which must be refused
    python fuzz_operators.py guard 200 [SEED]     # the same on tensors that end at a page without access
    python fuzz_operators.py short allocated      # tensors that claim one element more than was allocated
    python fuzz_operators.py short guarded        # or than lies before a page without access

The last two prove that the kernels' reads are watched: each call runs in a child process, which must die of it.
"""

import itertools
import os
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from fuzz_batch_norm import compare_norms, random_norm_call
from fuzz_branches import compare_branches, random_branches_call
from guarded_memory import allocated, ending_at_a_page, guarded
from layouts import LAYOUTS, laid_out
from torch import Tensor

import ddf
from ddf import check, reference

OTHERS = (random_branches_call, random_norm_call), (compare_branches, compare_norms)
OPERATORS = ('forward', 'input_gradient', 'filter_gradients')
NAMES = ('grad_output', 'input', 'channel_filter', 'spatial_filter')


@dataclass(frozen=True)
class Call:
    """Arguments of all three operators, and how they came about."""

    tensors: tuple[Tensor, ...]
    settings: tuple[int, int, int, str, float | None]
    label: str

    def run(self, operators: object) -> list[Tensor]:
        forward, input_gradient, filter_gradients = (getattr(operators, name) for name in OPERATORS)
        return [
            forward(*self.tensors[1:], *self.settings),
            input_gradient(*self.tensors, *self.settings),
            *filter_gradients(*self.tensors, *self.settings),
        ]


def random_call(choose: random.Random) -> Call:
    head = choose.choice([1, 1, 2, 3])
    batch, channels = choose.choice([1, 1, 2, 3]), head * choose.choice([1, 2, 3, 4, 5, 8, 17])
    height, width = (choose.choice([1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 20, 31, 33]) for _ in range(2))
    kernel_size = choose.choice([1, 3, 3, 3, 5, 7, 9])
    if choose.random() < 0.05:
        batch, height = choose.choice([(0, height), (batch, 0)])
    stride, dilation = choose.choice([1, 1, 2, 3, 40]), choose.choice([1, 1, 2, 3, 50])
    dtype = choose.choice(check.DTYPES)
    if choose.random() < 0.15:  # has a kernel of its own, which would seldom be drawn
        kernel_size, stride, dilation, dtype = 3, 2, 1, torch.float32
    packs = choose.random() < 0.05  # likewise: the spatial filter of planes that fill pages is copied
    if packs:
        channels, height, width, kernel_size, stride, dtype = 32 * head, 32, 32, choose.choice([3, 5]), 1, torch.float32
    grid = reference.output_size(height, stride), reference.output_size(width, stride)
    norm_gain = choose.choice([None, None, 0.5]) if kernel_size > 1 and not packs else None
    shapes = (
        (batch, channels, *grid),
        (batch, channels, height, width),
        (choose.choice([1, batch]), channels, kernel_size, kernel_size),
        (choose.choice([1, batch]), head * kernel_size**2, *grid),
    )
    layouts = [choose.choice(('contiguous', 'at the end') if packs else LAYOUTS) for _ in shapes]
    # expanding logits along the taps makes them equal: there the normalisation has no derivative to compare
    if norm_gain is not None and layouts[3] == 'expanded':
        layouts[3] = 'contiguous'
    tensors = tuple(laid_out(torch.randn(*shape).to(dtype), layout, choose) for shape, layout in zip(shapes, layouts))
    settings = dilation, stride, head, choose.choice(['mul', 'add']), norm_gain
    return Call(tensors, settings, f'{dtype} {shapes} {layouts} {settings}')


def compare(call: Call) -> None:
    exact = Call(tuple(tensor.double() for tensor in call.tensors), call.settings, '').run(reference)
    _, input, _, spatial = (reference.memory_format_of(tensor) for tensor in call.tensors)
    dtype = call.tensors[0].dtype
    for result, expected, memory_format in zip(
        call.run(torch.ops.ddf), exact, (input, input, torch.contiguous_format, spatial)
    ):
        error = check.error(result, expected, dtype, memory_format)
        if error > 3 * check.tolerance(dtype):  # a tiny map's largest element may be small against its terms
            raise SystemExit(f'error {error} in {call.label}')


def wrong_calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Direct calls that Python's checks would have refused: the operators must refuse them before they read."""
    good = torch.randn(2, 4, 3, 4), torch.randn(2, 4, 5, 7), torch.randn(2, 4, 3, 3), torch.randn(2, 18, 3, 4)
    settings = (1, 2, 2, 'mul', None)
    shapes = (
        (2, 4, 3),
        (1, 4, 3, 4),
        (2, 4, 3, 3),
        (2, 4, 2, 2),
        (2, 3, 3, 4),
        (3, 4, 3, 4),
        (2, 17, 3, 4),
        (0, 0, 0, 0),
    )
    wrong_tensors = [
        torch.randn(shape) for shape in (*shapes, (2, 18, 2, 4), (2, 4, 3, 5), (2, 4, 5, 5), (3, 18, 3, 4))
    ]
    for name in OPERATORS:
        first = 1 if name == 'forward' else 0
        for position, wrong in itertools.product(range(first, 4), wrong_tensors):
            if fits(position, wrong.shape):
                continue
            tensors = [*good[:position], wrong, *good[position + 1 :]][first:]
            yield f'{name} {NAMES[position]} {tuple(wrong.shape)}', call_of(name, tensors, settings)
        for position, dtype in itertools.product(range(first, 4), (torch.float64, torch.int32, torch.complex64)):
            tensors = [*good[:position], good[position].to(dtype), *good[position + 1 :]][first:]
            yield f'{name} {NAMES[position]} {dtype}', call_of(name, tensors, settings)
        for wrong_settings in (
            *((0, 2, 2, 'mul', None), (-1, 2, 2, 'mul', None), (1, 0, 2, 'mul', None), (1, -(2**62), 2, 'mul', None)),
            *((1, 2, 0, 'mul', None), (1, 2, 3, 'mul', None), (1, 2, 2**61, 'mul', None), (1, 2, -2, 'mul', None)),
            *((1, 1, 2, 'mul', None), (1, 2, 2, 'product', None), (1, 2, 1, 'add', 0.5)),
        ):
            yield f'{name} {wrong_settings}', call_of(name, list(good)[first:], wrong_settings)


def fits(position: int, shape: torch.Size) -> bool:
    """Whether a shape is right for one of the arguments of `wrong_calls`; batch 1 is right for filters."""
    right = ({(2, 4, 3, 4)}, {(2, 4, 5, 7)}, {(2, 4, 3, 3), (1, 4, 3, 3)}, {(2, 18, 3, 4), (1, 18, 3, 4)})
    return tuple(shape) in right[position]


def call_of(name: str, tensors: list[Tensor], settings: tuple) -> Callable[[], object]:
    return lambda: getattr(torch.ops.ddf, name)(*tensors, *settings)


def refuse_wrong_calls() -> int:
    count = 0
    for label, call in wrong_calls():
        try:
            call()
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            count += 1
        else:
            raise SystemExit(f'not refused: {label}')
    return count


def short_calls(place: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Calls in which the memory of one tensor lacks its last element, which is read: stride 2 ends within the map."""
    shapes = ((1, 2, 3, 3), (1, 2, 6, 6), (1, 2, 3, 3), (1, 9, 3, 3))
    for name, position in itertools.product(OPERATORS, range(4)):
        unread = {'forward': 0, 'input_gradient': 1}.get(name)
        if position == unread:
            continue
        tensors = [torch.randn(shape) for shape in shapes]
        count = tensors[position].numel()
        short = allocated(count, 1) if place == 'allocated' else ending_at_a_page(count, torch.float32, 1)
        tensors[position] = short.view(shapes[position])
        yield f'{name} {NAMES[position]}', call_of(name, tensors[name == 'forward' :], (1, 2, 1, 'mul', None))


def survivors_of_short_calls(place: str) -> list[str]:
    """The calls that nothing stopped."""
    survivors = []
    for label, call in short_calls(place):
        print(f'== {label}', file=sys.stderr, flush=True)
        child = os.fork()
        if child == 0:
            call()
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            survivors.append(label)
    return survivors


def main(command: str, argument: str, seed: str = '0') -> None:
    print(str(ddf.build_info()).splitlines()[0], flush=True)
    if 'cpu' not in ddf.build_info().devices:
        raise SystemExit('no compiled library is loaded')
    if command == 'short':
        if survivors := survivors_of_short_calls(argument):
            raise SystemExit(f'not noticed: {survivors}')
        print('every short tensor was noticed')
        return
    choose, *choose_others = (random.Random(int(seed)) for _ in range(3))
    torch.manual_seed(int(seed))
    torch.use_deterministic_algorithms(True)  # fills what torch.empty gives with NaN
    for _ in range(int(argument)):
        call = random_call(choose)
        print(call.label, flush=True)  # the last one is what a crash came of
        compare(replace(call, tensors=tuple(map(guarded, call.tensors))) if command == 'guard' else call)
        for choose_other, random_other, compare_other in zip(choose_others, *OTHERS):
            with torch.random.fork_rng():  # so that these leave the calls above as they are
                other = random_other(choose_other)
            print(other.label, flush=True)
            compare_other(other.guarded() if command == 'guard' else other)
    print(f'{argument} calls agree, {refuse_wrong_calls()} wrong calls were refused')


if __name__ == '__main__':
    main(*sys.argv[1:])
