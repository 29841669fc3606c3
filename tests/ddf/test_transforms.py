"""torch.func over the operation: every transform and nesting of them against plain torch under the same transform."""

import itertools

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, stack_module_state, vjp, vmap

import ddf
from ddf import operators, reference

VARIANTS = {
    'mul': ('mul', None, {}),
    'add': ('add', None, {}),
    'mul, filters of batch 1': ('mul', None, {'channel_batch': 1, 'spatial_batch': 1}),
    'add, normalised': ('add', 0.7, {}),
    'mul, normalised of batch 1': ('mul', 0.7, {'spatial_batch': 1}),
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def variant(request, make_arguments):
    """The operation, the definition in plain torch, and a function that makes arguments for both."""
    kernel_combine, norm_gain, batches = request.param

    def operation(*tensors):
        return ddf.ddf(*tensors, head=2, kernel_combine=kernel_combine, norm_gain=norm_gain)

    def definition(*tensors):
        return reference.forward(*tensors, 1, 1, 2, kernel_combine, norm_gain)

    def make(**sizes):
        sizes = {**sizes, **(batches if sizes.get('batch') != 1 else {})}
        return tuple(tensor.detach() for tensor in make_arguments(**sizes, head=2))

    return operation, definition, make


def summed(function):
    return lambda *tensors: function(*tensors).sin().sum()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_grad_vjp_and_jvp(variant):
    operation, definition, make = variant
    tensors = make(height=3, width=4)
    every = (0, 1, 2)
    assert_close(grad(summed(operation), every)(*tensors), grad(summed(definition), every)(*tensors))
    along = tuple(tensor.cos() for tensor in tensors)
    assert_close(jvp(operation, tensors, along), jvp(definition, tensors, along))
    assert_close(linearize(operation, *tensors)[1](*along), jvp(definition, tensors, along)[1])
    output, pull = vjp(operation, *tensors)
    assert_close(pull(output.cos()), vjp(definition, *tensors)[1](output.cos()))


@pytest.mark.parametrize('index', [0, 1, 2])
def test_jacobians_and_hessians(variant, index):
    operation, definition, make = variant
    tensors = make(batch=1, channels=2, height=2, width=2)
    jacobian = jacfwd(definition, index)(*tensors)
    assert_close(jacrev(operation, index)(*tensors), jacobian)
    assert_close(jacfwd(operation, index)(*tensors), jacobian)
    expected = hessian(summed(definition), index)(*tensors)
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        assert_close(outer(inner(summed(operation), index), index)(*tensors), expected)


@pytest.mark.parametrize(
    'dims', [(0, None, None), (None, 1, None), (None, None, -1), (0, 0, 0), (2, -1, None), (None, 0, 0)], ids=str
)
def test_vmap(variant, dims):
    operation, definition, make = variant
    length = 3
    tensors = [
        tensor if dim is None else torch.stack([tensor * (i + 1) for i in range(length)], dim)
        for tensor, dim in zip(make(height=3, width=4), dims)
    ]

    def of_each(function):
        elements = (
            [tensor if dim is None else tensor.select(dim, i) for tensor, dim in zip(tensors, dims)]
            for i in range(length)
        )
        return [function(*element) for element in elements]

    assert_close(vmap(operation, dims)(*tensors), torch.stack(of_each(definition)))
    every = (0, 1, 2)
    of_samples = vmap(grad(summed(operation), every), dims)(*tensors)
    for gradient, expected in zip(of_samples, zip(*of_each(grad(summed(definition), every)))):
        assert_close(gradient, torch.stack(expected))
    of_batch = grad(summed(vmap(operation, dims)), every)(*tensors)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    total = sum(output.sin().sum() for output in of_each(definition))
    for gradient, expected in zip(of_batch, torch.autograd.grad(total, leaves)):
        assert_close(gradient, expected)


def test_nested_vmap(variant):
    operation, definition, make = variant
    tensors = [torch.stack([torch.stack([t * (i - j) for i in range(2)]) for j in range(3)]) for t in make(height=3)]
    expected = torch.stack(
        [torch.stack([definition(*(tensor[i, j] for tensor in tensors)) for j in range(2)]) for i in range(3)]
    )
    assert_close(vmap(vmap(operation))(*tensors), expected)


def test_vmap_makes_one_call(make_arguments, monkeypatch):
    calls = []
    operator = operators.forward
    monkeypatch.setattr(
        'ddf.transforms.forward',
        lambda *arguments: calls.append([t.shape[0] for t in arguments[:3]]) or operator(*arguments),
    )
    images, channel_filter, spatial_filter = (tensor.detach() for tensor in make_arguments(batch=5, channel_batch=1))
    vmap(lambda x, s: ddf.ddf(x[None], channel_filter, s[None]))(images, spatial_filter)
    assert calls == [[5, 1, 5]]


def test_direct_calls_of_the_operators(make_arguments):
    """Without ddf.ddf, as in a graph that torch.export saved."""
    tensors = tuple(tensor.detach() for tensor in make_arguments(height=3))
    settings = (1, 1, 1, 'mul', None)
    operator = torch.ops.ddf.forward
    for function in (
        lambda transform, forward: transform(lambda *t: forward(*t, *settings).sin().sum(), (0, 1, 2))(*tensors),
        lambda _, forward: jvp(lambda *t: forward(*t, *settings), tensors, tensors)[1],
        lambda _, forward: vmap(lambda x: forward(x, *tensors[1:], *settings))(torch.stack(tensors[:1] * 3)),
    ):
        assert_close(function(grad, operator), function(grad, reference.forward))


@pytest.mark.parametrize('build', [lambda: ddf.DDFPack(4, stride=2), lambda: ddf.DDFUpPack(4)])
def test_gradients_of_samples_through_a_module(build):
    module = build().double()
    images = torch.randn(3, 4, 5, 4, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(parameters, image):
        return functional_call(module, parameters, (image[None],)).sin().sum()

    of_samples = vmap(grad(loss), (None, 0))(parameters, images)
    for index, image in enumerate(images):
        expected = torch.autograd.grad(module(image[None]).sin().sum(), list(module.parameters()))
        for gradient, exact in zip(of_samples.values(), expected):
            assert_close(gradient[index], exact)


def test_ensemble_of_modules():
    modules = [ddf.DDFPack(4).double() for _ in range(3)]
    parameters, buffers = stack_module_state(modules)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    outputs = vmap(lambda p, b: functional_call(modules[0], (p, b), (x,)))(parameters, buffers)
    assert_close(outputs, torch.stack([module(x) for module in modules]))
