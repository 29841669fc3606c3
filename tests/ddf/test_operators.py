"""The registered operators: opcheck, derivatives of first and second order and in both modes, autocast, FLOPs."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import ddf
from ddf import operators

VARIANTS = {
    'plain': {},
    'strided': {'dilation': 2, 'stride': 2, 'head': 2},
    'large': {'kernel_size': 5, 'stride': 3, 'head': 4},
    'channel filter of batch 1': {'head': 2, 'channel_batch': 1},
    'spatial filter of batch 1': {'stride': 2, 'spatial_batch': 1},
    'normalised': {'head': 2, 'norm_gain': 0.7},
    'normalised of batch 1': {'stride': 2, 'dilation': 2, 'spatial_batch': 1, 'norm_gain': 0.7},
}
BOTH = pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
EVERY = pytest.mark.parametrize('variant', VARIANTS.values(), ids=VARIANTS)


def arguments_of(make_arguments, variant, kernel_combine, **sizes):
    """Tensors and settings of the operators."""
    sizes = {**sizes, **{key: variant[key] for key in variant if key not in ('dilation', 'norm_gain')}}
    settings = (
        *(variant.get(key, 1) for key in ('dilation', 'stride', 'head')),
        kernel_combine,
        variant.get('norm_gain'),
    )
    return make_arguments(**sizes), settings


@BOTH
@EVERY
def test_gradcheck(backend, make_arguments, variant, kernel_combine):
    tensors, settings = arguments_of(make_arguments, variant, kernel_combine, height=3, width=4)
    assert torch.autograd.gradcheck(lambda *t: operators.forward(*t, *settings), tensors, fast_mode=True)


@BOTH
@EVERY
def test_gradgradcheck_and_forward_mode(make_arguments, variant, kernel_combine):
    tensors, settings = arguments_of(make_arguments, variant, kernel_combine, height=3, width=4)

    def function(*tensors):
        return operators.forward(*tensors, *settings)

    assert torch.autograd.gradcheck(
        function,
        tensors,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        function, tensors, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@BOTH
@EVERY
def test_gradient_operators_are_differentiable_in_both_modes(make_arguments, variant, kernel_combine):
    tensors, settings = arguments_of(make_arguments, variant, kernel_combine, height=3, width=4)
    grad_output = torch.randn_like(operators.forward(*tensors, *settings)).requires_grad_()
    for operator in (operators.input_gradient, operators.filter_gradients):
        assert torch.autograd.gradcheck(
            lambda *t, operator=operator: operator(*t, *settings),
            (grad_output, *tensors),
            fast_mode=True,
            check_forward_ad=True,
        )


def test_gradient_without_use_is_not_computed(make_arguments, monkeypatch):
    calls = []

    def record(name, operator):
        monkeypatch.setattr(f'ddf.derivatives.{name}', lambda *arguments: calls.append(name) or operator(*arguments))

    record('input_gradient', operators.input_gradient)
    record('filter_gradients', operators.filter_gradients)
    tensors = make_arguments()
    torch.autograd.grad(ddf.ddf(tensors[0], *(filter.detach() for filter in tensors[1:])).sum(), tensors[0])
    assert calls == ['input_gradient']
    torch.autograd.grad(ddf.ddf(tensors[0].detach(), *tensors[1:]).sum(), tensors[1:])
    assert calls == ['input_gradient', 'filter_gradients']


def test_forward_mode_is_never_silently_zero(make_arguments):
    """As it is with the kernels that torch.library.register_autograd makes: the primal comes back without tangent."""
    tensors = [tensor.detach() for tensor in make_arguments()]
    with forward_ad.dual_level():
        for index, operator in itertools.product(range(3), (ddf.ddf, torch.ops.ddf.forward)):
            duals = list(tensors)
            duals[index] = forward_ad.make_dual(tensors[index], torch.ones_like(tensors[index]))
            output = operator(*duals) if operator is ddf.ddf else operator(*duals, 1, 1, 1, 'mul', None)
            tangent = forward_ad.unpack_dual(output).tangent
            tensors_along = [torch.ones_like(t) if i == index else t for i, t in enumerate(tensors)]
            torch.testing.assert_close(tangent, ddf.ddf(*tensors_along))


def run_opcheck(make_arguments, variant, kernel_combine, memory_format):
    tensors, settings = arguments_of(make_arguments, variant, kernel_combine, dtype=torch.float32)
    input, channel, spatial = (tensor.detach() for tensor in tensors)
    input, spatial = (map.contiguous(memory_format=memory_format) for map in (input, spatial))
    grad_output = operators.forward(input, channel, spatial, *settings)
    assert grad_output.is_contiguous(memory_format=memory_format)
    tensors = [tensor.requires_grad_() for tensor in (input, channel, spatial)]
    torch.library.opcheck(operators.forward, (*tensors, *settings))
    torch.library.opcheck(operators.input_gradient, (grad_output.requires_grad_(), *tensors, *settings))
    torch.library.opcheck(operators.filter_gradients, (grad_output, *tensors, *settings))


@pytest.mark.parametrize(
    ('name', 'kernel_combine', 'memory_format'),
    [
        ('plain', 'mul', torch.contiguous_format),
        ('strided', 'add', torch.channels_last),
        ('channel filter of batch 1', 'mul', torch.channels_last),
        ('spatial filter of batch 1', 'add', torch.contiguous_format),
        ('normalised of batch 1', 'mul', torch.channels_last),
    ],
)
def test_opcheck(make_arguments, name, kernel_combine, memory_format):
    run_opcheck(make_arguments, VARIANTS[name], kernel_combine, memory_format)


@pytest.mark.slow
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@BOTH
@EVERY
def test_opcheck_of_every_combination(make_arguments, variant, kernel_combine, memory_format):
    run_opcheck(make_arguments, variant, kernel_combine, memory_format)


@pytest.mark.parametrize('region_dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('norm_gain', [None, 0.5])
def test_autocast_takes_the_regions_dtype(make_arguments, region_dtype, norm_gain):
    tensors = make_arguments(dtype=torch.float32)
    mixed = (tensors[0].to(region_dtype), *tensors[1:])
    expected = ddf.ddf(*(tensor.to(region_dtype) for tensor in tensors), norm_gain=norm_gain)
    with torch.autocast('cpu', region_dtype):
        output = ddf.ddf(*mixed, norm_gain=norm_gain)
        assert ddf.ddf(*(tensor.double() for tensor in tensors)).dtype == torch.float64
    assert output.dtype == region_dtype
    assert torch.equal(output, expected)
    output.float().sum().backward()
    assert tensors[1].grad.dtype == torch.float32


def test_torchs_counter_knows_the_flops(make_arguments):
    tensors = [tensor.detach().to('meta').requires_grad_() for tensor in make_arguments(channels=8, stride=2, head=2)]
    with FlopCounterMode(display=False) as counter:
        output = ddf.ddf(*tensors, stride=2, head=2)
        forward = counter.get_total_flops()
        output.sum().backward()
    assert forward == 2 * output.numel() * 9
    assert counter.get_total_flops() == 4 * forward  # each of the three gradients takes as much


def test_counter_may_be_imported_later():
    """Importing ddf does not import it, for the time that takes."""
    script = """
import sys, torch, ddf
assert 'torch.utils.flop_counter' not in sys.modules
from torch.utils.flop_counter import flop_registry
assert {torch.ops.ddf.forward, torch.ops.ddf.input_gradient, torch.ops.ddf.filter_gradients} <= set(flop_registry)
"""
    subprocess.run([sys.executable, '-c', script], check=True)
