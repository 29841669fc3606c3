"""Data sets, sample order by key, and loaders."""

from .datasets import class_names, open_dataset
from .loaders import TrainLoader, create_validation_loader, stop_workers

__all__ = ['TrainLoader', 'class_names', 'create_validation_loader', 'open_dataset', 'stop_workers']
