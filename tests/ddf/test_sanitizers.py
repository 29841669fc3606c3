"""The compiled library's memory and threads: random calls on tensors that end at a page without access, and under
AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer; and proof that each of them notices a fault."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ddf
from ddf import build

from . import packages

HERE = Path(__file__).parent
FILES = ('fuzz_operators.py', 'fuzz_branches.py', 'fuzz_batch_norm.py', 'guarded_memory.py', 'layouts.py')
OPTIONS = {
    'ASAN_OPTIONS': 'detect_leaks=0:symbolize=0:allocator_may_return_null=1',
    'UBSAN_OPTIONS': 'print_stacktrace=1',
    'TSAN_OPTIONS': 'halt_on_error=1:exitcode=66',
    'OMP_NUM_THREADS': '1',
    'DDF_BUILD': '0',
}
ASAN = ('libasan.so', 'libstdc++.so')  # the second, or it does not find what throws exceptions
CAPABILITIES = ('default', 'avx512')  # the last stands for the best that the processor has
CPU_FLAGS = Path('/proc/cpuinfo').read_text().split() if sys.platform == 'linux' else []
RACE = """
#include <cstdint>
extern "C" int32_t torch_parallel_for(int64_t, int64_t, int64_t, void (*)(int64_t, int64_t, void*), void*);
extern "C" __attribute__((visibility("default"))) void race(int* total) {
  torch_parallel_for(0, 8, 1, [](int64_t, int64_t, void* sum) { ++*static_cast<int*>(sum); }, total);
}
"""

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='preloads the libraries of GCC, of Linux')


def prepare(folder: Path) -> Path:
    packages.copy_package(folder / 'ddf')
    for name in FILES:
        shutil.copy(HERE / name, folder)
    return folder


def runtimes(*names: str) -> str:
    """Libraries of the compiler's, to be preloaded; a test without a sanitizer's proves nothing, and so fails."""
    paths = []
    for name in names:
        command = [*build.find_compiler(), f'-print-file-name={name}']
        paths.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
        assert os.path.isabs(paths[-1]), f'the compiler has no {name}: install it (Debian: part of libgcc-dev)'
    return ':'.join(paths)


def compile_with(folder: Path, flags: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('DDF_CXXFLAGS', flags)
        patch.setattr(build, 'CSRC', folder / 'ddf' / 'csrc')
        build.compile_library(folder / 'ddf' / 'libddf.so')


def fuzz(folder: Path, *arguments: object, **environment: str) -> tuple[int, str, str]:
    return packages.run(folder, 'fuzz_operators.py', *arguments, **OPTIONS, **environment, timeout=900)


@pytest.fixture(scope='module')
def as_released(tmp_path_factory):
    """The package with the library that this process runs."""
    folder = prepare(tmp_path_factory.mktemp('released'))
    shutil.copy(ddf.build_info().path, folder / 'ddf' / 'libddf.so')
    return folder


@pytest.fixture(scope='module')
def with_address_sanitizer(tmp_path_factory):
    folder = prepare(tmp_path_factory.mktemp('address'))
    compile_with(folder, '-fsanitize=address,undefined -fno-sanitize-recover=all -O0 -g1')
    return folder


@pytest.mark.parametrize('capability', CAPABILITIES)
def test_reads_stay_within_the_tensors(as_released, capability):
    status, output, errors = fuzz(as_released, 'guard', 250, DDF_CPU_CAPABILITY=capability)
    assert (status, errors) == (0, ''), output.splitlines()[-1] + errors[-2000:]
    assert '250 calls agree' in output


def test_read_beyond_a_page_is_noticed(as_released):
    status, output, errors = fuzz(as_released, 'short', 'guarded')
    assert (status, output.splitlines()[-1]) == (0, 'every short tensor was noticed'), errors


@pytest.mark.slow
@pytest.mark.skipif('avx2' not in CPU_FLAGS, reason='emulates AVX-512 on AVX2')
def test_avx512_kernels_where_the_processor_lacks_it(tmp_path):
    """The kernels for every processor are compiled as those for AVX-512 are, on the instructions of AVX2."""
    folder = prepare(tmp_path)
    compile_with(folder, f'-mavx2 -mfma -mf16c -O1 -Wno-psabi -include "{HERE / "emulated_avx512.h"}"')
    status, output, errors = fuzz(folder, 'guard', 300, 3, DDF_CPU_CAPABILITY='default')
    assert (status, errors) == (0, ''), output.splitlines()[-1] + errors[-2000:]
    assert 'compiled for cpu (default)' in output
    assert '300 calls agree' in output


@pytest.mark.slow
@pytest.mark.parametrize('capability', CAPABILITIES)
def test_address_and_undefined_behaviour_sanitizers(with_address_sanitizer, capability):
    status, output, errors = fuzz(
        with_address_sanitizer, 'agree', 150, 1, LD_PRELOAD=runtimes(*ASAN), DDF_CPU_CAPABILITY=capability
    )
    assert (status, errors) == (0, ''), output.splitlines()[-1] + errors[:4000]
    assert str(with_address_sanitizer / 'ddf' / 'libddf.so') in output
    assert '150 calls agree' in output


@pytest.mark.slow
def test_read_beyond_an_allocation_is_noticed(with_address_sanitizer):
    status, output, errors = fuzz(with_address_sanitizer, 'short', 'allocated', LD_PRELOAD=runtimes(*ASAN))
    assert (status, output.splitlines()[-1]) == (0, 'every short tensor was noticed'), errors[-2000:]
    calls = errors.split('\n== ')
    assert len(calls) == 10
    for call in calls:
        assert 'ERROR: AddressSanitizer: ' in call, call[:500]
        assert 'libddf.so' in next(line for line in call.splitlines() if line.lstrip().startswith('#0')), call[:500]


@pytest.mark.slow
def test_thread_sanitizer(tmp_path):
    folder = prepare(tmp_path)
    (folder / 'ddf' / 'csrc' / 'race.cpp').write_text(RACE)
    compile_with(folder, '-fsanitize=thread -O0 -g1')
    threads = folder / 'parallel_for.so'
    command = [*build.find_compiler(), '-std=c++20', '-shared', '-fPIC', '-fsanitize=thread', '-O1', '-g']
    subprocess.run([*command, '-o', threads, HERE / 'parallel_for.cpp'], check=True)
    preload = f'{runtimes("libtsan.so")}:{threads}'
    for capability in CAPABILITIES:
        status, output, errors = fuzz(folder, 'agree', 150, 2, LD_PRELOAD=preload, DDF_CPU_CAPABILITY=capability)
        assert (status, errors) == (0, ''), output.splitlines()[-1] + errors[:4000]
        assert '150 calls agree' in output
    code = 'import ctypes; total = ctypes.c_int(); ctypes.CDLL("ddf/libddf.so").race(ctypes.byref(total))'
    status, _, errors = packages.run(folder, '-c', f'import torch; {code}', LD_PRELOAD=preload, **OPTIONS)
    assert status == 66
    assert 'ThreadSanitizer: data race' in errors
