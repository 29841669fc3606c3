"""Random calls of the emulated kernels against the definition, for a process in which faults of memory are noticed.

python -m tests.cuda_emulation.fuzz_kernels LIBRARY 200 [SEED [DTYPE]]
"""

import random
import sys
from dataclasses import replace
from pathlib import Path

import torch

from ddf import check, reference

from . import library

sys.path.insert(0, str(Path(__file__).parents[1] / 'ddf'))

from fuzz_operators import Call, random_call

LIMITS: tuple[dict[str, int], ...] = ({}, {}, {'blocks': 1}, {'blocks': 10**6}, {'offset': 10})


def compare(emulation: library.Emulation, call: Call) -> None:
    exact = Call(tuple(tensor.double() for tensor in call.tensors), call.settings, '').run(reference)
    _, input, _, spatial = (reference.memory_format_of(tensor) for tensor in call.tensors)
    dtype = call.tensors[0].dtype
    formats = (input, input, torch.contiguous_format, spatial)
    for result, expected, memory_format in zip(call.run(emulation), exact, formats):
        error = check.error(result, expected, dtype, memory_format)
        if error > 3 * check.tolerance(dtype):  # a tiny map's largest element may be small against its terms
            raise SystemExit(f'off by {error:.1e}')


def main(path: str, count: str, seed: str = '0', dtype: str = '') -> None:
    emulation = library.Emulation(Path(path))
    choose = random.Random(int(seed))
    torch.manual_seed(int(seed))
    for _ in range(int(count)):
        call, limits = random_call(choose), choose.choice(LIMITS)
        if dtype:
            call = replace(call, tensors=tuple(tensor.to(getattr(torch, dtype)) for tensor in call.tensors))
        print(call.label, limits, flush=True)  # the last one is what a crash came of
        with emulation.limits(**limits):
            compare(emulation, call)
    print(f'{count} calls agree')


if __name__ == '__main__':
    main(*sys.argv[1:])
