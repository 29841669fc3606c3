"""The emulation itself: faults planted in copies of the kernels are caught; and the kernels under sanitizers."""

import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from ddf import build, reference
from ddf.check import Case, evaluate
from tests.ddf.test_sanitizers import ASAN, OPTIONS, runtimes

from . import library

PLANES = Case((2, 8, 9, 16), 3)
PIXELS = Case((2, 16, 9, 16), 3, channels_last=True, norm_gain=0.5)
GENERAL = Case((2, 18, 7, 9), 9, norm_gain=0.5)
GENERAL_SUMS = 'filter_gradients_general.cuh'
BARRIER = '  __syncthreads();\n'
FAULTS = {
    'no barrier after the filters of planes': ('gather_planes.cuh', BARRIER, '', PLANES, 'nan'),
    'no barrier after the filters of pixels': ('gather_pixels.cuh', f'taps);\n{BARRIER}', 'taps);\n', PIXELS, 'nan'),
    'no barrier of a warp': ('filter_gradients_planes.cuh', '  __syncwarp();\n', '', PLANES, 'nan'),
    'no barrier of a warp above 7 by 7': (GENERAL_SUMS, '      __syncwarp();\n', '', GENERAL, 'nan'),
    'sums of the pixels before not added': (GENERAL_SUMS, 'of_channel + total', 'total', GENERAL, 'wrong'),
    'vectors read one pixel off': (
        *('gather_planes.cuh', 'row, x + part * VEC, width', 'row, x + 1 + part * VEC, width'),
        *(PLANES, 'misaligned access of 16 bytes'),
    ),
    'vectors written one pixel off': (
        *('gather_planes.cuh', 'y * g.output.row + x *', 'y * g.output.row + 1 + x *', PLANES),
        'misaligned access of 16 bytes',
    ),
    'the row after the map read, too': ('gather_planes.cuh', 'x < width', 'x <= width', PLANES, 'wrong'),
    'threads that end before a barrier': (
        *('gather_planes.cuh', BARRIER, f'  if (threadIdx.x >= 40) return;\n{BARRIER}', PLANES),
        'divergent barrier',
    ),
    'an output that is not written': ('gather_planes.cuh', 'if (channel + n < count) store', 'if (false) store',
                                      PLANES, 'nan'),
    'more shared memory than a block may have': (
        *('launch_gather.cuh', 'int64_t{K} * K * VEC * threads * sizeof(A) : 0', '0 : 1 << 16', PLANES),
        'invalid configuration argument',
    ),
}  # fmt: skip


def copy_sources(folder: Path) -> Path:
    """Kernels for float32 alone, which compile in seconds, and the emulation, laid out as in the project."""
    shutil.copytree(build.CSRC, folder / 'ddf' / 'csrc', ignore=shutil.ignore_patterns('cpu', '*halves.cu'))
    shutil.copytree(library.HERE, folder / 'tests' / 'cuda_emulation', ignore=shutil.ignore_patterns('*.py*'))
    cuda = folder / 'ddf' / 'csrc' / 'cuda'
    for name in ('gather.cu', 'filter_gradients.cu'):
        lines = (cuda / name).read_text().splitlines(keepends=True)
        (cuda / name).write_text(''.join(line for line in lines if 'double' not in line))
    launch = (cuda / 'launch.cu').read_text()
    for dtype in ('double', '__half', '__nv_bfloat16'):
        launch = launch.replace(f'run({dtype}())', 'run(float())')
    (cuda / 'launch.cu').write_text(launch)
    return folder


def plant(folder: Path, name: str, right: str, wrong: str) -> None:
    path = folder / 'ddf' / 'csrc' / 'cuda' / name
    text = path.read_text()
    assert right in text, f'{name} no longer holds {right!r}'
    path.write_text(text.replace(right, wrong, 1))


def compile_copy(folder: Path, *flags: str, **settings: str) -> Path:
    path = folder / 'library.so'
    here = folder / 'tests' / 'cuda_emulation'
    library.compile_library(path, [*library.OPTIMISED, *flags], cuda=folder / 'ddf/csrc/cuda', here=here, **settings)
    return path


def outcome(emulation: library.Emulation, case: Case) -> str:
    tensors = case.tensors(torch.float32)
    exact = evaluate(reference, [tensor.double() for tensor in tensors], case.settings)
    try:
        found = evaluate(emulation, tensors, case.settings)  # type: ignore[arg-type]
    except library.Fault as fault:
        return str(fault)
    if any(result.isnan().any() for result in found):
        return 'nan'
    right = all(torch.allclose(result.double(), expected, atol=1e-4) for result, expected in zip(found, exact))
    return 'right' if right else 'wrong'


@pytest.mark.parametrize('fault', FAULTS)
def test_planted_faults_are_caught(tmp_path, fault):
    name, right, wrong, case, expected = FAULTS[fault]
    plant(copy_sources(tmp_path), name, right, wrong)
    emulation = library.Emulation(compile_copy(tmp_path))
    with emulation.limits(blocks=1) if case is GENERAL else nullcontext():  # tiles of many pixels, as on large maps
        assert outcome(emulation, case).startswith(expected)


def test_no_fault_is_seen_where_none_is(emulation):
    assert {outcome(emulation, case) for _, _, _, case, _ in FAULTS.values()} == {'right'}


def fuzz(path: Path, *arguments: object) -> subprocess.CompletedProcess:
    environment = os.environ | OPTIONS | {'LD_PRELOAD': runtimes(*ASAN)}
    command = [sys.executable, '-m', 'tests.cuda_emulation.fuzz_kernels', str(path), *map(str, arguments)]
    root = library.HERE.parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers(cache):
    flags = ('-O1', '-g1', '-mf16c', '-fsanitize=address,undefined', '-fno-sanitize-recover=all')
    result = fuzz(library.cached_library(cache, flags), 200, 1)
    assert (result.returncode, '200 calls agree' in result.stdout) == (0, True), (
        result.stdout.splitlines()[-1:],
        result.stderr[:4000],
    )


@pytest.mark.slow
def test_read_beyond_the_map_is_noticed_by_the_sanitizer(tmp_path):
    plant(copy_sources(tmp_path), 'gather_planes.cuh', 'x >= 0 && x < width', 'x >= 0')
    path = compile_copy(tmp_path, '-g1', '-fsanitize=address')
    result = fuzz(path, 200, 1, 'float32')
    assert 'ERROR: AddressSanitizer' in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize('fault', [None, *(name for name in FAULTS if name.startswith('no barrier'))])
def test_thread_sanitizer(tmp_path, fault):
    copy_sources(tmp_path)
    if fault is not None:
        plant(tmp_path, *FAULTS[fault][:3])
    here = tmp_path / 'tests' / 'cuda_emulation'
    sources = [*(tmp_path / 'ddf/csrc/cuda').glob('*.cu'), *(here / name for name in
               ('common.cpp', 'threads.cpp', 'small_calls.cpp'))]  # fmt: skip
    program = tmp_path / 'small_calls'
    command = [*build.find_compiler(), *library.FLAGS, '-O1', '-g1', '-mf16c', '-fsanitize=thread', '-pthread']
    languages = [word for source in sources for word in ('-x', 'c++', str(source))]
    subprocess.run([*command, f'-I{here / "include"}', '-o', str(program), *languages], check=True)
    result = subprocess.run([program], capture_output=True, text=True, check=False, env=os.environ | OPTIONS)
    if fault is None:
        assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    else:
        assert 'ThreadSanitizer: data race' in result.stderr
