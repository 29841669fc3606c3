"""The modules' gradients in one call: equal to those of their layers, and left to these wherever more is asked."""

from unittest import mock

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ddf import DDFPack, fused_training, guards
from ddf.schemas import dynamic_filter_gradients, dynamic_filter_predictions

from .module_cases import LAYOUTS, PACKS

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')
TOLERANCES = {torch.float32: 3e-5, torch.float64: 1e-13}


@pytest.fixture
def calls():
    """Names of the operators in the order of their calls."""
    seen = []

    def noted(operator):
        def call(*arguments):
            seen.append(operator.overloadpacket.__name__)
            return operator(*arguments)

        return call

    with (
        mock.patch.object(fused_training, 'dynamic_filter_predictions', noted(dynamic_filter_predictions)),
        mock.patch.object(fused_training, 'dynamic_filter_gradients', noted(dynamic_filter_gradients)),
    ):
        yield seen


ONE_STEP = ['dynamic_filter_predictions', 'dynamic_filter_gradients']


def by_layers(function, *arguments):
    with mock.patch.object(guards, 'has_kernel', return_value=False):
        return function(*arguments)


def output_and_gradients(pack, x, grad_output):
    """The output, and the gradients of the map and of every parameter."""
    inputs = x, *pack.parameters()
    output = pack(x)
    return output, *torch.autograd.grad(output, inputs, grad_output)


def assert_all_equal(results, expected, tolerance):
    for result, exact in zip(results, expected, strict=True):
        assert result.shape == exact.shape
        assert (result - exact).abs().max() <= tolerance * exact.abs().max()


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize(('shape', 'settings'), PACKS)
def test_equals_the_layers(calls, shape, settings, dtype, memory_format):
    pack = DDFPack(shape[1], dtype=dtype, **settings)
    x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format).requires_grad_()
    grad_output = torch.randn_like(pack.filters(x)[1][:, :1]) * torch.randn(1, shape[1], 1, 1, dtype=dtype)
    results = output_and_gradients(pack, x, grad_output)
    assert calls == ONE_STEP
    x = x.detach().double().requires_grad_()
    expected = by_layers(output_and_gradients, pack.double(), x, grad_output.double())
    assert all(result.is_contiguous(memory_format=memory_format) for result in results[:2])
    assert_all_equal(results, expected, TOLERANCES[dtype])


@LAYOUTS
@pytest.mark.parametrize('batch', [1, 3, 8])
@pytest.mark.parametrize('stride', [1, 2])
def test_threads_change_no_bit(batch, stride, memory_format):
    pack = DDFPack(48, stride=stride)
    x = torch.randn(batch, 48, 23, 20).to(memory_format=memory_format).requires_grad_()
    grad_output = torch.randn_like(pack(x))
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(output_and_gradients(pack, x, grad_output))
    torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for other in results[1:] for pair in zip(results[0], other, strict=True))


def test_in_evaluation_and_with_frozen_parameters(calls):
    pack, x = DDFPack(8).eval(), torch.randn(2, 8, 5, 6)
    for parameter in pack.channel_branch.parameters():
        parameter.requires_grad_(False)
    pack(x).sum().backward()  # the gradient of a sum is one element, expanded
    gradients = [parameter.grad for parameter in pack.spatial_branch.parameters()]
    pack.zero_grad()
    by_layers(lambda: pack(x).sum().backward())
    assert calls == ONE_STEP
    assert_all_equal(gradients, [parameter.grad for parameter in pack.spatial_branch.parameters()], 1e-5)
    assert all(parameter.grad is None for parameter in pack.channel_branch.parameters())


def test_filters_of_equal_taps():
    """FilterNorm divides by 1e-10 there: the gradients of both branches' layers are large, and right."""
    pack = DDFPack(8, dtype=torch.float64)
    for layer in (pack.spatial_branch[0], pack.channel_branch[3]):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 0.1)
    nn.init.ones_(pack.spatial_branch[0].weight[:1].data)  # of this filter the taps differ: not all gradients are zero
    x, grad_output = torch.randn(2, 8, 6, 6, dtype=torch.float64, requires_grad=True), torch.randn(2, 8, 6, 6).double()
    results = output_and_gradients(pack, x, grad_output)
    expected = by_layers(output_and_gradients, pack, x, grad_output)
    for result, exact in zip(results, expected, strict=True):
        torch.testing.assert_close(result, exact, rtol=1e-9, atol=1e-9)
    assert expected[7].abs().max() > 1e6


