"""Loaders over timm's: training ones whose order and augmentation come from keys, and exact validation ones."""

import atexit
import logging
import os
import signal
import sys
import time
import weakref
from collections.abc import Generator
from itertools import islice
from typing import Any

from PIL import Image
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_loader
from torch import Tensor

from ddfnet.config import AugmentationConfig, BatchConfig, DataConfig, DataSource, LossConfig
from ddfnet.data.augmentation import augmentation_settings, mixup_settings
from ddfnet.data.datasets import is_streamed
from ddfnet.data.keyed import KeyedDataset, KeyedErasing, KeyedSampler
from ddfnet.data.streams import KeyedStream, WholeStream, check_shards
from ddfnet.data.unreadable import ExactDataset, LenientDataset
from ddfnet.distributed import Processes
from ddfnet.errors import UserError

_GRACE_SECONDS = 60  # schedulers and launchers give a run about half of that
_open_loaders: weakref.WeakSet[Any] = weakref.WeakSet()
_logger = logging.getLogger('ddfnet')


class TrainLoader:
    """Batches of an epoch, on the device and normalised: images (B, C, H, W), targets (B,), or (B, classes) if mixed.

    With augmentation splits, (splits * B, ...), the first B without automatic augmentation.

    Args:
        dataset: Of (image, label), map-style or streamed.
        input_settings: input_size, mean, std, as timm's resolve_data_config gives them.
        num_classes: Classes of soft targets, where mixup or cutmix is on.

    Raises:
        UserError: Fewer images than one optimiser step needs, or an augmentation policy that timm does not know.
    """

    def __init__(
        self,
        dataset: Any,
        data: DataConfig,
        batch: BatchConfig,
        augmentation: AugmentationConfig,
        loss: LossConfig,
        input_settings: dict[str, Any],
        num_classes: int,
        seed: int,
        processes: Processes,
    ) -> None:
        group = samples_per_step(batch, processes.world_size, len(dataset))
        self.samples_per_step = group
        self.mixes = augmentation.mixes
        self.mixup_off_epoch = augmentation.mixup_off_epoch
        mixing = mixup_settings(augmentation, loss, num_classes) if self.mixes else None
        prefetch = not data.no_prefetcher
        self.mixup = Mixup(**mixing) if mixing and not prefetch else None
        loader_settings = _loader_settings(data, processes)
        if mixing and prefetch:
            loader_settings['collate_fn'] = FastCollateMixup(**mixing)
        self.streamed = is_streamed(dataset)
        # workers that outlive an epoch would not hear that mixing has ended, nor of a stream's new seeds
        loader_settings['persistent_workers'] = not self.streamed and not (self.mixes and self.mixup_off_epoch)
        self.dataset = _keyed(dataset, data, augmentation.aug_splits, seed, processes)
        self.loader = _create_training_loader(
            self.dataset, batch.batch_size, augmentation, input_settings, loader_settings
        )
        self._samples_per_batch = batch.batch_size * processes.world_size
        length = len(self.loader) * self._samples_per_batch if self.streamed else len(dataset)
        self.updates_per_epoch = length // group
        self.sampler = KeyedSampler(length, group, seed, processes.rank, processes.world_size, augmentation.aug_repeats)
        if not self.streamed:
            (self.loader.loader if prefetch else self.loader).batch_sampler.sampler = self.sampler
        self.skip_seconds = 0.0  # that the last epoch took to come to where it goes on
        self.erasing: KeyedErasing | None = None
        if prefetch and self.loader.random_erasing is not None:
            self.erasing = self.loader.random_erasing = KeyedErasing(
                self.loader.random_erasing, self.sampler, augmentation.aug_splits
            )
        if data.use_multi_epochs_loader and processes.is_primary:
            _logger.info('--use-multi-epochs-loader has no effect: loader processes outlive an epoch anyway')

    def __len__(self) -> int:
        return len(self.loader)

    def updates_left(self, position: int) -> int:
        """Optimiser steps that an epoch has left after `position` samples over all processes."""
        return self.sampler.steps(position)

    def epoch(self, epoch: int, position: int = 0) -> Generator[tuple[Tensor, Tensor], None, None]:
        """The batches of an epoch from a position on, the same ones whenever and wherever it is asked for.

        A stream is read and left from its start up to there. Close it where it is left early: that ends its worker
        processes.
        """
        self.sampler.set_epoch(epoch, 0 if self.streamed else position)
        if self.streamed:
            self.dataset.set_epoch(epoch)
        if self.erasing is not None:
            self.erasing.start_epoch()
        if self.mixes and self.mixup_off_epoch and epoch >= self.mixup_off_epoch:
            (self.mixup or self.loader).mixup_enabled = False
        batches, start = iter(self.loader), time.perf_counter()
        skipped = position // self._samples_per_batch if self.streamed else 0
        for _ in islice(batches, skipped):
            pass
        self.skip_seconds = time.perf_counter() - start if skipped else 0.0
        yield from batches

    def count_replaced(self, processes: Processes) -> int:
        """Images since the last call that could not be read and were replaced, over all processes, named in the log."""
        return 0 if self.streamed else self.dataset.tally.take(processes, 'replaced by others')


