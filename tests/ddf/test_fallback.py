"""What serves devices without compiled kernels; on the CPU, whose library is left out."""

import types

import pytest
import torch

from ddf import fallback, reference, report

from . import packages

_FORCED = """
import sys, torch
from borrowed import check, ddf, fallback
from borrowed.check import Case
fallback.COMPILED_DEVICES.add('cpu')
counted = []
compile = torch.compile
torch.compile = lambda function, **options: counted.append(1) or compile(function, **options)
case = Case((2, 4, 7, 9), 3, stride=2, head=2, channels_last=True, norm_gain=0.5)
assert max(check.errors(case, torch.float32, 'cpu')) <= check.tolerance(torch.float32)
assert len(counted) == 3 and not fallback._failed, (counted, fallback._failed)
tensors = [tensor.requires_grad_() for tensor in Case((2, 4, 5, 6), 3).tensors(torch.float64)[1:]]
assert torch.autograd.gradcheck(ddf, tensors, fast_mode=True)
torch.testing.assert_close(compile(lambda *given: ddf(*given), fullgraph=True)(*tensors), ddf(*tensors))
stacked = [tensor.detach().expand(2, *tensor.shape) for tensor in tensors]
assert torch.vmap(ddf)(*stacked).shape == (2, 2, 4, 5, 6)
print('agrees')
"""


@pytest.fixture
def arguments():
    return torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3), torch.ones(1, 9, 4, 4), 1, 1, 1, 'mul', None


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.delenv('DDF_BACKEND', raising=False)
    monkeypatch.setattr(fallback, 'COMPILED_DEVICES', {'cpu', 'cuda'})
    monkeypatch.setattr(fallback, '_failed', set())
    fallback._warn.cache_clear()
    fallback._compiled.cache_clear()
    yield
    fallback._warn.cache_clear()
    fallback._compiled.cache_clear()


@pytest.mark.slow
def test_compiled_shifted_sum_agrees_and_bears_every_transform(tmp_path):
    packages.copy_package(tmp_path / 'borrowed')
    status, output, errors = packages.run(tmp_path, '-c', _FORCED, DDF_BUILD='0')
    assert (status, output.strip()) == (0, 'agrees'), errors
    assert errors.count('runs on the compiled shifted sum') == 1


def test_plain_torch_serves_where_compiling_fails(arguments, monkeypatch):
    def fail(*tensors):
        raise torch._dynamo.exc.TorchDynamoException('no compiler')

    monkeypatch.setattr(torch, 'compile', lambda function, **options: fail)
    with pytest.warns(UserWarning, match=r'torch\.compile fails'):
        output = fallback.run(reference.forward, 'cpu', *arguments)
    torch.testing.assert_close(output, reference.forward(*arguments))
    assert fallback.name('cpu') == 'plain torch'


def test_gpus_are_shown_and_those_that_the_kernels_do_not_run_on_noted(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert report.gpus({'architectures': '9.0'}) == []
    gpu = types.SimpleNamespace(name='NVIDIA T4', major=7, minor=5, total_memory=16 << 30)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: gpu)
    monkeypatch.setattr(report, '_driver_version', lambda: '13.0')
    lines = [
        'cuda:0 NVIDIA T4, compute capability 7.5, 16.0 GiB',
        f'CUDA of torch {torch.version.cuda}, of the driver 13.0',
    ]
    for stamp in ({}, {'architectures': '7.5,8.0'}):
        assert report.gpus(stamp) == lines
    *shown, note = report.gpus({'architectures': '8.0,9.0+PTX'})
    assert shown == lines
    assert note.startswith('note: the CUDA kernels, compiled for 8.0,9.0+PTX, do not run on cuda:0; ')
    assert 'TORCH_CUDA_ARCH_LIST=7.5 python -m ddf build' in note


def test_gpu_without_kernels_is_noted_with_the_remedy(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert fallback.notes(('cpu',)) == []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert fallback.notes(('cpu', 'cuda')) == []
    (line,) = fallback.notes(('cpu',))
    assert 'serves GPUs' in line
    assert 'python -m ddf build' in line
    monkeypatch.setenv('DDF_BACKEND', 'reference')
    assert fallback.notes(('cpu',)) == []
