"""Runs of several processes that are stopped, killed, queued again and spread over hosts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN
from tests.ddfnet.test_distributed import ENVIRONMENT, ROOT, last_line, run, torchrun

SCRIPT = ROOT / 'scripts' / 'distributed_train.sh'
LONG_RUN = [
    *TINY_RUN, '--epochs', '4', '-b', '8', '--log-interval', '1', '--drop-path', '0.2', '--model-ema',
    '--model-ema-decay', '0.9',
]  # fmt: skip


def launch(log: Path, *words: object, **environment: str) -> subprocess.Popen:
    with open(log, 'w') as file:
        command = [str(word) for word in words]
        return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | environment, stdout=file, stderr=file)


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None
        time.sleep(0.01)


def saves(path: Path, text: str) -> Callable[[], bool]:
    return lambda: path.is_file() and text in path.read_text()


def assert_same_weights(folder: Path, other: Path) -> None:
    """Of the models, and of their averages where there are any."""
    state, expected = (torch.load(path / 'last.pth.tar', weights_only=True) for path in (folder, other))
    keys = [key for key in ('state_dict', 'state_dict_ema') if key in expected]
    for key in keys:
        assert state[key].keys() == expected[key].keys()
        assert all(torch.equal(state[key][name], expected[key][name]) for name in expected[key])
    if len(keys) == 2:
        assert any(not torch.equal(state['state_dict'][name], state['state_dict_ema'][name]) for name in state[keys[0]])


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp('two')
    result = run(SCRIPT, 2, *LONG_RUN, '--output', folder, '--experiment', 'whole')
    assert result.returncode == 0, result.stderr
    return folder / 'whole'


def rank_process(launcher: subprocess.Popen, rank: int) -> int:
    """The process id of a rank that torchrun started."""
    for folder in Path('/proc').glob('[0-9]*'):
        try:
            words = (folder / 'environ').read_text().split('\0')
            parent = int((folder / 'stat').read_text().rsplit(')', 1)[1].split()[1])
        except (OSError, ValueError):
            continue
        if parent == launcher.pid and f'RANK={rank}' in words:
            return int(folder.name)
    raise AssertionError(f'no rank {rank}')


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='finds processes in /proc')
def test_two_processes_stop_at_one_step_and_go_on_exactly(tmp_path, undisturbed):
    """The signal goes to the launcher, whose processes and their workers all get it."""
    flags = [*LONG_RUN, '-j', '1', '--output', tmp_path, '--experiment', 'cut']
    process = launch(tmp_path / 'log', SCRIPT, 2, *flags)
    wait_for(saves(tmp_path / 'log', 'epoch   1/4 [   2/6]'), process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    log = (tmp_path / 'log').read_text()
    stopped = json.loads((tmp_path / 'cut' / 'stopped.json').read_text())
    assert stopped['signal'] == signal.SIGTERM, log
    assert log.count('stopped by SIGTERM') == 1
    result = run(SCRIPT, 2, *flags, '--resume', 'auto')
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / 'cut' / 'stopped.json').exists()
    assert_same_weights(tmp_path / 'cut', undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='finds processes in /proc')
def test_killed_rank_is_started_again(tmp_path, undisturbed):
    flags = [*LONG_RUN, '--output', tmp_path, '--experiment', 'cut', '--resume', 'auto', '--checkpoint-interval', '4']
    process = launch(tmp_path / 'log', SCRIPT, 2, *flags, TORCHRUN_ARGS='--max-restarts=2')
    wait_for(saves(tmp_path / 'log', 'epoch   1/4 [   3/6]'), process)
    os.kill(rank_process(process, 1), signal.SIGKILL)
    assert process.wait(timeout=200) == 0, (tmp_path / 'log').read_text()
    assert 'going on from' in (tmp_path / 'log').read_text()
    assert_same_weights(tmp_path / 'cut', undisturbed)


@pytest.mark.slow
def test_three_processes_go_on_exactly(tmp_path):
    flags = [*TINY_RUN, '--epochs', '2', '-b', '8', '--output', tmp_path]
    assert run(SCRIPT, 3, *flags, '--experiment', 'whole').returncode == 0
    process = launch(tmp_path / 'log', SCRIPT, 3, *flags, '--experiment', 'cut', '--log-interval', '1')
    wait_for(saves(tmp_path / 'log', 'epoch   0/2 [   2/4]'), process)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=120)
    assert run(SCRIPT, 3, *flags, '--experiment', 'cut', '--resume', 'auto').returncode == 0
    assert_same_weights(tmp_path / 'cut', tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('count', [2, 51])
def test_validation_counts_every_image_once(tmp_path, count):
    """Also where a process has no image of its own."""
    train = [sys.executable, 'train.py', *TINY_RUN, '--epochs', '1', '--warmup-epochs', '0', '--output', tmp_path]
    assert run(*train, '--experiment', 'a').returncode == 0
    flags = ['--checkpoint', tmp_path / 'a' / 'last.pth.tar', '--num-samples', count, '-b', '8', '-j', '0']
    flags += ['--device', 'cpu']
    alone = json.loads(last_line(run(sys.executable, 'validate.py', *flags)))
    assert alone['count'] == count
    for processes in (3, 4):
        sharded = json.loads(last_line(torchrun(processes, 'validate.py', *flags)))
        assert {key: sharded[key] for key in ('count', 'top1', 'top5')} == {
            key: alone[key] for key in ('count', 'top1', 'top5')
        }
        assert sharded['loss'] == pytest.approx(alone['loss'], abs=1e-5)


def stand_in(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\n{text}')
    path.chmod(0o755)


@pytest.fixture
def slurm(tmp_path) -> dict[str, str]:
    """A cluster of two nodes on this machine, of scripts that note what they were asked."""
    folder = tmp_path / 'slurm'
    folder.mkdir()
    stand_in(
        folder,
        'srun',
        """while [[ $1 != bash ]]; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & pids+=($!); done
