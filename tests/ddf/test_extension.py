"""Finding, building and loading the library. Each subprocess has a copy of the package, under another name, and a cache
of its own; the copies' C++ sources are small ones."""

import os
import re
import shutil
from pathlib import Path

import pytest

import ddf
from ddf import __main__ as command
from ddf import build, check, extension, operators

from . import packages

_GPUS = """
import sys, types, torch
torch.cuda.is_available, torch.cuda.device_count = lambda: {gpus} > 0, lambda: {gpus}
torch.cuda.get_device_capability = lambda index: (7, 5)
gpu = types.SimpleNamespace(name='NVIDIA T4', major=7, minor=5, total_memory=16 << 30)
torch.cuda.get_device_properties = lambda index: gpu
from borrowed.__main__ import main
sys.exit(main({arguments}))
"""


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    """A folder with the package copied as `borrowed`, without any compiled library."""
    folder = tmp_path_factory.mktemp('project')
    packages.copy_package(folder / 'borrowed', small=True)
    return folder


def run(home, *arguments, **environment):
    return packages.run(home, '-m', 'borrowed', *arguments, **environment)


def test_this_process_runs_the_present_sources():
    info = extension.build_info()
    assert info is extension.load()
    assert 'cpu' in info.devices, info
    assert dict(info.stamp)['source'] == info.source_hash == build.source_hash()
    capability = f' ({info.cpu_capability})' if info.cpu_capability else ''
    compiled = f'{", ".join(info.devices)}{capability}'
    assert str(info).splitlines()[0] == f'ddf {ddf.__version__}: compiled for {compiled}, {info.path}'


def test_without_a_compiler_plain_torch_serves(home):
    status, output, errors = run(home, CXX='/nonexistent')
    assert (status, errors) == (0, '')
    assert 'plain torch' in output.splitlines()[0]
    assert 'note: not built: the compiler named by CXX=/nonexistent was not found' in output
    status, output, errors = run(home, 'build', CXX='/nonexistent')
    assert (status, output) == (1, '')
    assert errors.startswith('ddf: not built: the compiler named by CXX=/nonexistent')
    assert len(errors.splitlines()) == 1


def test_reference_can_be_asked_for(home):
    status, output, errors = run(home, DDF_BACKEND='reference', DDF_CACHE_DIR=str(home / 'untouched'))
    assert (status, errors) == (0, '')
    assert 'plain torch' in output.splitlines()[0]
    assert 'note: DDF_BACKEND=reference' in output
    assert not (home / 'untouched').exists()


def test_unwritable_cache_is_reported(home):
    status, output, errors = run(home, DDF_CACHE_DIR='/dev/null/cache')
    assert (status, errors) == (0, '')
    assert 'plain torch' in output.splitlines()[0]
    assert 'note: not built: ' in output
    assert '/dev/null' in output


def test_processes_that_start_together_build_once(home):
    processes = [packages.start(home, '-m', 'borrowed') for _ in range(3)]
    results = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), results
    assert all('compiled for cpu' in output.splitlines()[0] for output, _ in results), results
    assert sum(errors.count('building the compiled library') for _, errors in results) == 1
    assert sum(len(re.findall(r'ddf: built in [0-9.]+ s', errors)) for _, errors in results) == 1
    assert len(list((home / 'cache').glob('*.so'))) == 1


def test_build_in_place_then_stale_then_without_sources(home):
    status, output, errors = run(home, 'build')
    prebuilt = home / 'borrowed' / 'libddf.so'
    assert (status, errors) == (0, '')
    assert output.splitlines()[0].endswith(f'compiled for cpu (default), {prebuilt}')
    assert re.fullmatch(r'built and loaded in [0-9.]+ s', output.splitlines()[-1])

    csrc = home / 'borrowed' / 'csrc'
    with (csrc / 'cpu' / 'kernels.cpp').open('a') as file:
        file.write('// changed\n')
    status, output, errors = run(home, DDF_BUILD='0')
    assert (status, errors) == (0, '')
    assert 'plain torch' in output.splitlines()[0]
    assert f'note: {prebuilt} is passed over: it was built from other sources' in output
    assert 'note: DDF_BUILD=0' in output

    shutil.rmtree(csrc)
    status, output, errors = run(home)
    assert (status, errors) == (0, '')
    assert output.splitlines()[0].endswith(f'compiled for cpu (default), {prebuilt}')
    assert 'sources: not shipped' in output


