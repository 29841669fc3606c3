"""Tensors whose memory ends where reading on is noticed: by the processor, at a page that is not mapped for access, or
by a sanitizer, which knows what was allocated."""

import ctypes
import mmap

import torch
from torch import Tensor

_NO_ACCESS = 0  # PROT_NONE
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.malloc.restype, _LIBC.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(tensor: Tensor) -> Tensor:
    """A copy, strides included, whose storage ends at a page that cannot be accessed."""
    storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
    if storage.numel() == 0:
        return tensor
    copy = ending_at_a_page(storage.numel(), tensor.dtype).copy_(storage)
    return copy.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def ending_at_a_page(count: int, dtype: torch.dtype, missing: int = 0) -> Tensor:
    """`count` elements before a page that cannot be accessed, the last `missing` of them already in it."""
    used = (count - missing) * dtype.itemsize
    readable = -(-used // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, readable + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _LIBC.mprotect(address + readable, mmap.PAGESIZE, _NO_ACCESS):
        raise OSError(ctypes.get_errno(), 'mprotect failed')
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=readable - used)  # keeps the mapping


def allocated(count: int, missing: int) -> Tensor:
    """`count` float32 elements, of which the last `missing` are not in the block that was allocated."""
    address = _LIBC.malloc((count - missing) * 4)
    ctypes.memset(address, 0, (count - missing) * 4)
    return torch.frombuffer((ctypes.c_float * count).from_address(address), dtype=torch.float32)