echo "${pids[@]}" > "${0%/*}/tasks"
trap 'kill -KILL "${pids[@]}"' TERM
status=0
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2> /dev/null; do wait "$pid" || status=$?; done
done
exit "$status"
""",
    )
    stand_in(folder, 'scancel', """[[ $* == '--signal=TERM 4711' ]] && kill -TERM $(< "${0%/*}/tasks")\n""")
    state = folder / 'state'
    state.write_text('RUNNING')
    stand_in(
        folder,
        'scontrol',
        f"""echo "$@" >> '{folder}/asked'
if [[ $1 == show && $2 == hostnames ]]; then printf '127.0.0.1\\n127.0.0.2\\n'; fi
if [[ $1 == show && $2 == job ]]; then echo "   JobState=$(< '{state}') Reason=None"; fi
""",
    )
    return {
        'PATH': f'{folder}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '4711', 'SLURM_NNODES': '2',
        'SLURM_JOB_NODELIST': 'node[1-2]', 'SLURM_SUBMIT_DIR': str(ROOT), 'PROCESSES_PER_NODE': '1',
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize('state', ['RUNNING', 'CANCELLED'])
def test_slurm_job_is_queued_again(tmp_path, slurm, state):
    """The time limit's signal reaches the batch script alone; what was cancelled stays so."""
    script = tmp_path / 'spooled.sh'
    shutil.copy(ROOT / 'scripts' / 'slurm_train.sh', script)
    flags = [*LONG_RUN, '--output', tmp_path]
    process = launch(tmp_path / 'log', script, *flags, **slurm)
    wait_for(saves(tmp_path / 'log', 'epoch   1/4 [   2/6]'), process)
    (tmp_path / 'slurm' / 'state').write_text(state)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=120) != 0
    log = (tmp_path / 'log').read_text()
    assert (tmp_path / 'slurm-4711' / 'stopped.json').is_file(), log
    asked = (tmp_path / 'slurm' / 'asked').read_text()
    assert ('requeue 4711' in asked) == (state == 'RUNNING')
    if state == 'RUNNING':
        result = launch(tmp_path / 'log2', script, *flags, **slurm)
        assert result.wait(timeout=200) == 0, (tmp_path / 'log2').read_text()
        assert 'going on from' in (tmp_path / 'log2').read_text()
        assert torch.load(tmp_path / 'slurm-4711' / 'last.pth.tar', weights_only=True)['epoch'] == 3


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable, 10.99.0.1 and 10.99.0.2."""
    if shutil.which('ip') is None:
        pytest.skip('TWO HOSTS WERE NOT TRIED: there is no ip command (iproute2) here')
    names = [f'ddf{os.getpid()}a', f'ddf{os.getpid()}b']
    cable = [f'v{os.getpid()}a', f'v{os.getpid()}b']
    commands = [f'ip link add {cable[0]} type veth peer name {cable[1]}']
    for number, (name, end) in enumerate(zip(names, cable), start=1):
        inside = f'ip -n {name}'
        commands += [
            f'ip netns add {name}', f'ip link set {end} netns {name}', f'{inside} link set lo up',
            f'{inside} addr add 10.99.0.{number}/24 dev {end}', f'{inside} link set {end} up',
        ]  # fmt: skip
    try:
        for command in commands:
            result = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            if result.returncode:
                pytest.skip(f'TWO HOSTS WERE NOT TRIED: network namespaces are not permitted here: {result.stderr}')
        yield names
    finally:
        for name in names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True, check=False)


@pytest.mark.slow
def test_two_hosts(tmp_path, hosts, undisturbed):
    flags = [*LONG_RUN, '--output', tmp_path, '--experiment', 'hosts']
    launches = [
        launch(
            tmp_path / f'log{rank}', 'ip', 'netns', 'exec', host, SCRIPT, 1, *flags,
            NNODES='2', NODE_RANK=str(rank), MASTER_ADDR='10.99.0.1', MASTER_PORT='29512',
            GLOO_SOCKET_IFNAME=f'v{os.getpid()}{"ab"[rank]}',
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip
    statuses = [launched.wait(timeout=200) for launched in launches]
    assert statuses == [0, 0], (tmp_path / 'log0').read_text() + (tmp_path / 'log1').read_text()
    assert_same_weights(tmp_path / 'hosts', undisturbed)


def test_synchronized_batch_norm_needs_an_accelerator():
    flags = ['--dataset', 'digits', *TINY_MODEL, '--device', 'cpu', '--sync-bn']
    result = run(SCRIPT, 2, *flags)
    assert result.returncode == 2
    assert '--sync-bn works on accelerators only' in result.stderr
