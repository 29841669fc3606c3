"""Compiles the operation's library into the package where torch and a C++ compiler are at hand.

`pip install .`, `pip install -e .` and `python setup.py build_ext --inplace` come here. Without torch (as in an
isolated build) or a compiler the installation goes on: the library is then built when `ddf` is first imported.
Everything else is in pyproject.toml.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext


def _load_by_path(path: Path) -> ModuleType:
    """Imports one file of the package without the package, which needs torch."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


library = _load_by_path(Path(__file__).resolve().parent / 'ddf' / 'build.py')


class BuildLibrary(build_ext):
    """Leaves the compilation to `ddf/build.py`."""

    def build_extension(self, ext: Extension) -> None:
        try:
            library.compile_library(Path(self.get_ext_fullpath(ext.name)).absolute())
        except library.BuildError as error:
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
