"""scripts/check_torch_versions.sh, on environments that are this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'scripts' / 'check_torch_versions.sh'


def run(environments, *arguments, **variables):
    variables = {'PYTHON': sys.executable, 'DDFNET_TORCH_ENVIRONMENTS': str(environments), **variables}
    return subprocess.run(
        [SCRIPT, *arguments], env=os.environ | variables, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize(('arguments', 'message'), [([], 'usage: '), (['--test', '2.11.0'], 'usage: ')])
def test_usage(tmp_path, arguments, message):
    result = run(tmp_path, *arguments)
    assert (result.returncode, result.stdout) == (2, '')
    assert result.stderr.startswith(message)


def test_interpreter_without_torch_is_named(tmp_path):
    result = run(tmp_path, '2.11.0', PYTHON='/nonexistent/python')
    assert result.returncode == 2
    assert result.stderr.startswith('error: /nonexistent/python cannot import torch')


@pytest.mark.slow
def test_the_library_must_be_loaded_and_agree(tmp_path):
    for name, setting in (('right', ''), ('wrong', 'DDF_BACKEND=reference ')):
        python = tmp_path / name / 'bin' / 'python'
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\n{setting}exec {sys.executable} "$@"\n')
        python.chmod(0o755)
    result = run(tmp_path, 'right', 'wrong')
    assert result.returncode == 1, result.stderr
    assert result.stdout.count('all agree') == 2
    assert 'the library was not loaded' in result.stderr
    assert result.stderr.splitlines()[-1] == 'failed: wrong'
