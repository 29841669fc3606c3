"""Decoupled Dynamic Filters: the operation, its modules and the library behind them. Needs torch alone."""

from . import export, operators  # operators defines the schemas that the compiled library implements
from ._version import __version__
from .extension import build_info, load
from .filter_norm import FilterNorm
from .functional import ddf
from .modules import DDFPack, DDFUpPack

load()

__all__ = ['DDFPack', 'DDFUpPack', 'FilterNorm', '__version__', 'build_info', 'ddf', 'export', 'operators']
