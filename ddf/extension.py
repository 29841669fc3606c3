"""Finds, builds and loads the compiled library behind `torch.ops.ddf.*`; `python -m ddf` reports what was done.

Tried in this order: the library next to the package, if it was built from the sources that lie there; one built
earlier into the cache; building one into the cache now, once, in a few seconds; plain torch (`ddf.reference`), which
needs nothing. What stands in the way of a library is noted, never raised. Of several copies of the package in one
process only the first loads a library (`ddf.namespace`).

Environment: DDF_BACKEND=reference uses plain torch; DDF_BUILD=0 forbids building at first use; DDF_CACHE_DIR is the
cache's folder (default: `$XDG_CACHE_HOME/ddf`, else `~/.cache/ddf`); CXX is the compiler; DDF_CXXFLAGS holds further
flags for it, and libraries built with others are passed over. DDF_CPU_CAPABILITY=default or avx2 has the library use
less than the processor offers.
"""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import build, namespace
from ._version import __version__

_LOCK_TIMEOUT_S = 600


@dataclass(frozen=True)
class BuildInfo:
    """What serves `torch.ops.ddf.*` in this process.

    Attributes:
        version: Version of the package.
        path: The loaded library, None where plain torch serves.
        devices: Device types that the loaded library has kernels for, such as ('cpu',).
        source_hash: SHA-256 of the C++ sources next to the package, '' where they were not shipped.
        stamp: What the loaded library says of itself: pairs of a name (as in `build.read_stamp`) and a value.
        torch_version: The running torch.
        notes: Why a library was passed over or not built, and how to mend it.
        cpu_capability: The instruction set of the CPU kernels chosen for this processor ('default', 'avx2' or
            'avx512'), '' where plain torch serves or the library does not say.
        served_by: The other copy of the package whose operators these are, '' where they are this one's.
    """

    version: str
    path: Path | None
    devices: tuple[str, ...]
    source_hash: str
    stamp: tuple[tuple[str, str], ...]
    torch_version: str
    notes: tuple[str, ...]
    cpu_capability: str = ''
    served_by: str = ''

    def __str__(self) -> str:
        """Several lines; the first says in short what is loaded."""
        if self.path is None:
            lines = [f'ddf {self.version}: plain torch on every device, no compiled library']
        else:
            capability = f' ({self.cpu_capability})' if self.cpu_capability else ''
            lines = [f'ddf {self.version}: compiled for {", ".join(self.devices)}{capability}, {self.path}']
        if self.served_by:
            lines.append(f'served by: {self.served_by}')
        lines.append(f'torch: {self.torch_version}')
        lines.append(f'sources: {self.source_hash[:16] or "not shipped"}')
        if self.stamp:
            stamp = {**dict(self.stamp), 'source': dict(self.stamp)['source'][:16]}
            lines.append('library: ' + ', '.join(f'{key} {value}' for key, value in stamp.items()))
        lines += [f'note: {note}' for note in self.notes]
        return '\n'.join(lines)


@functools.cache
def load() -> BuildInfo:
    """Loads the compiled library once per process; the schemas of `torch.ops.ddf` must exist. Never raises."""
    owner = namespace.owner()
    if owner is not None and (owner.folder != namespace.FOLDER or owner.build_info is not None):
        return _served_by(owner)
    notes: list[str] = []
    library, source_hash = None, ''
    try:
        source_hash = build.source_hash()
        library = _load_first(source_hash, notes)
    except Exception as error:  # an import must not fail for want of an optional library
        notes.append(f'{type(error).__name__}: {error}')
    return _info(library, source_hash, notes)


def build_info() -> BuildInfo:
    """What `load` found, without doing anything again."""
    return load()


def reference_is_wanted() -> bool:
    """Whether the user asked for plain torch."""
    return os.environ.get('DDF_BACKEND') == 'reference'


def build_in_place() -> BuildInfo:
    """Compiles the library next to the package and loads it; for a process that has not loaded one.

    Raises:
        build.BuildError: The message is complete for a user.
    """
    notes: list[str] = []
    if reason := build.compile_library(build.PREBUILT, with_cuda=True):
        notes.append(f'compiled without CUDA kernels: {reason}')
    info = load()
    if info.served_by:
        note = f'{build.PREBUILT} was built; it is loaded where this copy of the package is imported first'
        return dataclasses.replace(info, notes=(*info.notes, note))
    if not _load(build.PREBUILT, notes):
        raise build.BuildError(f'the library was built, but {notes[-1]}')
    return _info(build.PREBUILT, build.source_hash(), notes)


def _info(library: Path | None, source_hash: str, notes: list[str]) -> BuildInfo:
    """What this copy loaded, also told to the copies that come later."""
    stamp = build.read_stamp(library) if library else {}
    info = BuildInfo(
        version=__version__,
        path=library,
        devices=tuple(stamp['devices'].split(',')) if stamp else (),
        source_hash=source_hash,
        stamp=tuple(stamp.items()),
        torch_version=torch.__version__,
        notes=tuple(notes),
        cpu_capability=_cpu_capability(library) if library else '',
    )
    if owner := namespace.owner():
        owner.build_info = info
    return info


