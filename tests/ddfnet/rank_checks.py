"""Run by test_distributed_ranks.py in several processes; saves what each of them saw, a list by rank.

    torchrun ... -m tests.ddfnet.rank_checks FOLDER DATA_DIR

FOLDER takes the runs and found.pt; some images of DATA_DIR are damaged.
"""

import logging
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ddfnet.config import load_train_config
from ddfnet.data.keyed import KeyedDataset
from ddfnet.distributed import Processes, start_processes, stop_processes
from ddfnet.evaluation import evaluate
from ddfnet.scores import ClassScores, RealLabels
from ddfnet.training import command
from ddfnet.training.components import build_components
from ddfnet.training.engine import Progress, train_epoch
from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN
from tests.ddfnet.engine_parts import batches, network, parts

# without BatchNorm, so that what is learnt depends on the joined batch alone
SMOOTH_RUN = [
    *TINY_RUN, '--model-kwargs', 'channels=(8,8,16,16)', 'norm_layer=groupnorm1', '--no-aug', '--reprob', '0',
    '--smoothing', '0', '--lr', '0.1', '--warmup-epochs', '0', '--no-tensorboard', '--experiment', 'smooth',
]  # fmt: skip
SHORT_RUN = [
    *TINY_RUN, '-b', '8', '--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32', '--val-num-samples',
    '16', '--model-ema', '--no-tensorboard',
]  # fmt: skip
DAMAGED_RUN = [*TINY_MODEL, '--num-classes', '2', '--no-aug', '--reprob', '0', '-j', '0', '--allow-corrupt']


def orders(processes: Processes) -> dict[int, list[int]]:
    """Per seed, the indices of the images that this process read in an epoch."""
    read: dict[int, list[int]] = {}
    for seed in (42, 43):
        components = build_components(load_train_config([*TINY_RUN, '-b', '8', '--seed', str(seed)]), processes)
        indices = read.setdefault(seed, [])
        whole = KeyedDataset.__getitem__

        def reading(dataset: Any, key: Any, indices: list[int] = indices, whole: Any = whole) -> Any:
            indices.append(key[2])
            return whole(dataset, key)

        with mock.patch.object(KeyedDataset, '__getitem__', reading):
            list(components.train_loader.epoch(0))
    return read


def accumulated(processes: Processes, accumulation: int = 2) -> dict[str, Any]:
    """What happened in the order it did, and the gradients of every step, on this process's share of each batch."""
    share = slice(processes.rank, None, processes.world_size)
    given = [(images[share], labels[share]) for images, labels in batches(2 * accumulation)]
    components = parts(network(batch_norm=False).double(), given, grad_accum_steps=accumulation)
    events: list[str] = []
    gradients: list[list[torch.Tensor]] = []
    components.model.register_forward_pre_hook(lambda *_: events.append('forward'))
    if processes.distributed:
        components.task.prepare_distributed(device_ids=None)

        def reduce(group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            events.append('reduce')
            return allreduce_hook(group, bucket)

        components.task.trainable_module.register_comm_hook(None, reduce)
    components.optimizer.register_step_pre_hook(
        lambda *_: gradients.append([parameter.grad.clone() for parameter in components.model.parameters()])
    )
    train_epoch(components, Progress(), processes)
    return {'events': events, 'gradients': gradients}


class ValidationNames:
    """Of 16 images, as ImageNet's are called."""

    def name(self, index: int) -> str:
        return f'ILSVRC2012_val_{index + 1:08d}.JPEG'

    def __len__(self) -> int:
        return 16


def damaged(processes: Processes, data_dir: str, batch_size: int) -> dict[str, Any]:
    """Damaged images that this process met, what it says of all, and what is logged."""
    config = load_train_config([data_dir, *DAMAGED_RUN, '-b', str(batch_size)])
    components = build_components(config, processes)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger('ddfnet')
    logger.addHandler(handler)
    tally = components.train_loader.dataset.tally
    with mock.patch.object(tally, 'add', wraps=tally.add) as add:
        list(components.train_loader.epoch(0))
    replaced = components.train_loader.count_replaced(processes)
    scores = [ClassScores('macro', 2, processes.device), RealLabels(f'{data_dir}/real.json', ValidationNames(), 2)]
    metrics = evaluate(components.model, components.validation_loader, components.precision, processes, scores=scores)
    del metrics['samples_per_s']
    logger.removeHandler(handler)
    return {'met': add.call_count, 'replaced': replaced, 'metrics': metrics, 'lines': lines}


def run(*flags: str) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Trains, and returns running statistics of model and average before and after each --dist-bn."""
    seen = []

    def watched(model: torch.nn.Module, *arguments: Any) -> None:
        before = _statistics(model)
        distribute_bn(model, *arguments)
        seen.append((before, _statistics(model)))

    with mock.patch.object(command, 'distribute_bn', watched):
        command.train(load_train_config(list(flags)))
    return seen


def _statistics(model: torch.nn.Module) -> list[torch.Tensor]:
    return [buffer.clone() for name, buffer in model.named_buffers() if 'running_' in name]


def main(folder: str, data_dir: str) -> None:
    processes = start_processes('cpu')
    mine: dict[str, Any] = {
        'orders': orders(processes),
        'accumulated': accumulated(processes),
        'damaged': damaged(processes, data_dir, batch_size=4),
    }
    with (
        mock.patch.object(command, 'start_processes', return_value=processes),
        mock.patch.object(command, 'stop_processes'),
    ):
        mine['statistics'] = {
            mode: run(*SHORT_RUN, '--dist-bn', mode, '--output', folder, '--experiment', mode)
            for mode in ('reduce', 'broadcast')
        }
        mine['statistics']['left'] = run(*SMOOTH_RUN, '-b', '8', '--dist-bn', '', '--output', folder)
    found: list[Any] = [None] * processes.world_size
    dist.all_gather_object(found, mine)
    if processes.is_primary:
        torch.save(found, Path(folder) / 'found.pt')
    stop_processes()


if __name__ == '__main__':
    main(*sys.argv[1:])
