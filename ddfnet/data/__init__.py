"""Data sets, sample order by key, and loaders."""

from ddfnet.data.datasets import StreamSettings, class_names, open_dataset
from ddfnet.data.loaders import TrainLoader, create_validation_loader, stop_workers

__all__ = [
    'StreamSettings',
    'TrainLoader',
    'class_names',
    'create_validation_loader',
    'open_dataset',
    'stop_workers',
]
