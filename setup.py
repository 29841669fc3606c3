"""Compiles the operation's library into the package where torch and a C++ compiler are at hand.

`pip install .`, `pip install -e .` and `python setup.py build_ext --inplace` come here. Without torch (as in an
isolated build) or a compiler the installation goes on: the library is then built when `ddf` is first imported. The CUDA
kernels are compiled where nvcc is found; FORCE_CUDA=1 makes it an error not to, FORCE_CUDA=0 leaves them out.
Everything else is in pyproject.toml.
"""

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def _load_by_path(folder: Path, name: str) -> ModuleType:
    """Imports one module of the package without the package's own start, which needs torch."""
    package = ModuleType('ddf_sources')
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    return importlib.import_module(f'{package.__name__}.{name}')


library = _load_by_path(Path(__file__).resolve().parent / 'ddf', 'build')


class BuildLibrary(build_ext):
    """Leaves the compilation to `ddf/build.py`."""

    def build_extension(self, ext: Extension) -> None:
        try:
            reason = library.compile_library(Path(self.get_ext_fullpath(ext.name)).absolute(), with_cuda=True)
            if reason:
                print(f'ddf: compiled without CUDA kernels: {reason}', file=sys.stderr)
        except library.BuildError as error:
            if library.nvcc.is_forced():
                raise SystemExit(f'ddf: library not compiled: {error}') from error
            print(f'ddf: library not compiled, it will be when ddf is first imported: {error}', file=sys.stderr)

    def get_ext_filename(self, fullname: str) -> str:
        """No tag of a Python version: the library is no Python module."""
        return os.path.join(*fullname.split('.')[:-1], library.PREBUILT.name)


class AnyPythonWheel(bdist_wheel):
    """Tags the wheel for any Python, and for any platform where it holds no compiled library."""

    def get_tag(self) -> tuple[str, str, str]:
        compiled = any(Path(path).exists() for path in self.get_finalized_command('build_ext').get_outputs())
        return 'py3', 'none', super().get_tag()[2] if compiled else 'any'


setup(
    ext_modules=[Extension(f'ddf.{library.PREBUILT.stem}', sources=[], optional=True)],
    cmdclass={'build_ext': BuildLibrary, 'bdist_wheel': AnyPythonWheel},
)
