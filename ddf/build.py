"""Compiles `csrc/` into one shared library, and reads the stamp that such a library carries.

With `ddf.nvcc` the module stands alone, so that `setup.py` can load it without importing the package. The library
holds no Python symbols and uses torch's stable ABI only: one binary serves every Python and every torch from 2.11 on.

What is compiled is said by the folder (`objects`): `csrc/*.cpp` once; `csrc/cpu/*.cpp`, which see nothing of torch,
once per instruction set of CPU_CAPABILITIES; with CUDA, `csrc/cuda/*.cpp` and, by nvcc and without torch,
`csrc/cuda/*.cu`. A file added there needs no change here.

Environment: CXX is the compiler, DDF_CXXFLAGS holds further flags of its compilations and of linking; those of CUDA are
in `ddf.nvcc`.
"""

import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import nvcc

CSRC = Path(__file__).resolve().parent / 'csrc'
PREBUILT = CSRC.parent / 'libddf.so'
FLAGS = (
    '-O3',
    '-std=c++20',
    '-fPIC',
    '-fvisibility=hidden',
    '-fopenmp-simd',
    '-DTORCH_TARGET_VERSION=0x020b000000000000',  # the stable ABI of torch 2.11
)
# the static runtime keeps its symbols to itself: the process may hold torch's own runtime
CUDA_LINK_FLAGS = ('-lcudart_static', '-lrt', '-lpthread', '-ldl', '-Wl,--exclude-libs,ALL')
LINK_FLAGS = ('-shared', *(('-undefined', 'dynamic_lookup') if sys.platform == 'darwin' else ()))
# the first is compiled for every processor, the others where the compiler makes x86-64 code
CPU_CAPABILITIES: Mapping[str, tuple[str, ...]] = {
    'default': (),
    'avx2': ('-mavx2', '-mfma', '-mf16c'),
    'avx512': (
        *('-mavx512f', '-mavx512bw', '-mavx512dq', '-mavx512vl'),
        *('-mavx2', '-mfma', '-mf16c', '-mprefer-vector-width=512'),
    ),
}

_SOURCE_SUFFIXES = {'.cpp', '.h', '.cu', '.cuh'}
_STAMP = re.compile(rb'ddf-build-stamp:([^\0]*?):end\0')
_TIMEOUT_S = 900
_SHOWN_LINES = 20  # of a compiler's messages


class BuildError(RuntimeError):
    """The library could not be compiled; the message says why and how to mend it."""


class Object(NamedTuple):
    """One compilation: a source below `csrc/` with its own flags, those of all objects aside."""

    source: str
    name: str
    flags: tuple[str, ...]


class Cuda(NamedTuple):
    """What CUDA code is compiled with, and for which architectures (in torch's syntax)."""

    toolkit: nvcc.Toolkit
    architectures: tuple[str, ...]

    @property
    def stamp(self) -> dict[str, str]:
        return {'nvcc': self.toolkit.release, 'architectures': ','.join(self.architectures)}

    @property
    def link_flags(self) -> list[str]:
        return [f'-L{self.toolkit.libraries}', *CUDA_LINK_FLAGS]


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


def extra_flags() -> list[str]:
    """The user's own, from DDF_CXXFLAGS. Raises BuildError where its quotes are not closed."""
    return _words('DDF_CXXFLAGS')


def settings() -> str:
    """Everything but sources, compiler and torch that the library depends on, as text to be hashed."""
    return repr((FLAGS, LINK_FLAGS, sorted(CPU_CAPABILITIES.items()), extra_flags()))