@LAYOUTS
def test_what_is_not_a_number_stays_in_its_image(memory_format):
    pack, x = DDFPack(8), torch.randn(5, 8, 9, 9)
    x[1, 3, 0, 0] = float('nan')
    x = x.to(memory_format=memory_format).requires_grad_()
    (grad,) = torch.autograd.grad(pack(x).sum(), x)
    assert grad[1].isnan().all()
    assert grad[[0, 2, 3, 4]].isfinite().all()


def test_keeps_little_besides_the_map():
    """For the backward pass: the map, logits, and what has no pixels."""
    pack, x = DDFPack(64), torch.randn(2, 64, 20, 20, requires_grad=True)
    parameters = {parameter.data_ptr() for parameter in pack.parameters()}
    sizes = {}

    def note(tensor):
        if tensor.data_ptr() not in parameters:
            sizes[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        pack(x)
    maps = [size for size in sizes.values() if size >= x.numel() / 16]
    assert sorted(maps) == [2 * 9 * 20 * 20, x.numel()]


@pytest.mark.parametrize('settings', [{}, {'stride': 2, 'head': 2, 'kernel_combine': 'add'}], ids=str)
def test_derivatives_of_the_gradients(calls, settings):
    pack = DDFPack(4, dtype=torch.float64, se_ratio=1, **settings)
    with torch.no_grad():
        for parameter in pack.parameters():
            parameter.normal_()
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in pack.named_parameters()]

    def call(x, *parameters):
        layers = dict(zip(names, parameters))
        return fused_training.filter_and_record(
            x, [layers[name] for name in names], (3, 1, pack.stride, pack.head, pack.kernel_combine, 0.5)
        )

    arguments = x, *pack.parameters()
    assert torch.autograd.gradcheck(call, arguments)
    assert torch.autograd.gradgradcheck(call, arguments)
    assert 'dynamic_filter_gradients' in calls


