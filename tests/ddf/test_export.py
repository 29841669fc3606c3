"""Exported programs: torch.export with its files, decomposition, ONNX, AOTInductor, TorchScript."""

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from torch.export import Dim

import ddf.export

SETTINGS = [
    {},
    {'stride': 2, 'head': 2, 'dilation': 5, 'kernel_combine': 'add'},
]
TORCHSCRIPT = pytest.mark.filterwarnings('ignore:.*torch.jit.* is deprecated', 'ignore::torch.jit.TracerWarning')


def build(settings):
    torch.manual_seed(0)
    return ddf.DDFPack(4, **settings).eval()


def export(module, dtype=torch.float32):
    stride = module.stride
    sizes = {0: Dim('batch'), 2: Dim('height', min=stride + 1), 3: Dim('width', min=stride + 1)}
    return torch.export.export(module, (torch.randn(3, 4, 9, 11, dtype=dtype),), dynamic_shapes=(sizes,))


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_program_of_dynamic_sizes(settings, tmp_path):
    module = build(settings).double()
    program = export(module, torch.float64)
    torch.export.save(program, tmp_path / 'program.pt2')
    loaded = torch.export.load(tmp_path / 'program.pt2')
    decomposed = program.run_decompositions(ddf.export.decompositions())
    targets = [str(node.target) for node in decomposed.graph.nodes if node.op == 'call_function']
    assert not any('ddf' in target for target in targets)
    for size in ((1, 4, 9, 11), (2, 4, 20, 3), (5, 4, 3, 4)):
        x = torch.randn(size, dtype=torch.float64)
        torch.testing.assert_close(loaded.module()(x), module(x))
        torch.testing.assert_close(decomposed.module()(x), module(x))


def test_saved_program_runs_in_another_process(tmp_path):
    module = build({})
    x = torch.randn(2, 4, 7, 5)
    torch.export.save(export(module), tmp_path / 'program.pt2')
    torch.save({'x': x, 'y': module(x)}, tmp_path / 'tensors.pt')
    script = f"""
import torch, ddf
tensors = torch.load({str(tmp_path / 'tensors.pt')!r})
torch.testing.assert_close(torch.export.load({str(tmp_path / 'program.pt2')!r}).module()(tensors['x']), tensors['y'])
"""
    subprocess.run([sys.executable, '-c', script], check=True)


@pytest.mark.parametrize('settings', SETTINGS[:1], ids=str)
def test_onnx_with_dynamic_sizes(settings, tmp_path):
    module = build(settings)
    program = export(module).run_decompositions(ddf.export.decompositions())
    torch.onnx.export(program, f=tmp_path / 'module.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'module.onnx')
    for size in ((1, 4, 9, 11), (4, 4, 6, 20)):
        x = torch.randn(size)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(y, module(x).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_aoti_package(tmp_path):
    module = build({'stride': 2})
    path = torch._inductor.aoti_compile_and_package(export(module), package_path=str(tmp_path / 'module.pt2'))
    compiled = torch._inductor.aoti_load_package(path)
    for size in ((3, 4, 9, 11), (1, 4, 6, 20)):
        x = torch.randn(size)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), module(x))


@TORCHSCRIPT
def test_torchscript_of_the_function(make_arguments, tmp_path):
    """Deprecated by torch, but the function compiles; its checks are left to the operator then."""
    scripted = torch.jit.script(ddf.ddf)
    scripted.save(str(tmp_path / 'function.pt'))
    loaded = torch.jit.load(str(tmp_path / 'function.pt'))
    tensors = make_arguments(head=2)
    assert torch.equal(loaded(*tensors, 3, 1, 1, 2, 'mul', 0.5), ddf.ddf(*tensors, head=2, norm_gain=0.5))
    tensors = make_arguments(stride=2)
    output = loaded(*tensors, 3, 1, 2, 'add', '', None)  # a stored function has no default values
    torch.testing.assert_close(output, ddf.ddf(*tensors, 3, 1, 2, 'add'))
    for actual, expected in zip(
        torch.autograd.grad(output.sum(), tensors),
        torch.autograd.grad(ddf.ddf(*tensors, 3, 1, 2, 'add').sum(), tensors),
    ):
        torch.testing.assert_close(actual, expected)


@TORCHSCRIPT
def test_torchscript_trace_of_a_module(tmp_path):
    module = build({'stride': 2})
    torch.jit.trace(module, torch.randn(2, 4, 6, 7)).save(tmp_path / 'module.pt')
    x = torch.randn(3, 4, 9, 8)
    torch.testing.assert_close(torch.jit.load(tmp_path / 'module.pt')(x), module(x))