def objects(capabilities: Sequence[str], cuda: bool = False) -> list[Object]:
    """What to compile for the instruction sets named, in the order of linking: what takes longest first."""
    kernels = sorted(CSRC.glob('cuda/*.cu')) if cuda else []
    found = [Object(f'cuda/{path.name}', f'cuda-{path.stem}-kernels', ()) for path in kernels]
    if cuda:
        found += [Object(f'cuda/{path.name}', f'cuda-{path.stem}', ()) for path in sorted(CSRC.glob('cuda/*.cpp'))]
    has_x86 = ('-DDDF_HAS_X86_KERNELS',) if 'avx2' in capabilities else ()
    found += [Object(path.name, path.stem, has_x86) for path in sorted(CSRC.glob('*.cpp'))]
    # of an inline function that several objects hold the linker keeps the first, which must run on every processor
    for capability in capabilities:
        flags = (f'-DDDF_CPU_CAPABILITY={capability}', *CPU_CAPABILITIES[capability])
        kernels = sorted(CSRC.glob('cpu/*.cpp'))
        found += [Object(f'cpu/{path.name}', f'cpu-{path.stem}-{capability}', flags) for path in kernels]
    return found


def read_stamp(library: Path) -> dict[str, str]:
    """The build stamp in the bytes of a library, which is not loaded: source (hash), torch, compiler, devices,
    capabilities; nvcc (release) and architectures with CUDA, and flags where DDF_CXXFLAGS held some.

    Empty where the file carries no stamp. Raises OSError where it cannot be read.
    """
    match = _STAMP.search(library.read_bytes())
    if match is None:
        return {}
    fields = (field.partition('=') for field in match[1].decode(errors='replace').split(';'))
    return {key: value for key, _, value in fields}


def compile_library(target: Path, with_cuda: bool = False) -> str:
    """Compiles `csrc/` for the installed torch and puts the library at `target` in one atomic step.

    `with_cuda`: with the CUDA kernels too, where nvcc is found and compiles them. Returns why it holds none; '' where
    it holds them, or nothing here asks for them.

    Raises:
        BuildError: Sources, torch or a compiler are missing, the compiler failed, or `target` cannot be written; with
            FORCE_CUDA=1, also what otherwise only leaves CUDA out.
    """
    _find_torch()
    reason = ''
    if with_cuda and not nvcc.is_skipped():
        try:
            _compile(target, find_cuda())
            return ''
        except (BuildError, nvcc.ToolkitError) as error:
            if nvcc.is_forced():
                raise BuildError(f'FORCE_CUDA={os.environ["FORCE_CUDA"]}, and there is no CUDA: {error}') from error
            unasked = isinstance(error, nvcc.NoCompilerError) and not nvcc.present_architectures()
            reason = '' if unasked else str(error)
    _compile(target, None)
    return reason


def find_cuda() -> Cuda:
    """The toolkit, and the architectures asked for, else those of the GPUs here, else the default ones.

    Raises nvcc.ToolkitError, also where the sources hold no CUDA kernels.
    """
    if not any(CSRC.glob('cuda/*.cu')):
        raise nvcc.NoCompilerError(f'no CUDA sources in {CSRC / "cuda"}')
    toolkit = nvcc.find_toolkit()
    return Cuda(toolkit, nvcc.architectures(toolkit, nvcc.present_architectures()))


def _compile(target: Path, cuda: Cuda | None) -> None:
    if not sources():
        raise BuildError(f'no sources in {CSRC}')
    if sys.platform == 'win32':
        raise BuildError('building on Windows is not supported; plain torch serves there')
    compiler = find_compiler()
    torch_folder, torch_version = _find_torch()
    capabilities = list(CPU_CAPABILITIES)[: None if _makes_x86_64(compiler) else 1]
    stamp = {
        'source': source_hash(),
        'torch': torch_version,
        'compiler': _first_line([*compiler, '--version']) or 'unknown',
        'devices': 'cpu,cuda' if cuda else 'cpu',
        'capabilities': ','.join(capabilities),
        **(cuda.stamp if cuda else {}),
    }
    if extra_flags():
        stamp['flags'] = stamp_value(shlex.join(extra_flags()))
    with_torch = (f'-DDDF_BUILD_STAMP="{_format_stamp(stamp)}"', '-isystem', str(torch_folder / 'include'))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.ddf-build-', dir=target.parent) as folder:
            built = Path(folder, target.name)
            chosen = objects(capabilities, cuda is not None)
            compiled = compile_objects(compiler, chosen, with_torch, Path(folder), cuda)
            libraries = [f'-L{torch_folder / "lib"}', '-ltorch_cpu', '-lc10', *(cuda.link_flags if cuda else ())]
            _run([*compiler, *LINK_FLAGS, *extra_flags(), *compiled, '-o', str(built), *libraries], 'linking')
            os.replace(built, target)
    except OSError as error:
        raise BuildError(f'cannot write {target}: {error}') from error


