"""The registered operators: opcheck, numeric gradients of first and second order, autocast, tracing."""

import pytest
import torch

import ddf
from ddf import operators

VARIANTS = [
    {'kernel_size': 3, 'dilation': 1, 'stride': 1, 'head': 1},
    {'kernel_size': 3, 'dilation': 2, 'stride': 2, 'head': 2},
    {'kernel_size': 5, 'dilation': 1, 'stride': 3, 'head': 4},
]


def settings_of(variant, kernel_combine):
    return variant['dilation'], variant['stride'], variant['head'], kernel_combine


def sized(variant):
    return {key: variant[key] for key in ('kernel_size', 'stride', 'head')}


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_gradcheck(backend, make_arguments, variant, kernel_combine):
    tensors = make_arguments(height=4, width=5, **sized(variant))
    assert torch.autograd.gradcheck(lambda *t: ddf.ddf(*t, **variant, kernel_combine=kernel_combine), tensors)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize('variant', VARIANTS)
def test_gradgradcheck(make_arguments, variant, kernel_combine):
    tensors = make_arguments(batch=1, height=3, width=4, **sized(variant))
    assert torch.autograd.gradgradcheck(lambda *t: ddf.ddf(*t, **variant, kernel_combine=kernel_combine), tensors)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
def test_opcheck(make_arguments, kernel_combine, memory_format):
    variant = VARIANTS[1]
    input, *filters = (tensor.detach() for tensor in make_arguments(dtype=torch.float32, **sized(variant)))
    input = input.contiguous(memory_format=memory_format)
    settings = settings_of(variant, kernel_combine)
    grad_output = operators.forward(input, *filters, *settings)
    tensors = [tensor.requires_grad_() for tensor in (input, *filters)]
    torch.library.opcheck(operators.forward, (*tensors, *settings))
    torch.library.opcheck(operators.input_gradient, (grad_output.requires_grad_(), *tensors, *settings))
    torch.library.opcheck(operators.filter_gradients, (grad_output, *tensors, *settings))


@pytest.mark.parametrize('region_dtype', [torch.bfloat16, torch.float16])
def test_autocast_takes_the_regions_dtype(make_arguments, region_dtype):
    tensors = make_arguments(dtype=torch.float32)
    mixed = (tensors[0].to(region_dtype), *tensors[1:])
    expected = ddf.ddf(*(tensor.to(region_dtype) for tensor in tensors))
    with torch.autocast('cpu', region_dtype):
        output = ddf.ddf(*mixed)
        assert ddf.ddf(*(tensor.double() for tensor in tensors)).dtype == torch.float64
    assert output.dtype == region_dtype
    assert torch.equal(output, expected)
    output.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


def test_compiles_without_graph_break(make_arguments):
    tensors = make_arguments(dtype=torch.float32)
    compiled = torch.compile(lambda *t: ddf.ddf(*t).relu().sum(), fullgraph=True, backend='aot_eager')
    gradients = torch.autograd.grad(compiled(*tensors), tensors)
    expected = torch.autograd.grad(ddf.ddf(*tensors).relu().sum(), tensors)
    for gradient, reference in zip(gradients, expected):
        torch.testing.assert_close(gradient, reference)
