"""Whole models in torch.compile and exporters; blocks are the same at every depth, so the smallest models serve."""

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import ddf.export
import ddfnet  # noqa: F401  registers the models


@pytest.mark.parametrize('name', ['ddf_mul_resnet26', pytest.param('ddf_add_resnet26', marks=pytest.mark.slow)])
def test_no_graph_break_in_training(name):
    torch._dynamo.reset()
    model = timm.create_model(name, num_classes=3).train()
    compiled = torch.compile(model, fullgraph=True, backend='aot_eager')
    compiled(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_flops_of_the_operation():
    """12.42 M multiply-adds of the 2.27 G of the whole model."""
    model = timm.create_model('ddf_mul_resnet50', device='meta').eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device='meta'))
    assert counter.get_flop_counts()['Global'][torch.ops.ddf.forward] == 2 * 12_418_560
    assert f'{counter.get_total_flops() / 2e9:.2f}' == '2.27'


@pytest.mark.slow
def test_onnx_with_dynamic_batch(tmp_path):
    """The lines of ddf.export's documentation."""
    torch.manual_seed(0)
    model = timm.create_model('ddf_mul_resnet26', num_classes=5).eval()
    images = torch.randn(3, 3, 48, 64)
    program = torch.export.export(model.eval(), (images,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    program = program.run_decompositions(ddf.export.decompositions())
    torch.onnx.export(program, f=tmp_path / 'model.onnx', dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    for batch in (1, 3, 4):
        images = torch.randn(batch, 3, 48, 64)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(images).numpy(), rtol=1e-5, atol=1e-5)
