"""What is compiled, for which instruction sets and with which flags; on small sources where the real ones take long."""

import ctypes
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ddf import build, extension

from .packages import write_small_sources

X86_64 = platform.machine().lower() in ('x86_64', 'amd64')


@pytest.fixture
def csrc(tmp_path, monkeypatch):
    """Small sources in the place of the package's."""
    monkeypatch.setattr(build, 'CSRC', write_small_sources(tmp_path / 'csrc'))
    monkeypatch.delenv('DDF_CXXFLAGS', raising=False)
    return build.CSRC


def compile_small(folder: Path) -> tuple[ctypes.CDLL, dict[str, str]]:
    library = folder / 'out' / 'library.so'
    build.compile_library(library)
    assert list(library.parent.iterdir()) == [library]
    return ctypes.CDLL(str(library)), build.read_stamp(library)


def write_compiler(folder: Path, script: str) -> str:
    path = folder / 'compiler'
    path.write_text(f'#!/bin/sh\n{script}\nexec {" ".join(build.find_compiler())} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.skipif(not X86_64, reason='compiles for x86-64')
def test_kernels_are_compiled_once_per_instruction_set(csrc, tmp_path):
    library, stamp = compile_small(tmp_path)
    assert stamp['capabilities'] == 'default,avx2,avx512'
    assert [getattr(library, f'features_{name}')() for name in build.CPU_CAPABILITIES] == [0, 2, 6]
    assert library.features_library() == 1 + 2


def test_compiler_for_another_processor_gets_no_x86_flags(csrc, tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', write_compiler(tmp_path, '[ "$1" = -dumpmachine ] && echo aarch64-linux-gnu && exit'))
    library, stamp = compile_small(tmp_path)
    assert stamp['capabilities'] == 'default'
    assert library.features_default() == 0
    assert not hasattr(library, 'features_avx2')
    assert library.features_library() == 1


def test_machine_decides_where_the_compiler_does_not_say(monkeypatch):
    for machine, expected in (('x86_64', True), ('AMD64', True), ('arm64', False), ('i686', False)):
        monkeypatch.setattr(platform, 'machine', lambda machine=machine: machine)
        assert build._makes_x86_64(['/nonexistent']) is expected


def test_further_sources_are_compiled_too(csrc, tmp_path):
    (csrc / 'more.cpp').write_text('extern "C" __attribute__((visibility("default"))) int more() { return 7; }')
    library, _ = compile_small(tmp_path)
    assert library.more() == 7


def test_error_names_what_was_compiled_and_leaves_nothing(csrc, tmp_path):
    kernels = csrc / 'cpu' / 'kernels.cpp'
    kernels.write_text(kernels.read_text() + '#ifndef __AVX2__\n#error "planted"\n#endif\n')
    with pytest.raises(build.BuildError, match=r'compiling cpu-kernels-default: .* failed with status 1:\n.*planted'):
        build.compile_library(tmp_path / 'out' / 'library.so')
    assert list((tmp_path / 'out').iterdir()) == []


def test_failed_link_is_reported(csrc, tmp_path, monkeypatch):
    monkeypatch.setenv('DDF_CXXFLAGS', '-Wl,--no-such-option')
    with pytest.raises(build.BuildError, match=r'linking: .* failed with status 1:\n(.|\n)*no-such-option'):
        build.compile_library(tmp_path / 'out' / 'library.so')
    assert list((tmp_path / 'out').iterdir()) == []


@pytest.mark.skipif(not X86_64, reason='compiles for x86-64')
def test_further_flags_reach_every_compilation_stamp_and_cache(csrc, tmp_path, monkeypatch):
    plain = extension._cache_key('ab12')
    monkeypatch.setenv('DDF_CXXFLAGS', "-mavx2 -mfma -mf16c '-DUNUSED=a b'")
    library, stamp = compile_small(tmp_path)
    assert library.features_default() == 2
    assert stamp['flags'] == '-mavx2 -mfma -mf16c _-DUNUSED=a b_'
    assert extension._cache_key('ab12') != plain
    path = tmp_path / 'out' / 'library.so'
    assert extension._is_usable(path, stamp['source'], [])
    monkeypatch.setenv('DDF_CXXFLAGS', '-O2')
    notes: list[str] = []
    assert not extension._is_usable(path, stamp['source'], notes)
    assert 'it was not built with DDF_CXXFLAGS=-O2' in notes[0]
    monkeypatch.delenv('DDF_CXXFLAGS')
    assert extension._is_usable(path, stamp['source'], [])
    assert extension._cache_key('ab12') == plain


@pytest.mark.parametrize('variable', ['CXX', 'DDF_CXXFLAGS'])
def test_open_quotes_are_reported(csrc, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, "c++ '-O1")
    with pytest.raises(build.BuildError, match=f"{variable}=c\\+\\+ '-O1 cannot be split"):
        build.compile_library(tmp_path / 'library.so')


def test_cache_key_follows_the_flags_of_every_object(monkeypatch):
    plain = extension._cache_key('ab12')
    monkeypatch.setattr(build, 'CPU_CAPABILITIES', {**build.CPU_CAPABILITIES, 'avx2': ('-mavx2',)})
    assert extension._cache_key('ab12') != plain


def test_stamp_is_read_from_the_bytes(tmp_path):
    library = tmp_path / 'library.so'
    library.write_bytes(b'\x7fELF\0ddf-build-stamp:source=ab12;devices=cpu,cuda;compiler=c++ (x=1) 12:end\0\xff')
    assert build.read_stamp(library) == {'source': 'ab12', 'devices': 'cpu,cuda', 'compiler': 'c++ (x=1) 12'}
    library.write_bytes(b'\x7fELF\0 no stamp \0')
    assert build.read_stamp(library) == {}


def test_source_hash_follows_names_and_contents(tmp_path, monkeypatch):
    monkeypatch.setattr(build, 'CSRC', tmp_path)
    assert build.source_hash() == ''
    hashes = set()
    for name, content in (('a.h', 'one'), ('a.h', 'two'), ('b.h', 'two'), ('cpu/b.h', 'two')):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        hashes.add(build.source_hash())
        path.unlink()
    assert len(hashes) == 4
    (tmp_path / 'notes.txt').write_text('not a source')
    assert build.source_hash() == ''


@pytest.mark.slow
@pytest.mark.skipif(not X86_64 or shutil.which('nm') is None, reason='compiles for x86-64 and reads symbols with nm')
def test_code_of_one_instruction_set_does_not_reach_another(tmp_path):
    """An inline function that only the AVX objects define would, once linked, run on every processor."""
    chosen = [item for item in build.objects(list(build.CPU_CAPABILITIES)) if item.source.startswith('cpu/')]
    paths = build.compile_objects(build.find_compiler(), chosen, (), tmp_path)
    shared = {item.name: _shared_symbols(path) for item, path in zip(chosen, paths)}
    assert {'cpu-kernels-default', 'cpu-kernels-avx2', 'cpu-kernels-avx512'} <= shared.keys()
    for item in chosen:
        default = item.name.rpartition('-')[0] + '-default'
        assert not shared[item.name] - shared[default], item.name


def _shared_symbols(path: str) -> set[str]:
    """Symbols that the linker merges with those of other objects: weak and unique ones."""
    lines = subprocess.run(['nm', '--defined-only', path], capture_output=True, text=True, check=True).stdout
    return {line.split()[-1] for line in lines.splitlines() if line.split()[-2] in 'VvWwu'}
