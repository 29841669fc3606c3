"""Memory that a pass takes at its peak, and memory that is free.

On an accelerator the peak is that of torch's allocator. On the CPU, under Linux, it is what the pass needs at hand
(weights, inputs, in training gradients and momenta) plus the rise of the process's resident memory while it runs,
after the allocator has given everything unused back: activations and workspaces. The system counts pages loosely: the
rise is right to about 0.1 MB. Elsewhere: None.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ddfnet.control_groups import memory_headroom
from ddfnet.timing import Pass, synchronize

_STATUS = Path('/proc/self/status')
_CLEAR_REFS = Path('/proc/self/clear_refs')


class OutOfMemory(Exception):
    """Something does not fit into memory; the message says what is known about it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused. The CPU's has no class of its own."""
    words = ("can't allocate memory", 'out of memory', 'bad_alloc', 'ALLOC_FAILED', 'size calculation overflowed')
    return isinstance(error, MemoryError | OutOfMemory | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def peak_memory(run: Pass, held: Iterable[Tensor], device: torch.device) -> int | None:
    """Bytes in use at the peak of a pass that ran before; `held` are the tensors that live on between passes."""
    release(device)
    if device.type == 'cpu':
        rise = _rise_of_resident_memory(run)
        return None if rise is None else rise + sum(storage_sizes(held).values())
    try:
        torch.accelerator.reset_peak_memory_stats(device)
        run()
        synchronize(device)
        return torch.accelerator.max_memory_allocated(device) or None  # 0 where the back end does not count
    except (AttributeError, NotImplementedError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        return None


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated, None where that is not known."""
    if device.type != 'cpu':
        with contextlib.suppress(AttributeError, NotImplementedError, RuntimeError):
            return torch.accelerator.get_memory_info(device)[0]
        return None
    with contextlib.suppress(OSError, KeyError):
        free = _fields(Path('/proc/meminfo'))['MemAvailable']
        limit = memory_headroom()
        return free if limit is None else min(free, limit)
    return None


def does_not_fit(needed: int | None, free: int | None) -> str:
    """The bytes that are missing, in words; '' where they suffice or are not known."""
    if needed is None or free is None or needed <= free:
        return ''
    return f'does not fit into memory: about {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free'


def release(device: torch.device) -> None:
    """Gives memory that is not used back to the system."""
    gc.collect()
    if device.type != 'cpu':
        torch.accelerator.empty_cache()
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def memory_in_use(device: torch.device) -> int | None:
    """Bytes: on CUDA at the peak so far, else of this process now; None where the system does not say."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        return _fields(_STATUS)['VmRSS']
    except (OSError, KeyError):
        return None


def storage_sizes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Bytes by address of what the tensors lie in; tensors that share a storage count once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _rise_of_resident_memory(run: Pass) -> int | None:
    try:
        _CLEAR_REFS.write_text('5')  # sets the high-water mark to what is resident now
        before = _fields(_STATUS)['VmHWM']
        run()
        return _fields(_STATUS)['VmHWM'] - before
    except (OSError, KeyError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Bytes by name, of a file with lines such as `VmHWM: 123 kB`."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(':'): int(words[1]) * 1024 for words in lines if words[2:] == ['kB']}
