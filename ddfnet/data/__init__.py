"""Data sets, sample order by key, and loaders."""

from ddfnet.data.datasets import StreamSettings, class_names, is_streamed, open_dataset
from ddfnet.data.loaders import TrainLoader, create_validation_loader, stop_workers

__all__ = [
    'StreamSettings',
    'TrainLoader',
    'class_names',
    'create_validation_loader',
    'is_streamed',
    'open_dataset',
    'stop_workers',
]
