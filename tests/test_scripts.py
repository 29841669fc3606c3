"""The set-up scripts leave alone what is not theirs. What they do on a bare machine, a run of .ci/run shows."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / 'scripts'


def start(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPTS / script], cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize('relative', [True, False])
def test_folder_that_is_no_environment_is_kept(tmp_path, relative):
    kept = tmp_path / 'precious' / 'file'
    kept.parent.mkdir()
    kept.touch()
    result = start('test.sh', tmp_path, DDFNET_VENV='precious' if relative else str(kept.parent))
    assert result.returncode == 2
    assert result.stderr.strip() == (
        f'error: {kept.parent} exists and is no Python environment: name another in DDFNET_VENV'
    )
    assert kept.exists()


def test_missing_python_is_named(tmp_path):
    result = start('quickstart.sh', tmp_path, DDFNET_VENV='new', PYTHON='/nonexistent/python')
    assert result.returncode == 2
    assert 'error: /nonexistent/python is not Python 3.10 or later' in result.stderr
    assert not (tmp_path / 'new').exists()
