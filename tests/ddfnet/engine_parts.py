"""The parts of a run for tests of the loop: a small network in float64 and batches given as tensors."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from timm.task import ClassificationTask
from torch import Tensor, nn

from ddfnet.config import TrainConfig, replace_values
from ddfnet.distributed import Processes
from ddfnet.precision import Precision
from ddfnet.training.components import Components
from ddfnet.training.scaling import NativeScaler

CPU = Processes(torch.device('cpu'))


class Batches:
    """Stands for the training loader: the same batches in every epoch."""

    mixup = None

    def __init__(self, batches: list[tuple[Tensor, Tensor]], accumulation: int) -> None:
        self.batches = batches
        self.updates_per_epoch = len(batches) // accumulation
        self.samples_per_step = len(batches[0][1]) * accumulation

    def updates_left(self, position: int) -> int:
        return self.updates_per_epoch - position // self.samples_per_step

    def epoch(self, epoch: int, position: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.batches


def network(batch_norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4) if batch_norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def batches(count: int, size: int = 4, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(count, size, 1, 6, 6, generator=generator, dtype=dtype)
    return list(zip(images, torch.randint(0, 3, (count, size), generator=generator)))


def parts(
    model: nn.Module,
    given: list[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    scheduler: Any = None,
    **values: Any,
) -> Components:
    """The components of a run on the CPU, with SGD at 0.1 unless given, and values of the configuration by name."""
    config = replace_values(TrainConfig(), {'smoothing': 0.0, 'log_interval': 1000, **values})
    precision = Precision(dataclasses.replace(config.precision), CPU.device)
    task = ClassificationTask(model, criterion_kwargs={'smoothing': 0.0}, verbose=False)
    if config.ema.model_ema:
        task.setup_ema(decay=config.ema.model_ema_decay, use_warmup=config.ema.model_ema_warmup)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    loader: Any = Batches(given, config.batch.grad_accum_steps)
    native = NativeScaler(scaler or torch.amp.GradScaler('cpu', enabled=False), optimizer)
    return Components(config, task, optimizer, scheduler, native, precision, loader, None, config.schedule.epochs)


def state(components: Components) -> list[Tensor]:
    """Copies of weights, buffers, average and what the optimiser remembers."""
    found = [*components.model.state_dict().values()]
    if components.ema_model is not None:
        found += components.ema_model.state_dict().values()
    for remembered in components.optimizer.state.values():
        found += [value for value in remembered.values() if torch.is_tensor(value)]
    return [tensor.clone() for tensor in found]