def compile_objects(
    compiler: list[str], chosen: list[Object], with_torch: Sequence[str], folder: Path, cuda: Cuda | None = None
) -> list[str]:
    """Compiles objects into a folder, as many at once as there are processors, and returns their paths.

    `with_torch`: the flags of `*.cpp` outside of `csrc/cpu`. Raises BuildError.
    """
    paths = [str(folder / f'{name}.o') for _, name, _ in chosen]
    commands = [
        [*_command_start(compiler, item, with_torch, cuda), '-c', item.source, '-o', path]
        for item, path in zip(chosen, paths)
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, commands, (f'compiling {name}' for _, name, _ in chosen)))
    return paths


def _command_start(compiler: list[str], item: Object, with_torch: Sequence[str], cuda: Cuda | None) -> list[str]:
    if cuda is not None and item.source.endswith('.cu'):
        return [cuda.toolkit.nvcc, *nvcc.FLAGS, *nvcc.architecture_flags(cuda.architectures), *item.flags]
    outside = () if item.source.startswith('cpu/') else with_torch
    return [*compiler, *FLAGS, *item.flags, *outside, *extra_flags()]


def find_compiler() -> list[str]:
    """The C++ compiler as the start of a command line: $CXX, which may hold arguments, else the first one found.

    Raises BuildError where there is none.
    """
    chosen = _words('CXX')
    if chosen and shutil.which(chosen[0]) is None:
        raise BuildError(f'the compiler named by CXX={os.environ["CXX"]} was not found; unset CXX or correct it')
    found = chosen or [path for path in map(shutil.which, ('c++', 'g++', 'clang++')) if path][:1]
    if not found:
        raise BuildError('no C++ compiler found (c++, g++, clang++); install one, for example g++, or set CXX')
    return found


def _words(variable: str) -> list[str]:
    text = os.environ.get(variable, '')
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f'{variable}={text} cannot be split into words: {error}') from error


def stamp_value(text: str) -> str:
    """`text` as a stamp holds it: without what would end a field or the C string that it is passed in."""
    return re.sub(r'[^A-Za-z0-9_.,=+/() -]', '_', text)


def _format_stamp(fields: Mapping[str, str]) -> str:
    return f'ddf-build-stamp:{";".join(f"{key}={stamp_value(value)}" for key, value in fields.items())}:end'


def _find_torch() -> tuple[Path, str]:
    try:
        import torch
    except ImportError as error:
        raise BuildError(f'torch cannot be imported in this environment ({error})') from error
    return Path(torch.__file__).parent, torch.__version__


def _makes_x86_64(compiler: list[str]) -> bool:
    """Asks the compiler, since it need not make code for the machine it runs on; the machine where it does not say."""
    target = _first_line([*compiler, '-dumpmachine']) or platform.machine()
    return target.partition('-')[0].lower() in ('x86_64', 'amd64')


def _first_line(command: list[str]) -> str:
    """Of what a command prints; '' where it cannot be run."""
    try:
        output = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return ''
    return (output.splitlines() or [''])[0]


def _run(command: list[str], purpose: str) -> None:
    try:
        result = subprocess.run(
            command, cwd=CSRC, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f'{purpose}: the compiler could not be run: {error}') from error
    if result.returncode != 0:
        lines = result.stderr.splitlines()
        named = next((number for number, line in enumerate(lines) if 'error' in line.lower()), 0)
        first = min(named, max(0, len(lines) - _SHOWN_LINES))  # a linker's reasons stand above its 'error'
        shown = '\n'.join(lines[first : first + _SHOWN_LINES])
        raise BuildError(f'{purpose}: {command[0]} failed with status {result.returncode}:\n{shown}')