def samples_per_step(batch: BatchConfig, world_size: int, available: int) -> int:
    """Images of one optimiser step over all processes.

    Raises:
        UserError: The training set has fewer.
    """
    samples = batch.batch_size * batch.grad_accum_steps * world_size
    if available < samples:
        raise UserError(
            f'one optimiser step takes {samples} images (batch-size {batch.batch_size} x grad-accum-steps '
            f'{batch.grad_accum_steps} x {world_size} processes), but the training set has {available}: give a smaller '
            '--batch-size'
        )
    return samples


def _keyed(dataset: Any, data: DataConfig, aug_splits: int, seed: int, processes: Processes) -> Any:
    if is_streamed(dataset):
        check_shards(dataset, data, processes)
        if processes.is_primary:
            _logger.info(
                f'{data.dataset} is streamed: its order repeats for the same numbers of processes and workers, images '
                'that cannot be read are left out by its reader, and an epoch is made of full batches of every worker'
            )
        return KeyedStream(dataset, seed, processes.rank)
    if aug_splits:
        dataset = _Split(dataset, aug_splits)
    return KeyedDataset(dataset, seed, data.strict_data)


class _Split(AugMixDataset):
    """timm's versions of an image, under the name of its file."""

    def name(self, index: int) -> str:
        return self.dataset.name(index)


def _create_training_loader(
    dataset: Any,
    batch_size: int,
    augmentation: AugmentationConfig,
    input_settings: dict[str, Any],
    loader_settings: dict[str, Any],
) -> Any:
    try:
        loader = create_loader(
            dataset,
            input_settings['input_size'],
            batch_size,
            is_training=True,
            interpolation=augmentation.train_interpolation,
            mean=input_settings['mean'],
            std=input_settings['std'],
            **augmentation_settings(augmentation),
            **loader_settings,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(f'cannot build the augmentation (aa {augmentation.aa!r}): {error}') from error
    _open_loaders.add(loader)
    return loader


def create_validation_loader(
    dataset: Any, data: DataSource, batch_size: int, input_settings: dict[str, Any], processes: Processes
) -> Any:
    """Batches of the whole set in order, sharded over the processes; timm's evaluators discard the padding.

    With allow_corrupt, an image that cannot be read comes as a blank one with the label NO_LABEL.
    """
    if is_streamed(dataset):
        check_shards(dataset, data, processes)
        dataset = WholeStream(dataset, data.allow_corrupt)
    elif data.allow_corrupt:
        mode = 'L' if input_settings['input_size'][0] == 1 else 'RGB'
        dataset = LenientDataset(dataset, Image.new(data.input_img_mode or mode, (8, 8)))
    else:
        dataset = ExactDataset(dataset)
    loader = create_loader(
        dataset,
        input_settings['input_size'],
        batch_size,
        is_training=False,
        distributed=processes.distributed,
        **{key: input_settings[key] for key in ('interpolation', 'mean', 'std', 'crop_pct', 'crop_mode')},
        **_loader_settings(data, processes),
    )
    _open_loaders.add(loader)
    return loader


def stop_workers(loader: Any) -> None:
    """Ends the processes that a loader keeps for its next pass; they heed SIGTERM only after a while."""
    loader = getattr(loader, 'loader', loader)
    if loader._iterator is not None and loader.num_workers > 0:
        loader._iterator._shutdown_workers()
        loader._iterator = None


@atexit.register  # before multiprocessing's own, which waits for processes that it has sent SIGTERM
def _stop_all_workers() -> None:
    for loader in list(_open_loaders):
        stop_workers(loader)


def _leave_signals_to_the_run(worker: Any) -> int:
    """Lets a worker serve until its run is saved where a launcher signals it too. Returns the worker's own seed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != 'win32':
        os.setpgrp()
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE_SECONDS))  # then SIGALRM ends it
    return worker.seed


def _loader_settings(data: DataSource, processes: Processes) -> dict[str, Any]:
    return {
        'num_workers': data.workers,
        'pin_memory': data.pin_mem and processes.device.type != 'cpu',  # torch would warn at every epoch
        'use_prefetcher': not data.no_prefetcher,
        'device': processes.device,
        'worker_seeding': _leave_signals_to_the_run,
    }
