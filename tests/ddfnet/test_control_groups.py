"""Limits and counters of control groups, in trees of files as Linux writes them."""

from pathlib import Path

import pytest

from ddfnet import control_groups
from ddfnet.control_groups import memory_headroom, memory_kills

UNIFIED = '41 31 0:38 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate'
LEGACY = '35 31 0:32 {root} {point} rw,relatime - cgroup cgroup rw,memory'
OTHER = '32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu'


@pytest.fixture
def system(tmp_path, monkeypatch):
    """Writes files under a folder and has /proc say that control groups are mounted there."""
    monkeypatch.setattr(control_groups, '_PROC', tmp_path / 'proc')

    def write(group: str, mounts: str, files: dict[str, str], root: str = '/') -> None:
        point = tmp_path / 'sys'
        proc = {'self/cgroup': group, 'self/mountinfo': f'{OTHER}\n{mounts.format(root=root, point=point)}\n'}
        for name, text in {**{f'proc/{key}': text for key, text in proc.items()}, **files}.items():
            path: Path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return write


def test_nothing_is_known_without_control_groups(system):
    assert (memory_headroom(), memory_kills()) == (None, None)
    system('0::/\n', UNIFIED, {})
    assert (memory_headroom(), memory_kills()) == (None, None)
    system('0::/\n', UNIFIED, {'proc/vmstat': 'nr_free_pages 7\noom_kill 4\n'})
    assert (memory_headroom(), memory_kills()) == (None, 4)


def test_the_nearest_limit_counts(system):
    """The group itself, which is counted first; its parent, with less left; the folder that is mounted."""
    files = {
        'sys/memory.max': '9000\n',
        'sys/memory.current': '1000\n',
        'sys/user.slice/memory.max': '5000\n',
        'sys/user.slice/memory.current': '4500\n',
        'sys/user.slice/memory.stat': 'anon 4000\ninactive_file 200\n',
        'sys/user.slice/job/memory.max': 'max\n',
        'sys/user.slice/job/memory.current': '100\n',
        'sys/user.slice/job/memory.events': 'oom 3\noom_kill 2\noom_group_kill 0\n',
        'proc/vmstat': 'oom_kill 4\n',
    }
    system('1:name=systemd:/other\n0::/user.slice/job\n', UNIFIED, files)
    assert (memory_headroom(), memory_kills()) == (700, 2)


@pytest.mark.parametrize(('path', 'root'), [('/docker/7/job', '/docker/7'), ('/job', '/')])
def test_version_1(system, path, root):
    files = {
        'sys/job/memory.limit_in_bytes': '5000\n',
        'sys/job/memory.usage_in_bytes': '4500\n',
        'sys/job/memory.stat': 'inactive_file 1\ntotal_inactive_file 200\n',
        'sys/job/memory.oom_control': 'oom_kill_disable 0\nunder_oom 0\noom_kill 2\n',
        'sys/memory.limit_in_bytes': f'{2**63 - 4096}\n',
        'sys/memory.usage_in_bytes': '4500\n',
    }
    system(f'9:cpu:/else\n4:memory:{path}\n0::/\n', LEGACY, files, root)
    assert (memory_headroom(), memory_kills()) == (700, 2)


@pytest.mark.parametrize('path', ['/docker/7', '/../7'])
def test_a_group_that_cannot_be_seen_is_the_one_mounted(system, path):
    files = {'sys/memory.max': '5000\n', 'sys/memory.current': '4500\n'}
    system(f'0::{path}\n', UNIFIED, files, root='/' if '..' in path else '/elsewhere')
    assert memory_headroom() == 500
