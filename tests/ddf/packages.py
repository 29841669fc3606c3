"""Copies of the package in other folders, with its own or with small C++ sources, and processes that use them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import ddf

PACKAGE = Path(ddf.__file__).parent

# compiled in a second: the stamp, and per instruction set what the compiler was told
_LIBRARY = """
#define EXPORTED extern "C" __attribute__((used, visibility("default")))
EXPORTED const char ddf_build_stamp[] = DDF_BUILD_STAMP;
EXPORTED const char* ddf_cpu_capability() { return "default"; }
EXPORTED int features_library() {
  int features = 0;
#if __has_include(<torch/csrc/stable/library.h>)
  features += 1;
#endif
#ifdef DDF_HAS_X86_KERNELS
  features += 2;
#endif
  return features;
}
"""
_KERNELS = """
#define PASTE(name, suffix) name##_##suffix
#define NAMED(name, suffix) PASTE(name, suffix)
extern "C" __attribute__((visibility("default"))) int NAMED(features, DDF_CPU_CAPABILITY)() {
  int features = 0;
#if __has_include(<torch/csrc/stable/library.h>)
  features += 1;
#endif
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
  features += 2;
#endif
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  features += 4;
#endif
  return features;
}
"""


def write_small_sources(csrc: Path) -> Path:
    """C++ sources laid out as the package's are, which compile in no time and register no operator."""
    (csrc / 'cpu').mkdir(parents=True)
    (csrc / 'library.cpp').write_text(_LIBRARY)
    (csrc / 'cpu' / 'kernels.cpp').write_text(_KERNELS)
    return csrc


def copy_package(target: Path, small: bool = False) -> Path:
    """`cp -r ddf target`, without a compiled library; with small C++ sources where asked for."""
    ignored = shutil.ignore_patterns('*.so', '__pycache__', *(['csrc'] if small else []))
    shutil.copytree(PACKAGE, target, ignore=ignored)
    if small:
        write_small_sources(target / 'csrc')
    return target


def start(folder: Path, *arguments: object, **environment: str) -> subprocess.Popen:
    """`python ARGUMENTS` in a folder, with a cache of its own, and of DDF_* only what is given."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith('DDF_')}
    variables |= {'DDF_CACHE_DIR': str(folder / 'cache'), 'PYTHONDONTWRITEBYTECODE': '1', **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(folder: Path, *arguments: object, timeout: float = 1200, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `start`."""
    process = start(folder, *arguments, **environment)
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output, errors