@pytest.mark.parametrize('gpus', [0, 1])
def test_without_nvcc_the_rest_is_built_and_gpus_are_told_of(tmp_path, gpus):
    folders = os.environ['PATH'].split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if not Path(folder, 'nvcc').exists())
    if shutil.which('c++', path=path) is None:
        pytest.skip('nvcc lies beside the C++ compiler')
    csrc = packages.copy_package(tmp_path / 'borrowed', small=True) / 'csrc'
    (csrc / 'cuda').mkdir()
    (csrc / 'cuda' / 'kernel.cu').write_text('')
    for arguments, said in (('build', 'compiled without CUDA kernels: no nvcc found'), ('', 'no CUDA kernels here, ')):
        code = _GPUS.format(gpus=gpus, arguments=arguments.split())
        unset = dict.fromkeys(('CUDA_HOME', 'CUDA_PATH', 'FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST'), '')
        status, output, errors = packages.run(tmp_path, '-c', code, PATH=path, DDF_BUILD='0', **unset)
        assert (status, errors) == (0, '')
        assert 'compiled for cpu (default)' in output.splitlines()[0]
        notes = [line for line in output.splitlines() if line.startswith('note: ')]
        assert [note.startswith(f'note: {said}') for note in notes] == [True] * gpus
        assert ('cuda:0 NVIDIA T4, compute capability 7.5' in output) == (gpus > 0 and not arguments)


def test_library_without_a_stamp_is_passed_over(tmp_path):
    library = tmp_path / 'library.so'
    notes: list[str] = []
    assert not extension._is_usable(library, 'ab12', notes)
    assert notes == []
    library.write_bytes(b'\x7fELF\0')
    assert not extension._is_usable(library, 'ab12', notes)
    assert 'no build stamp' in notes[0]


def test_library_that_does_not_load_is_reported(tmp_path):
    library = tmp_path / 'library.so'
    library.write_bytes(b'\x7fELF\0ddf-build-stamp:source=ab12;devices=cpu:end\0')
    notes: list[str] = []
    assert extension._is_usable(library, 'ab12', notes)
    assert not extension._load(library, notes)
    assert f'{library} does not load' in notes[0]


def test_check_agrees_and_notices_a_wrong_kernel(monkeypatch, capsys):
    assert command.main(['check']) == 0
    assert 'all agree' in capsys.readouterr().out
    correct = operators.forward
    monkeypatch.setattr(operators, 'forward', lambda *arguments: correct(*arguments) * 1.01)
    monkeypatch.setattr(check, 'CASES', check.CASES[:1])
    assert command.main(['check']) == 1
    assert 'DISAGREES: cpu compiled float32' in capsys.readouterr().err


def test_commands(capsys):
    assert command.main([]) == 0
    assert capsys.readouterr().out.strip() == str(ddf.build_info())
    assert command.main(['buidl']) == 2
    assert 'usage: ' in capsys.readouterr().err


def test_plain_torch_warns_once(tmp_path):
    packages.copy_package(tmp_path / 'borrowed')
    code = (
        'import torch, borrowed; arguments = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3), torch.ones(1, 9, 2, 2); '
        'print([borrowed.ddf(*arguments).sum().item() for _ in range(2)])'
    )
    for environment, warnings in (({'DDF_BUILD': '0'}, 1), ({'DDF_BACKEND': 'reference'}, 0)):
        status, output, errors = packages.run(tmp_path, '-c', code, **environment)
        assert (status, output.strip()) == (0, '[16.0, 16.0]')
        assert errors.count('has no compiled kernel') == warnings
