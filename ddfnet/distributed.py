"""The processes of a run: who this one is, which device it has, and the few collectives that the toolkit needs."""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from timm.utils.distributed import is_distributed_env, world_info_from_env

from ddfnet.errors import UserError, first_line


@dataclass(frozen=True)
class Processes:
    """This process among all: its device, its rank, and how many there are."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_primary(self) -> bool:
        return self.rank == 0

    @property
    def distributed(self) -> bool:
        return self.world_size > 1

    def broadcast(self, value: Any) -> Any:
        """The primary's value, in every process; it must pickle."""
        if not self.distributed:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value by rank, in every process; it must pickle."""
        if not self.distributed:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if not self.distributed:
            return tensor
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor


def resolve_device(name: str) -> torch.device:
    """A device by name: 'auto' takes an accelerator where there is one.

    Raises:
        UserError: Not a device, or not present here.
    """
    if name == 'auto':
        return torch.accelerator.current_accelerator(check_available=True) or torch.device('cpu')
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == 'meta':
            raise RuntimeError('it computes nothing')
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise UserError(
            f'device {name!r} cannot be used here ({first_line(error)}): give --device auto, or cpu'
        ) from None
    return device


def start_processes(device_name: str, backend: str | None = None, timeout_minutes: float | None = 10) -> Processes:
    """Joins the process group where a launcher (torchrun, SLURM) started several processes.

    Raises:
        UserError: The device is not present, or the back end cannot be used.
    """
    device = resolve_device(device_name)
    if not is_distributed_env():
        return Processes(device)
    local_rank, rank, world_size = world_info_from_env()
    if device.type == 'cuda':
        device = _own_gpu(device, local_rank, torch.cuda.device_count())
        torch.cuda.set_device(device)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(local_rank))
    try:
        dist.init_process_group(
            backend or dist.get_default_backend_for_device(device),
            timeout=None if timeout_minutes is None else timedelta(minutes=timeout_minutes),
            device_id=device if device.type == 'cuda' else None,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f'cannot start {world_size} processes with back end {backend!r}: {error}') from error
    return Processes(device, rank, world_size)


def _own_gpu(device: torch.device, local_rank: int, count: int) -> torch.device:
    """The GPU of a process: that of its number on the machine, or the only one that SLURM lets it see."""
    if device.index is not None:
        raise UserError(
            f'device {str(device)!r}: several processes take a GPU each by their number; give --device {device.type}, '
            'and choose GPUs with CUDA_VISIBLE_DEVICES'
        )
    if count == 1 and 'LOCAL_RANK' not in os.environ:  # srun --gpus-per-task
        return torch.device(device.type, 0)
    if local_rank >= count:
        raise UserError(f'{local_rank + 1} processes on this machine, but {count} GPUs: start fewer')
    return torch.device(device.type, local_rank)


def check_synchronized_batch_norm(device: torch.device) -> None:
    """Raises UserError where torch cannot normalise over the batches of all processes."""
    if device.type == 'cpu':
        raise UserError('--sync-bn works on accelerators only, not on the CPU: leave it out, --dist-bn averages there')


def stop_processes() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
