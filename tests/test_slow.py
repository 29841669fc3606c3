"""What takes minutes: the digits recipe from the README, and installation."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ddf

ROOT = Path(__file__).parents[1]


def run(*words: object, cwd: Path = ROOT) -> str:
    command = [str(word) for word in words]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=1200, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_digits_recipe_learns(tmp_path):
    run(sys.executable, 'train.py', '-c', 'configs/digits.yaml', '--output', tmp_path, '--experiment', 'digits')
    checkpoint = tmp_path / 'digits' / 'last.pth.tar'
    result = json.loads(run(sys.executable, 'validate.py', '--checkpoint', checkpoint, '-j', '0').splitlines()[-1])
    assert result['count'] == 899
    assert result['top1'] >= 97.5


@pytest.mark.slow
def test_wheel_of_an_isolated_build_carries_the_sources(tmp_path):
    ignored = shutil.ignore_patterns('.*', 'output', 'build', '*.so', '*.egg-info', '__pycache__')
    shutil.copytree(ROOT, tmp_path / 'source', ignore=ignored)
    run(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '-w', tmp_path, '.', cwd=tmp_path / 'source')
    (wheel,) = tmp_path.glob('*.whl')
    assert wheel.name.endswith('py3-none-any.whl')  # without torch in the build there is nothing compiled in it
    shutil.unpack_archive(wheel, tmp_path / 'installed', 'zip')
    names = zipfile.ZipFile(wheel).namelist()
    assert {'ddf/csrc/library.cpp', 'ddf/csrc/cpu/kernels.cpp', 'ddfnet/training/command.py'} <= set(names)
    assert not [name for name in names if name.startswith('tests/')]
    report = run(sys.executable, '-m', 'ddf', cwd=tmp_path / 'installed')
    assert report.startswith(f'ddf {ddf.__version__}: compiled for cpu')
