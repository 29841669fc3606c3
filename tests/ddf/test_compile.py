"""torch.compile: whole graphs forward and backward, sizes that change, the real strides."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, jvp, vmap

import ddf

SIZES = [(2, 8, 9), (3, 11, 12), (5, 7, 13), (4, 32, 6)]  # batch, height, width


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compare(compiled, plain, tensors):
    gradients = torch.autograd.grad(compiled(*tensors).sin().sum(), tensors)
    for gradient, expected in zip(gradients, torch.autograd.grad(plain(*tensors).sin().sum(), tensors)):
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize(
    ('settings', 'batches'),
    [
        ({}, {}),
        ({'stride': 2, 'head': 2, 'kernel_combine': 'add'}, {'channel_batch': 1}),
        ({'norm_gain': 0.5, 'dilation': 2, 'stride': 2}, {}),
    ],
)
def test_one_graph_for_all_sizes(make_arguments, settings, batches):
    """The first sizes are compiled as they are, the second ones for any."""
    counter = CompileCounterWithBackend('aot_eager')

    def function(*tensors):
        return ddf.ddf(*tensors, **settings)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    shape = {key: settings[key] for key in ('stride', 'head') if key in settings}
    for batch, height, width in SIZES:
        compare(compiled, function, make_arguments(batch, 4, height, width, **shape, **batches, dtype=torch.float32))
    assert counter.frame_count == 2


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_layouts(make_arguments, memory_format):
    compiled = torch.compile(ddf.ddf, fullgraph=True, backend='aot_eager')
    input, channel_filter, spatial_filter = make_arguments(dtype=torch.float32)
    maps = (map.detach().contiguous(memory_format=memory_format) for map in (input, spatial_filter))
    tensors = [tensor.requires_grad_() for tensor in (*maps, channel_filter)]

    def gradients(function):
        output = function(tensors[0], tensors[2], tensors[1])
        return output, *torch.autograd.grad(output.square().sum(), tensors)

    for actual, expected in zip(gradients(compiled), gradients(ddf.ddf)):
        torch.testing.assert_close(actual, expected)
        assert actual.stride() == expected.stride()


def test_transforms_inside_of_a_graph(make_arguments):
    images, channel_filter, spatial_filter = (tensor.detach() for tensor in make_arguments(3, spatial_batch=1))

    def gradients(images, channel_filter):
        def loss(image, filter):
            return ddf.ddf(image[None], filter[None], spatial_filter, norm_gain=0.5).sin().sum()

        return vmap(grad(loss, (0, 1)))(images, channel_filter)

    compiled = torch.compile(gradients, fullgraph=True, backend='aot_eager')
    for actual, expected in zip(compiled(images, channel_filter), gradients(images, channel_filter)):
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('gradients', [True, False])
@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_forward_mode_inside_of_a_graph(make_arguments, backend, gradients):
    tensors = [tensor.detach() for tensor in make_arguments()]

    def change(*tensors):
        return jvp(lambda *arguments: ddf.ddf(*arguments, norm_gain=0.5), tensors, tensors)

    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(torch.compile(change, fullgraph=True, backend=backend)(*tensors), change(*tensors))


@pytest.mark.parametrize(
    'build',
    [
        lambda: ddf.DDFPack(8, stride=2, head=2),
        lambda: ddf.DDFPack(8, branches='spatial'),
        lambda: ddf.DDFUpPack(4),
        lambda: ddf.DDFUpPack(4, joint_channels=4, branches='channel'),
        lambda: ddf.FilterNorm(2, 3, 'spatial', running_std=True),
    ],
)
def test_modules(build):
    torch.manual_seed(0)
    module = build().double()
    channels = getattr(module, 'in_channels', 2) if not isinstance(module, ddf.FilterNorm) else 18
    x = torch.randn(2, channels, 6, 7, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    leaves = [x, *module.parameters()]
    gradients = torch.autograd.grad(compiled(x).sin().sum(), leaves)
    for gradient, expected in zip(gradients, torch.autograd.grad(module(x).sin().sum(), leaves)):
        torch.testing.assert_close(gradient, expected)


@pytest.fixture
def graphs():
    """What the backend was given: an entry for each graph."""
    return []


@pytest.fixture
def compiled(graphs):
    """torch.compile to whole graphs."""

    def backend(graph, inputs):
        graphs.append(graph.code)
        return aot_eager(graph, inputs)

    return lambda function: torch.compile(function, fullgraph=True, backend=backend)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('settings', [{}, {'stride': 2, 'head': 2, 'kernel_combine': 'add', 'kernel_size': 5}])
def test_module_in_evaluation_is_one_call(compiled, graphs, settings, memory_format):
    torch.manual_seed(0)
    module = ddf.DDFPack(4, **settings).eval()
    call = compiled(module)
    with torch.no_grad():
        for batch, height, width in SIZES:
            x = torch.randn(batch, 4, height, width).to(memory_format=memory_format)
            output, expected = call(x), module(x)
            torch.testing.assert_close(output, expected)
            assert output.stride() == expected.stride()
    assert len(graphs) == 2
    assert all('dynamic_filter' in graph for graph in graphs)


def with_gradients(module, x):
    with torch.enable_grad():
        return module(x)


def in_half_precision(module, x):
    with torch.autocast('cpu', torch.bfloat16):
        return module(x)


def mapped(module, x):
    return vmap(module.forward)(x[None])


def in_forward_mode(module, x):
    return jvp(module.forward, (x,), (x,))[1]


def transposed(module, x):
    return module(x.transpose(2, 3))


@pytest.mark.parametrize(
    'use',
    [with_gradients, in_half_precision, mapped, in_forward_mode, transposed],
    ids=lambda use: use.__name__,
)
def test_layers_serve_where_more_is_asked(compiled, graphs, use):
    torch.manual_seed(0)
    module, x = ddf.DDFPack(4).eval(), torch.randn(2, 4, 6, 7)
    with torch.no_grad():
        torch.testing.assert_close(compiled(lambda x: use(module, x))(x), use(module, x))
    assert len(graphs) == 1
    assert 'dynamic_filter' not in graphs[0]


def test_layers_serve_where_sizes_are_not_known(compiled, graphs):
    module, x = ddf.DDFPack(4).eval(), torch.randn(2, 4, 6, 7)
    torch._dynamo.decorators.mark_unbacked(x, 0)
    with torch.no_grad():
        torch.testing.assert_close(compiled(module)(x), module(x))
    assert 'dynamic_filter' not in graphs[0]


@pytest.mark.slow
def test_inductor_equals_eager():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), ddf.DDFPack(8, stride=2), torch.nn.ReLU())
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = model.double().to(memory_format=memory_format)
        x = torch.randn(2, 3, 12, 14, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
        compiled = torch.compile(model, fullgraph=True)
        leaves = [x, *model.parameters()]
        output, expected = compiled(x), model(x)
        torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
        gradients = torch.autograd.grad(output.sin().sum(), leaves)
        for gradient, exact in zip(gradients, torch.autograd.grad(expected.sin().sum(), leaves)):
            torch.testing.assert_close(gradient, exact, rtol=1e-10, atol=1e-10)
        with torch.no_grad():
            model.eval()
            torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-10, atol=1e-10)
            model.train()