def test_batched_gradients():
    pack, x = DDFPack(4).double(), torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    output, grads = pack(x), torch.randn(5, 1, 4, 3, 3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(output, x, grads, is_grads_batched=True, retain_graph=True)
    single = [torch.autograd.grad(output, x, grad, retain_graph=True)[0] for grad in grads]
    torch.testing.assert_close(batched, torch.stack(single))


def test_gradient_along_a_change_is_that_of_the_layers():
    """Forward mode entered after the forward pass: over the gradient of the output alone."""
    pack, x = DDFPack(4).double(), torch.randn(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    output, grad, change = pack(x), *torch.randn(2, 1, 4, 3, 3, dtype=torch.float64)
    with forward_ad.dual_level():
        (dual,) = torch.autograd.grad(output, x, forward_ad.make_dual(grad, change), retain_graph=True)
        tangent = forward_ad.unpack_dual(dual).tangent
    (expected,) = torch.autograd.grad(output, x, change)  # the gradient is linear in that of the output
    torch.testing.assert_close(tangent, expected)


def test_checkpointing(calls):
    pack, x = DDFPack(8), torch.randn(2, 8, 5, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(pack(x).square().sum(), x)
    (grad,) = torch.autograd.grad(checkpoint(pack, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(grad, expected)
    assert calls == [*ONE_STEP, ONE_STEP[0], *ONE_STEP]


def test_map_changed_after_the_forward_pass_is_noticed():
    pack, x = DDFPack(8), torch.randn(2, 8, 5, 6)
    output = pack(x)
    x.zero_()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        output.sum().backward()


def autocast(pack, x):
    with torch.autocast('cpu', torch.bfloat16):
        pack(x).sum().backward()


def transformed(pack, x):
    torch.func.grad(lambda x: pack(x).sum())(x)


def forward_mode(pack, x):
    torch.func.jvp(pack, (x,), (x,))


def compiled_step(pack, x):
    torch.compile(pack, backend='aot_eager', fullgraph=True)(x).sum().backward()


def counted(pack, x):
    with FlopCounterMode(display=False) as counter:
        pack(x).sum().backward()
    assert counter.get_total_flops() > 0


def half_precision(pack, x):
    pack.bfloat16()(x.bfloat16()).sum().backward()


def other_strides(pack, x):
    pack(x.transpose(2, 3)).sum().backward()


def hooked(pack, x):
    pack.channel_branch[3].register_full_backward_hook(lambda *_: None)
    pack(x).sum().backward()


def without_bias(pack, x):
    pack.spatial_branch[0] = nn.Conv2d(8, 9, 1, bias=False)
    pack(x).sum().backward()


def within_norms(pack, x):
    norm, activation = nn.BatchNorm2d(8).eval(), nn.ReLU()
    assert pack.in_one_call(x, (norm, activation), None) is None


@pytest.mark.parametrize(
    'use',
    [
        *(autocast, transformed, forward_mode, compiled_step, counted, half_precision, other_strides, hooked),
        *(without_bias, within_norms),
    ],
    ids=lambda use: use.__name__,
)
def test_layers_serve_where_more_is_asked(calls, use):
    pack, x = DDFPack(8), torch.randn(2, 8, 5, 6)
    pack(x).sum().backward()
    assert calls == ONE_STEP, 'or what follows would prove nothing'
    use(pack, x)
    assert calls == ONE_STEP


def test_counted_as_the_layers():
    pack, x = DDFPack(8, stride=2, head=2), torch.randn(2, 8, 9, 7, requires_grad=True)
    seen = []

    def note(operator):
        return lambda *arguments: seen.append((operator, arguments)) or operator(*arguments)

    with (
        mock.patch.object(fused_training, 'dynamic_filter_predictions', note(dynamic_filter_predictions)),
        mock.patch.object(fused_training, 'dynamic_filter_gradients', note(dynamic_filter_gradients)),
    ):
        pack(x).sum().backward()
    with FlopCounterMode(display=False) as counter:
        output = pack(x)
        forward_flops = counter.get_total_flops()
        output.sum().backward()
        all_flops = counter.get_total_flops()
    flops = []
    for operator, arguments in seen:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            operator(*arguments)
        flops.append(counter.get_total_flops())
    assert flops == [forward_flops, all_flops - forward_flops]


@LAYOUTS
def test_shapes_for_tracing(memory_format):
    pack = DDFPack(8, stride=2).double()
    x = torch.randn(2, 8, 9, 7).double().to(memory_format=memory_format)
    weights = [parameter.detach() for parameter in pack.parameters()]
    settings = 3, 1, 2, 1, 'mul', 0.5
    torch.library.opcheck(dynamic_filter_predictions, (x, *weights, *settings), test_utils='test_faketensor')
    output, *predictions = dynamic_filter_predictions(x, *weights, *settings)
    arguments = output, x, *weights, *predictions, *settings
    torch.library.opcheck(dynamic_filter_gradients, arguments, test_utils='test_faketensor')


def test_wrong_direct_calls_are_refused():
    x, settings = torch.randn(2, 4, 5, 5), (3, 1, 1, 1, 'mul', 0.5)
    weights = [parameter.detach() for parameter in DDFPack(4).parameters()]
    output, *predictions = dynamic_filter_predictions(x, *weights, *settings)
    good = [output, x, *weights, *predictions]
    dynamic_filter_gradients(*good, *settings)
    for position, tensor in enumerate(good):
        for wrong in (
            *(tensor[:0], tensor[..., :-1], tensor.double(), tensor.to('meta'), tensor.new_empty(()), tensor.half()),
            *([] if position == 0 else [tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1])[..., ::2]]),
        ):
            if wrong.is_contiguous() and wrong.shape == tensor.shape and wrong.dtype == tensor.dtype:
                continue
            with pytest.raises((RuntimeError, NotImplementedError)):
                dynamic_filter_gradients(*good[:position], wrong, *good[position + 1 :], *settings)
            if 0 < position < 9:
                with pytest.raises((RuntimeError, NotImplementedError)):
                    dynamic_filter_predictions(*good[1:position], wrong, *good[position + 1 : 9], *settings)
