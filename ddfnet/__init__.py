"""DDF models and the toolkit around them. Importing it registers the models with timm."""

from ddf import __version__

from . import models

__all__ = ['__version__', 'models']
