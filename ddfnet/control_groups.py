"""What Linux keeps of the memory of the control groups (versions 1 and 2) that this process is in."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PROC = Path('/proc')


@dataclass(frozen=True)
class _Files:
    """Names of a version's files; reclaimable is the line of memory.stat for files that are cached and not in use."""

    limit: str
    usage: str
    kills: str
    reclaimable: str


_FILES = {
    'cgroup2': _Files('memory.max', 'memory.current', 'memory.events', 'inactive_file'),
    'cgroup': _Files('memory.limit_in_bytes', 'memory.usage_in_bytes', 'memory.oom_control', 'total_inactive_file'),
}


def memory_headroom() -> int | None:
    """Bytes up to the nearest limit of this process's group and those around it, such as a container's; None without
    one. Files that are cached and not in use count as free."""
    found = []
    for folder, files in _groups():
        with contextlib.suppress(OSError, ValueError):  # the word 'max' is no limit
            headroom = int((folder / files.limit).read_text()) - int((folder / files.usage).read_text())
            found.append(headroom + (_counter(folder / 'memory.stat', files.reclaimable) or 0))
    return min(found, default=None)


def memory_kills() -> int | None:
    """Processes that the system has killed for want of memory: in this process's group, or on the whole machine where
    groups do not say; None where neither does."""
    counters = [_counter(folder / files.kills, 'oom_kill') for folder, files in _groups()]
    counters.append(_counter(_PROC / 'vmstat', 'oom_kill'))
    return next((counter for counter in counters if counter is not None), None)


def _groups() -> Iterator[tuple[Path, _Files]]:
    """Folders of this process's group and those around it, as far as they can be seen from here, the nearest first."""
    paths = {}
    for line in _lines(_PROC / 'self/cgroup'):
        _, controllers, path = line.split(':', 2)
        kind = 'cgroup2' if not controllers else 'cgroup' if 'memory' in controllers.split(',') else ''
        paths[kind] = PurePosixPath(path)
    for line in _lines(_PROC / 'self/mountinfo'):
        mount, _, system = line.partition(' - ')
        root, point = mount.split()[3:5]
        kind, *_, options = system.split()
        if kind in _FILES and kind in paths and (kind == 'cgroup2' or 'memory' in options.split(',')):
            seen = paths[kind].is_relative_to(root) and '..' not in paths[kind].parts
            parts = paths[kind].relative_to(root).parts if seen else ()
            for depth in range(len(parts), -1, -1):
                yield Path(point, *parts[:depth]), _FILES[kind]


def _counter(path: Path, name: str) -> int | None:
    """The number in the line `name number`."""
    found = (line.split() for line in _lines(path))
    return next((int(words[1]) for words in found if words[:1] == [name]), None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
