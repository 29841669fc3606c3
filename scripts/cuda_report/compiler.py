"""What nvcc makes of the kernels: registers, spills and accesses of 16 bytes, for every instance and architecture.

Reads the messages of `nvcc -Xptxas -v` and the machine code that cuobjdump prints. cuobjdump comes with the toolkit,
and inside triton, which comes with torch's CUDA builds.
"""

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ddf import build, nvcc

ARCHITECTURES = ('7.5', '8.0', '9.0', '10.0+PTX')
FLAGS = (*nvcc.FLAGS, '-Werror', 'all-warnings', '-Xptxas', '-v')

_KERNEL = re.compile(r'_ZN3ddf4cuda\d+([a-z_]+)I(f|d|6__half|13__nv_bfloat16)((?:L[ib]\d+E)*)E')
_TYPES = {'f': 'float32', 'd': 'float64', '6__half': 'float16', '13__nv_bfloat16': 'bfloat16'}
_PROPERTIES = re.compile(r'(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads')
_INFORMATION = re.compile(
    r'ptxas info +: (?:\d+ bytes gmem.*|Compiling entry function .*|Function properties for .*|Used \d+ registers.*|'
    r'Compile time = .*)|' + ' *' + _PROPERTIES.pattern
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instance of a kernel's template: its name, the dtype, and the further arguments in order."""

    name: str
    dtype: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f'{self.name}<{", ".join(map(str, (self.dtype, *self.numbers)))}>'


@dataclasses.dataclass
class Resources:
    """What one kernel takes on one architecture, of a thread: registers; bytes of stack and of spills.

    `vector_loads` and `vector_stores` count instructions that access 16 bytes of global memory, `loads` and `stores`
    all that access it; `instructions` is the length of the code. `threads` and `blocks` are what the kernel's launch
    bounds state: the most threads of a block, and the blocks that a multiprocessor is to hold; 0 for functions that are
    no kernels, and where the architecture is compiled without PTX, which holds the bounds.
    """

    registers: int = 0
    stack: int = 0
    spills: int = 0
    loads: int = 0
    vector_loads: int = 0
    stores: int = 0
    vector_stores: int = 0
    instructions: int = 0
    threads: int = 0
    blocks: int = 0


class ReportError(RuntimeError):
    """The report cannot be made here; the message says why and how to mend it."""


def parse_kernel(mangled: str) -> Kernel | None:
    """The kernel of a symbol; None for another symbol."""
    match = _KERNEL.match(mangled)
    if match is None:
        return None
    return Kernel(match[1], _TYPES[match[2]], tuple(map(int, re.findall(r'\d+', match[3]))))


def parse_messages(text: str) -> dict[str, Resources]:
    """Registers, stack and spills of each function that ptxas speaks of, by symbol.

    Raises ReportError for a message that is no plain information, such as a warning.
    """
    found: dict[str, Resources] = {}
    entry = function = ''
    for line in filter(str.strip, text.splitlines()):
        if not _INFORMATION.fullmatch(line):
            raise ReportError(f'the compiler warns: {line}')
        if match := re.search(r"Compiling entry function '(.+?)'", line):
            entry = match[1]
        elif match := re.search(r'Function properties for (\S+)', line):
            function = match[1]
        elif match := _PROPERTIES.search(line):
            kernel = found.setdefault(function, Resources())
            kernel.stack, kernel.spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := re.search(r'Used (\d+) registers', line):
            found.setdefault(entry, Resources()).registers = int(match[1])
    return found


def count_accesses(text: str, found: Mapping[str, Resources]) -> None:
    """Adds to `found` the counts of instructions in the output of `cuobjdump -sass`."""
    kernel = Resources()
    for line in text.splitlines():
        if match := re.search(r'Function : (\S+)', line):
            kernel = found.get(match[1], Resources())
        elif match := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)', line):
            name, *parts = match[1].split('.')
            vector = '128' in parts
            kernel.instructions += 1
            kernel.loads += name == 'LDG'
            kernel.vector_loads += name == 'LDG' and vector
            kernel.stores += name == 'STG'
            kernel.vector_stores += name == 'STG' and vector


