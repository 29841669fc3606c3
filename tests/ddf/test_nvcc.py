"""Finding the CUDA compiler and choosing architectures; on a toolkit of shell scripts, so that no nvcc is needed."""

import sys
from pathlib import Path

import pytest

from ddf import build, nvcc

from .packages import write_small_sources

_NVCC = """#!/bin/sh
case "$*" in
    *--version*) echo 'Cuda compilation tools, release 13.0, V13.0.88' ;;
    *--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\nsm_120\\n' ;;
    *--dryrun*) echo '#$ TOP={folder}/bin/..' >&2 ;;
    *) echo 'kernel.cu(1): error: planted' >&2; exit 2 ;;
esac
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for variable in ('CUDA_HOME', 'CUDA_PATH', 'FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'DDF_CXXFLAGS'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(nvcc, 'present_architectures', lambda: ())


@pytest.fixture
def folder(tmp_path):
    """A toolkit whose compiler refuses every source."""
    toolkit = tmp_path / 'toolkit'
    for path in ('bin/nvcc', 'include/cuda_runtime.h', 'lib64/libcudart_static.a'):
        (toolkit / path).parent.mkdir(parents=True)
        (toolkit / path).write_text(_NVCC.replace('{folder}', str(toolkit)))
    (toolkit / 'bin' / 'nvcc').chmod(0o755)
    return toolkit


@pytest.fixture
def csrc(tmp_path, monkeypatch):
    """Small sources with one of CUDA."""
    monkeypatch.setattr(build, 'CSRC', write_small_sources(tmp_path / 'csrc'))
    (build.CSRC / 'cuda').mkdir()
    (build.CSRC / 'cuda' / 'kernel.cu').write_text('')
    return build.CSRC


def test_toolkit_is_found_by_variable_and_behind_a_script_on_the_path(folder, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', str(folder))
    named = nvcc.find_toolkit()
    expected = ('7.5', '8.0', '9.0', '10.0', '12.0')
    assert named == nvcc.Toolkit(str(folder / 'bin' / 'nvcc'), folder, '13.0', expected)
    assert named.libraries == folder / 'lib64'
    monkeypatch.delenv('CUDA_HOME')
    script = tmp_path / 'elsewhere' / 'nvcc'
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {folder}/bin/nvcc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv('PATH', str(script.parent), prepend=':')
    assert nvcc.find_toolkit().folder == folder


def test_toolkit_that_is_missing_or_incomplete_is_reported(folder, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', '/nonexistent')
    with pytest.raises(nvcc.ToolkitError, match='correct CUDA_HOME or unset it'):
        nvcc.find_toolkit()
    monkeypatch.setenv('CUDA_HOME', str(folder))
    (folder / 'lib64' / 'libcudart_static.a').unlink()
    with pytest.raises(nvcc.ToolkitError, match=r'lacks cuda_runtime\.h or libcudart_static\.a'):
        nvcc.find_toolkit()
    monkeypatch.delenv('CUDA_HOME')
    monkeypatch.setenv('PATH', '/nonexistent')
    with pytest.raises(nvcc.NoCompilerError, match='no nvcc found'):
        nvcc.find_toolkit()


@pytest.mark.parametrize(
    ('chosen', 'present', 'expected'),
    [
        ('', (), ('7.5', '8.0', '9.0+PTX')),
        ('', ('8.0', '12.0'), ('8.0', '12.0+PTX')),
        ('7.5;8.0+PTX', ('9.0',), ('7.5', '8.0+PTX')),
        ('9.0 Turing', (), ('9.0', '7.5+PTX')),
    ],
)
def test_architectures(monkeypatch, chosen, present, expected):
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', chosen)
    toolkit = nvcc.Toolkit('nvcc', Path('/'), '13.0', ('7.5', '8.0', '9.0', '10.0', '12.0'))
    assert nvcc.architectures(toolkit, present) == expected


@pytest.mark.parametrize('chosen', ['6.0', 'sm_80', '8.0;fast'])
def test_unknown_architecture_is_refused(monkeypatch, chosen):
    monkeypatch.setenv('TORCH_CUDA_ARCH_LIST', chosen)
    with pytest.raises(nvcc.ToolkitError, match=r"expected a list such as '8\.0;9\.0"):
        nvcc.architectures(nvcc.Toolkit('nvcc', Path('/'), '13.0', ('8.0', '9.0')))


def test_flags_of_architectures():
    assert nvcc.architecture_flags(['9.0a', '10.0+PTX']) == [
        '-gencode=arch=compute_90a,code=sm_90a',
        '-gencode=arch=compute_100,code=sm_100',
        '-gencode=arch=compute_100,code=compute_100',
    ]


@pytest.mark.parametrize(
    ('compiled', 'runs', 'does_not'),
    [
        ('7.5,8.0', '7.5 8.0 8.6 8.9', '7.0 9.0 10.0'),
        ('8.6+PTX', '8.6 8.9 9.0 12.1', '7.5 8.0'),
        ('9.0a+PTX', '9.0', '8.9 10.0'),
        ('10.0f', '10.0 10.3', '9.0 12.0'),
        ('', '', '9.0'),
    ],
)
def test_gpus_that_compiled_code_runs_on(compiled, runs, does_not):
    for capabilities, expected in ((runs, True), (does_not, False)):
        assert {nvcc.runs_on(compiled.split(','), capability) for capability in capabilities.split()} <= {expected}


def test_failing_nvcc_leaves_cuda_out_unless_forced(csrc, folder, tmp_path, monkeypatch):
    monkeypatch.setenv('CUDA_HOME', str(folder))
    library = tmp_path / 'library.so'
    assert 'planted' in build.compile_library(library, with_cuda=True)
    assert build.read_stamp(library)['devices'] == 'cpu'
    monkeypatch.setenv('FORCE_CUDA', '0')
    assert build.compile_library(library, with_cuda=True) == ''
    monkeypatch.setenv('FORCE_CUDA', '1')
    with pytest.raises(build.BuildError, match=r'FORCE_CUDA=1, and there is no CUDA: (.|\n)*planted'):
        build.compile_library(library, with_cuda=True)


def test_missing_torch_is_said_before_anything_asks_it_for_gpus(folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv('CUDA_HOME', str(folder))
    monkeypatch.delenv('FORCE_CUDA')
    monkeypatch.setitem(sys.modules, 'torch', None)  # as in an isolated installation
    with pytest.raises(build.BuildError, match='torch cannot be imported'):
        build.compile_library(tmp_path / 'library.so', with_cuda=True)


def test_missing_nvcc_is_told_where_there_is_a_gpu(csrc, tmp_path, monkeypatch):
    def find_toolkit():
        raise nvcc.NoCompilerError('no nvcc found')

    monkeypatch.setattr(nvcc, 'find_toolkit', find_toolkit)
    assert build.compile_library(tmp_path / 'library.so', with_cuda=True) == ''
    monkeypatch.setattr(nvcc, 'present_architectures', lambda: ('9.0',))
    assert build.compile_library(tmp_path / 'library.so', with_cuda=True) == 'no nvcc found'
