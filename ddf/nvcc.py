"""Finds the CUDA compiler, and says how it compiles for which architectures.

Like `ddf.build`, whose part for CUDA it is, it needs torch only to ask which GPUs are present.

Environment: CUDA_HOME or CUDA_PATH is the toolkit's folder, else that of nvcc on PATH; TORCH_CUDA_ARCH_LIST names the
architectures as for torch's own extensions, such as '7.5;8.0+PTX'; FORCE_CUDA=1 makes it an error not to compile for
CUDA, FORCE_CUDA=0 skips it.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FLAGS = ('-O3', '-std=c++20', '-Xcompiler=-fPIC,-fvisibility=hidden')
# Every GPU from Turing on: 8.6 and 8.9 run what 8.0 does, and the PTX of the last one serves those after it. Each costs
# more than a minute of processor time.
DEFAULT_ARCHITECTURES = ('7.5', '8.0', '9.0')
_NAMED = {  # as torch does
    'Turing': '7.5+PTX',
    'Ampere': '8.0;8.6+PTX',
    'Ada': '8.9+PTX',
    'Hopper': '9.0+PTX',
    'Blackwell': '10.0;10.3;12.0;12.1+PTX',
}
_ARCHITECTURE = re.compile(r'(\d+)\.(\d)([af]?)(\+PTX)?')
_TIMEOUT_S = 60


class Toolkit(NamedTuple):
    """A CUDA toolkit.

    Attributes:
        nvcc: Its compiler.
        folder: Where `include` and `lib` or `lib64` lie.
        release: The compiler's, such as '13.0'.
        supported: The architectures it compiles for, such as '9.0'.
    """

    nvcc: str
    folder: Path
    release: str
    supported: tuple[str, ...]

    @property
    def libraries(self) -> Path | None:
        """The folder of the static runtime, None where the toolkit came without it."""
        folders = (*(self.folder / name for name in ('lib64', 'lib')), *self.folder.glob('targets/*/lib'))
        return next((folder for folder in folders if (folder / 'libcudart_static.a').is_file()), None)


class ToolkitError(RuntimeError):
    """CUDA code cannot be compiled here; the message says why and how to mend it."""


class NoCompilerError(ToolkitError):
    """There is no nvcc at all."""


def is_forced() -> bool:
    """Whether a library without CUDA kernels is an error."""
    return os.environ.get('FORCE_CUDA', '') not in ('', '0')


def is_skipped() -> bool:
    """Whether CUDA is left out on request."""
    return os.environ.get('FORCE_CUDA') == '0'


def find_toolkit() -> Toolkit:
    """The toolkit of CUDA_HOME or CUDA_PATH, else that of nvcc on PATH.

    Raises ToolkitError where there is none, or none that is complete.
    """
    nvcc = _find_nvcc()
    toolkit = Toolkit(nvcc, _folder_of(nvcc), _release(nvcc), _supported(nvcc))
    if not toolkit.supported:
        raise ToolkitError(f'{nvcc} does not say which architectures it compiles for (nvcc --list-gpu-code)')
    if toolkit.libraries is None or not (toolkit.folder / 'include' / 'cuda_runtime.h').is_file():
        raise ToolkitError(
            f'the CUDA toolkit in {toolkit.folder} lacks cuda_runtime.h or libcudart_static.a; install its runtime '
            'package for developers, or name another toolkit in CUDA_HOME'
        )
    return toolkit


def architectures(toolkit: Toolkit, present: Sequence[str] = ()) -> tuple[str, ...]:
    """What to compile for, in torch's syntax: TORCH_CUDA_ARCH_LIST, else `present`, the GPUs', else the default list.

    Of the two latter the last one is compiled as PTX too. Raises ToolkitError for what is no architecture, or none that
    the toolkit knows.
    """
    chosen = os.environ.get('TORCH_CUDA_ARCH_LIST', '')
    for name, value in _NAMED.items():
        chosen = re.sub(rf'\b{name}\b', value, chosen)
    words = [word for word in re.split(r'[;, ]+', chosen) if word]
    if not words:
        words = [word for word in present or DEFAULT_ARCHITECTURES if word in toolkit.supported]
        words = words or [toolkit.supported[-1]]
        return (*words[:-1], f'{words[-1]}+PTX')
    for word in words:
        match = _ARCHITECTURE.fullmatch(word)
        if match is None or f'{match[1]}.{match[2]}' not in toolkit.supported:
            raise ToolkitError(
                f'TORCH_CUDA_ARCH_LIST={os.environ["TORCH_CUDA_ARCH_LIST"]} holds {word}: expected a list such as '
                f"'8.0;9.0+PTX' of what nvcc {toolkit.release} knows: {', '.join(toolkit.supported)}"
            )
    return tuple(dict.fromkeys(words))


def architecture_flags(chosen: Sequence[str]) -> list[str]:
    """nvcc's flags for architectures in torch's syntax."""
    flags = []
    for word in chosen:
        number = word.removesuffix('+PTX').replace('.', '')
        flags.append(f'-gencode=arch=compute_{number},code=sm_{number}')
        if word.endswith('+PTX'):
            flags.append(f'-gencode=arch=compute_{number},code=compute_{number}')
    return flags


def runs_on(compiled: Sequence[str], capability: str) -> bool:
    """Whether code compiled for architectures, in torch's syntax, runs on a GPU of a capability such as '8.6'.

    Machine code runs on its major version from its minor one on, PTX on everything later; what is for '9.0a', or a
    family ('10.0f'), goes no further than that.
    """
    major, minor = map(int, capability.split('.'))
    for match in filter(None, map(_ARCHITECTURE.fullmatch, compiled)):
        least, (suffix, ptx) = (int(match[1]), int(match[2])), match.groups()[2:]
        if least == (major, minor) or (suffix != 'a' and least[0] == major and least[1] <= minor):
            return True
        if ptx and not suffix and least <= (major, minor):
            return True
    return False


def present_architectures() -> tuple[str, ...]:
    """Those of the GPUs that torch sees here, sorted."""
    import torch

    if not torch.cuda.is_available():
        return ()
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return tuple(f'{major}.{minor}' for major, minor in sorted(found))


def _find_nvcc() -> str:
    for variable in ('CUDA_HOME', 'CUDA_PATH'):
        if folder := os.environ.get(variable):
            nvcc = Path(folder, 'bin', 'nvcc')
            if not nvcc.is_file():
                raise ToolkitError(f'no nvcc in {nvcc.parent}; correct {variable} or unset it')
            return str(nvcc)
    if found := shutil.which('nvcc'):
        return found
    raise NoCompilerError("no nvcc found; install NVIDIA's CUDA toolkit, and put nvcc on PATH or set CUDA_HOME")


def _folder_of(nvcc: str) -> Path:
    """What nvcc itself says, since the one on PATH may be a script that calls it; else the folder above its own."""
    match = re.search(r'^#\$ TOP=(.+)$', _output([nvcc, '--dryrun', '-x', 'cu', '-E', os.devnull]), re.MULTILINE)
    return Path(match[1]).resolve() if match else Path(nvcc).resolve().parent.parent


def _release(nvcc: str) -> str:
    match = re.search(r'release (\d+\.\d+)', _output([nvcc, '--version']))
    return match[1] if match else 'unknown'


def _supported(nvcc: str) -> tuple[str, ...]:
    numbers = sorted(map(int, re.findall(r'\bsm_(\d+)\b', _output([nvcc, '--list-gpu-code']))))
    return tuple(f'{number // 10}.{number % 10}' for number in numbers)


def _output(command: list[str]) -> str:
    """What a command prints, on either stream; '' where it cannot be run."""
    try:
        result = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ''
    return result.stdout + result.stderr
