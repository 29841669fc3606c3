"""What wraps, copies and stores modules: checkpointing, copies, pickles, DDP and FSDP in two processes."""

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ddf

MODULES = [lambda: ddf.DDFPack(8, stride=2, head=2), lambda: ddf.DDFUpPack(4)]


@pytest.fixture(params=MODULES)
def module(request):
    torch.manual_seed(0)
    return request.param().double()


@pytest.fixture
def x(module):
    return torch.randn(2, module.in_channels, 6, 7, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize('use_reentrant', [False, True])
def test_checkpoint(module, x, use_reentrant):
    leaves = [x, *module.parameters()]
    expected = torch.autograd.grad(module(x).sin().sum(), leaves)
    checkpoint(module, x, use_reentrant=use_reentrant).sin().sum().backward()
    assert all(torch.equal(leaf.grad, gradient) for leaf, gradient in zip(leaves, expected))


def test_copies_and_pickles(module, x):
    expected = module(x)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    stored = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), stored):
        assert torch.equal(twin(x), expected)
        assert not {id(p) for p in twin.parameters()} & {id(p) for p in module.parameters()}


def test_data_parallel_and_fully_sharded_in_two_processes(tmp_path):
    torch.multiprocessing.spawn(compare_wrapped, (str(tmp_path / 'store'),), nprocs=2)


def compare_wrapped(rank, store):
    """In each of two processes: gradients of a wrapped module on half of a batch against those on all of it."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', store=dist.FileStore(store, 2), rank=rank, world_size=2)
    for build in MODULES:
        torch.manual_seed(0)
        module = build().double()
        x = torch.randn(4, module.in_channels, 6, 7, dtype=torch.float64)
        expected = torch.autograd.grad(module(x).sin().sum() / 2, list(module.parameters()))
        wrapped = DistributedDataParallel(copy.deepcopy(module))
        sharded = copy.deepcopy(module)
        for part in (*sharded.children(), sharded):
            if not isinstance(part, torch.nn.ModuleList):
                fully_shard(part)
        for model in (wrapped, sharded):
            model(x.chunk(2)[rank]).sin().sum().backward()
            for parameter, gradient in zip(model.parameters(), expected):
                found = parameter.grad
                found = found.full_tensor() if hasattr(found, 'full_tensor') else found
                torch.testing.assert_close(found, gradient)
    dist.destroy_process_group()
