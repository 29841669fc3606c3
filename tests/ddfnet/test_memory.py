"""Peak memory of a pass, and the memory that is free."""

import sys

import pytest
import torch

from ddfnet import memory
from ddfnet.memory import OutOfMemory, free_memory, is_out_of_memory, peak_memory

CPU = torch.device('cpu')
MB = 2**20

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='resident memory is read from /proc')


def test_peak_is_what_is_held_and_the_rise():
    held = torch.zeros(8 * MB, dtype=torch.uint8)

    def run() -> None:
        temporary = torch.ones(64 * MB, dtype=torch.uint8)
        del temporary
        torch.ones(32 * MB, dtype=torch.uint8)

    run()
    peak = peak_memory(run, [held, held[:100]], CPU)
    assert peak is not None
    assert 71 * MB < peak < 80 * MB


def test_unknown_where_the_system_does_not_say(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, '_CLEAR_REFS', tmp_path / 'missing' / 'clear_refs')
    assert peak_memory(lambda: None, [], CPU) is None


def test_limit_of_the_control_group_counts(monkeypatch):
    monkeypatch.setattr(memory, 'memory_headroom', lambda: 600000)
    assert free_memory(CPU) == 600000
    monkeypatch.setattr(memory, 'memory_headroom', lambda: None)
    unlimited = free_memory(CPU)
    assert unlimited is not None
    assert unlimited > 600000


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (OutOfMemory('does not fit'), True),
        (MemoryError(), True),
        (torch.OutOfMemoryError('CUDA out of memory'), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), False),
        (ValueError('out of memory'), False),
    ],
)
def test_errors_of_allocators(error, expected):
    assert is_out_of_memory(error) is expected


@pytest.mark.parametrize('shape', [(2**60,), (2**40, 2**40)], ids=['large', 'beyond counting'])
def test_torch_refuses_with_such_an_error(shape):
    with pytest.raises(RuntimeError) as refused:
        torch.empty(shape, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
