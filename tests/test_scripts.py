"""The scripts say what they lack, and leave alone what is not theirs. What they do on a bare machine, .ci/run shows."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / 'scripts'


def start(script: str, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [SCRIPTS / script, *words], cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


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


def test_slurm_script_outside_a_job_says_how_to_submit_it(tmp_path, monkeypatch):
    monkeypatch.delenv('SLURM_JOB_ID', raising=False)
    result = start('slurm_train.sh', tmp_path, '--dataset', 'digits')
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        'error: this is no SLURM job: submit it with sbatch scripts/slurm_train.sh [DATA_DIR] [flags of train.py]'
    ]


@pytest.mark.parametrize('missing', ['NODE_RANK', 'MASTER_ADDR'])
def test_launcher_names_what_several_machines_need(tmp_path, monkeypatch, missing):
    monkeypatch.setenv('PYTHON', 'true')  # neither checks nor trains
    environment = {'NNODES': '2', 'NODE_RANK': '0', 'MASTER_ADDR': 'first'}
    del environment[missing]
    monkeypatch.delenv(missing, raising=False)
    result = start('distributed_train.sh', tmp_path, '1', **environment)
    assert result.returncode == 2
    assert result.stderr.startswith(f'error: with NNODES above 1, set {missing}')