def _served_by(owner: namespace.Owner) -> BuildInfo:
    """What the copy that came first loaded, as seen from this one."""
    if owner.folder == namespace.FOLDER:  # the same files under another name, or imported again
        return owner.build_info
    notes = []
    source_hash = build.source_hash()
    loaded = owner.build_info or BuildInfo(__version__, None, (), source_hash, (), torch.__version__, ())
    if source_hash and loaded.source_hash and source_hash != loaded.source_hash:
        notes.append(f'the C++ sources here ({source_hash[:16]}) are not those that serve ({loaded.source_hash[:16]})')
    own = {
        'source_hash': source_hash,
        'notes': (*loaded.notes, *notes),
        'served_by': f'{owner.package}, {owner.folder}',
    }
    return BuildInfo(**{**vars(loaded), **own})


def _cpu_capability(library: Path) -> str:
    try:
        function = ctypes.CDLL(str(library)).ddf_cpu_capability
    except (OSError, AttributeError):
        return ''
    function.restype = ctypes.c_char_p
    return function().decode()


def _load_first(source_hash: str, notes: list[str]) -> Path | None:
    """The first library that loads, built if need be; what is in the way is added to `notes`."""
    if reference_is_wanted():
        notes.append('DDF_BACKEND=reference: the compiled library is not used')
        return None
    if backend := os.environ.get('DDF_BACKEND'):
        notes.append(f"DDF_BACKEND={backend} is ignored: the only value known is 'reference'")
    if _is_build_command():
        return None
    if _is_usable(build.PREBUILT, source_hash, notes) and _load(build.PREBUILT, notes):
        return build.PREBUILT
    if not source_hash:
        notes.append(f'nothing to build from: the sources are not in {build.CSRC}')
        return None
    cached = _cache_folder() / f'libddf-{_cache_key(source_hash)}.so'
    available = _is_usable(cached, source_hash, notes) or _build_at_first_use(cached, source_hash, notes)
    return cached if available and _load(cached, notes) else None


def _is_build_command() -> bool:
    """Whether this import is the start of `python -m ddf build`, which compiles and loads by itself."""
    return sys.argv[:2] == ['-m', 'build'] and __package__ in sys.orig_argv


def _is_usable(library: Path, source_hash: str, notes: list[str]) -> bool:
    """Whether a library is there and was built from the present sources, judged before it is loaded."""
    if not library.is_file():
        return False
    stamp = build.read_stamp(library)
    if not {'source', 'devices'} <= stamp.keys():
        fault = 'it carries no build stamp'
    elif source_hash and stamp['source'] != source_hash:
        fault = f'it was built from other sources ({stamp["source"][:16]}) than those at hand ({source_hash[:16]})'
    elif (flags := build.stamp_value(shlex.join(build.extra_flags()))) and stamp.get('flags', '') != flags:
        fault = f'it was not built with DDF_CXXFLAGS={flags}'
    else:
        return True
    notes.append(f'{library} is passed over: {fault}; `python -m {__package__} build` rebuilds it')
    return False


def _load(library: Path, notes: list[str]) -> bool:
    try:
        torch.ops.load_library(str(library))
    except (OSError, RuntimeError) as error:
        notes.append(f'{library} does not load: {error}; `python -m {__package__} build` builds one that fits')
        return False
    return True


def _cache_folder() -> Path:
    if folder := os.environ.get('DDF_CACHE_DIR'):
        return Path(folder).absolute()
    base = os.environ.get('XDG_CACHE_HOME')
    return (Path(base) if base else Path.home() / '.cache') / 'ddf'


def _cache_key(source_hash: str) -> str:
    machine = (platform.system(), platform.machine(), *platform.libc_ver())
    parts = (source_hash, torch.__version__, *machine, build.settings())
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _build_at_first_use(target: Path, source_hash: str, notes: list[str]) -> bool:
    """Builds into the cache. Of many processes the first builds while the others wait for its result."""
    if os.environ.get('DDF_BUILD') == '0':
        notes.append(f'DDF_BUILD=0: not built at first use; `python -m {__package__} build` builds it')
        return False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix('.lock')):
            if _is_usable(target, source_hash, []):
                return True
            build.find_compiler()
            print(
                f'ddf: building the compiled library (once, in a minute or less): {target}', file=sys.stderr, flush=True
            )
            start = time.monotonic()
            build.compile_library(target)
            print(f'ddf: built in {time.monotonic() - start:.1f} s', file=sys.stderr, flush=True)
    except (OSError, build.BuildError) as error:
        notes.append(f'not built: {error}')
        notes.append('the next import tries again; DDF_BUILD=0 forbids it')
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on a file.

    Where locks do not work, or another process holds this one for too long, it goes on without: the library is put in
    place atomically, so the cost is only a second compilation.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    with path.open('w') as file:
        while time.monotonic() < deadline:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
        yield