def read_bounds(text: str, found: Mapping[str, Resources]) -> None:
    """Adds to `found` the launch bounds in the output of `cuobjdump -ptx`."""
    kernel = Resources()
    for line in text.splitlines():
        if match := re.search(r'\.entry (\w+)', line):
            kernel = found.get(match[1], Resources())
        elif match := re.match(r'\.maxntid (\d+)(?:, (\d+), (\d+))?', line):
            kernel.threads = math.prod(int(size or 1) for size in match.groups())
        elif match := re.match(r'\.minnctapersm (\d+)', line):
            kernel.blocks = int(match[1])


def find_cuobjdump(toolkit: nvcc.Toolkit) -> str:
    """Raises ReportError where there is none."""
    folders = [str(toolkit.folder / 'bin'), str(Path(toolkit.nvcc).parent)]
    triton = importlib.util.find_spec('triton')
    if triton is not None and triton.origin:
        folders.append(str(Path(triton.origin).parent / 'backends' / 'nvidia' / 'bin'))
    for path in (None, *folders):
        if found := shutil.which('cuobjdump', path=path):
            return found
    raise ReportError(
        "no cuobjdump found; install NVIDIA's CUDA toolkit, or torch's build for CUDA, which brings triton"
    )


def measure(toolkit: nvcc.Toolkit, cache: Path) -> dict[str, dict[Kernel, Resources]]:
    """Compiles every source for every one of ARCHITECTURES and returns what was made, by architecture.

    Compilations are kept in `cache`. Raises ReportError, also for the compiler's warnings.
    """
    dump = find_cuobjdump(toolkit)
    tasks = list(itertools.product(sorted((build.CSRC / 'cuda').glob('*.cu')), ARCHITECTURES))
    tasks.sort(key=lambda task: 'gather' not in task[0].name)  # what takes longest first
    cache.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda task: _measure_one(toolkit, dump, task[0], task[1], cache), tasks))
    found: dict[str, dict[Kernel, Resources]] = {architecture: {} for architecture in ARCHITECTURES}
    for (_, architecture), part in zip(tasks, compiled):
        for symbol, resources in part.items():
            if kernel := parse_kernel(symbol):
                found[architecture][kernel] = resources
    return found


def state_of(source: Path, architecture: str, release: str) -> str:
    """A hash over what a compilation depends on."""
    kept = [field.name for field in dataclasses.fields(Resources)]
    digest = hashlib.sha256(repr((source.name, architecture, FLAGS, release, kept)).encode())
    headers = sorted((*build.CSRC.glob('cuda/*.h'), *build.CSRC.glob('cuda/*.cuh')))
    for path in (source, build.CSRC / 'call.h', *headers):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _measure_one(
    toolkit: nvcc.Toolkit, dump: str, source: Path, architecture: str, cache: Path
) -> dict[str, Resources]:
    kept = cache / f'{source.stem}-{architecture}-{state_of(source, architecture, toolkit.release)}.json'
    if not kept.is_file():
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            compiled = Path(folder, 'object.o')
            flags = nvcc.architecture_flags([architecture])
            messages = _run([toolkit.nvcc, *FLAGS, *flags, '-c', str(source), '-o', str(compiled)])[1]
            found = read_object(messages, compiled, dump)
            written = Path(folder, 'found.json')
            written.write_text(json.dumps({name: dataclasses.asdict(value) for name, value in found.items()}))
            os.replace(written, kept)
    return {name: Resources(**value) for name, value in json.loads(kept.read_text()).items()}


def read_object(messages: str, compiled: Path, dump: str) -> dict[str, Resources]:
    """What the compiler said of an object file, and what lies in it."""
    found = parse_messages(messages)
    count_accesses(_run([dump, '-sass', str(compiled)])[0], found)
    read_bounds(_run([dump, '-ptx', str(compiled)])[0], found)
    return found


def _run(command: list[str]) -> tuple[str, str]:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise ReportError(f'{command[0]} failed with status {result.returncode}:\n{result.stderr[:2000]}')
    return result.stdout, result.stderr
