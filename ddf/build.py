"""Compiles `csrc/` into one shared library with one compiler command, and reads the stamp that such a library carries.

The module stands alone, so that `setup.py` can load it by path without importing the package. The library holds no
Python symbols and uses torch's stable ABI only: one binary serves every Python and every torch from 2.11 on.
"""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

CSRC = Path(__file__).resolve().parent / 'csrc'
PREBUILT = CSRC.parent / 'libddf.so'
FLAGS = (
    '-O3',
    '-std=c++20',
    '-fPIC',
    '-shared',
    '-fvisibility=hidden',
    '-fopenmp-simd',
    '-DTORCH_TARGET_VERSION=0x020b000000000000',  # the stable ABI of torch 2.11
)
DEVICES = ('cpu',)

_SOURCE_SUFFIXES = {'.cpp', '.h', '.cu', '.cuh'}
_STAMP = re.compile(rb'ddf-build-stamp:([^\0]*?):end\0')
_TIMEOUT_S = 900


class BuildError(RuntimeError):
    """The library could not be compiled; the message says why and how to mend it."""


def sources() -> list[Path]:
    """Every file the library is compiled from, sorted; empty where the sources were not shipped."""
    return sorted(path for path in CSRC.rglob('*') if path.suffix in _SOURCE_SUFFIXES)


def source_hash() -> str:
    """SHA-256 over the names and contents of `sources()`, in hexadecimal; '' where there are none."""
    paths = sources()
    digest = hashlib.sha256()
    for path in paths:
        content = path.read_bytes()
        digest.update(f'{path.relative_to(CSRC).as_posix()}\0{len(content)}\0'.encode() + content)
    return digest.hexdigest() if paths else ''


def read_stamp(library: Path) -> dict[str, str]:
    """The build stamp in the bytes of a library, which is not loaded: source (hash), torch, compiler, devices.

    Empty where the file carries no stamp. Raises OSError where it cannot be read.
    """
    match = _STAMP.search(library.read_bytes())
    if match is None:
        return {}
    fields = (field.partition('=') for field in match[1].decode(errors='replace').split(';'))
    return {key: value for key, _, value in fields}


def compile_library(target: Path) -> None:
    """Compiles `csrc/` for the installed torch and puts the library at `target` in one atomic step.

    Raises:
        BuildError: Sources, torch or a compiler are missing, the compiler failed, or `target` cannot be written.
    """
    if not sources():
        raise BuildError(f'no sources in {CSRC}')
    if sys.platform == 'win32':
        raise BuildError('building on Windows is not supported; plain torch serves there')
    compiler = find_compiler()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.ddf-build-', dir=target.parent) as folder:
            built = Path(folder, target.name)
            _run(_command(compiler, built))
            os.replace(built, target)
    except OSError as error:
        raise BuildError(f'cannot write {target}: {error}') from error


def find_compiler() -> list[str]:
    """The C++ compiler as the start of a command line: $CXX, which may hold arguments, else the first one found.

    Raises BuildError where there is none.
    """
    chosen = shlex.split(os.environ.get('CXX', ''))
    if chosen and shutil.which(chosen[0]) is None:
        raise BuildError(f'the compiler named by CXX={os.environ["CXX"]} was not found; unset CXX or correct it')
    found = chosen or [path for path in map(shutil.which, ('c++', 'g++', 'clang++')) if path][:1]
    if not found:
        raise BuildError('no C++ compiler found (c++, g++, clang++); install one, for example g++, or set CXX')
    return found


def _command(compiler: list[str], output: Path) -> list[str]:
    try:
        import torch
    except ImportError as error:
        raise BuildError(f'torch cannot be imported in this environment ({error})') from error
    root = Path(torch.__file__).parent
    stamp = _format_stamp(
        {
            'source': source_hash(),
            'torch': torch.__version__,
            'compiler': _first_line([*compiler, '--version']),
            'devices': ','.join(DEVICES),
        }
    )
    return [
        *compiler,
        *FLAGS,
        f'-DDDF_BUILD_STAMP="{stamp}"',
        *('-isystem', str(root / 'include')),
        *(path.relative_to(CSRC).as_posix() for path in sources() if path.suffix == '.cpp'),
        *('-o', str(output)),
        f'-L{root / "lib"}',
        *('-ltorch_cpu', '-lc10'),
    ]


def _format_stamp(fields: Mapping[str, str]) -> str:
    """The stamp as it stands in the binary; values lose what would end a field or the C string they are passed in."""
    body = ';'.join(f'{key}={re.sub(r"[^A-Za-z0-9_.,+() -]", "_", value)}' for key, value in fields.items())
    return f'ddf-build-stamp:{body}:end'


def _first_line(command: list[str]) -> str:
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return 'unknown'
    return (output.splitlines() or ['unknown'])[0]


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, cwd=CSRC, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f'the compiler could not be run: {error}') from error
    if result.returncode != 0:
        tail = '\n'.join(result.stderr.splitlines()[-20:])
        raise BuildError(f'{command[0]} failed with status {result.returncode}:\n{tail}')
