"""The modules beyond the official numbers: filters, ablations, precision, sizes, joint inputs, errors."""

import inspect

import pytest
import torch

from ddf import DDFPack, DDFUpPack, FilterNorm, ddf

HALVES = [torch.float16, torch.bfloat16]
CHANNELS_LAST_TOO = pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.mark.parametrize('dtype', [*HALVES, torch.float32])
@pytest.mark.parametrize('shape', [(2, 2 * 9, 4, 4), (2, 2 * 9)])
@pytest.mark.parametrize('value', [0.5, 0.1])
def test_filter_norm_of_constants_is_zero_with_finite_gradients(dtype, shape, value):
    norm = FilterNorm(2, 3, 'spatial' if len(shape) == 4 else 'channel', running_std=len(shape) == 2, dtype=dtype)
    x = torch.full(shape, value, dtype=dtype, requires_grad=True)
    output = norm(x)
    assert output.dtype == dtype
    assert output.eq(0).all()
    output.backward(torch.randn(shape, dtype=dtype))
    assert x.grad.isfinite().all()


def test_filter_norm_normalises():
    x = torch.randn(2, 2 * 25, 3, 4)
    taps = FilterNorm(2, 5, 'spatial', 'relu')(x).reshape(2, 2, 25, 3, 4)
    torch.testing.assert_close(taps.mean(2), torch.zeros(2, 2, 3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(taps.std(2), torch.full((2, 2, 3, 4), 2**0.5 / 5))


@pytest.mark.parametrize(
    'settings', [{'stride': 2}, {'dilation': 2, 'head': 2}, {'kernel_size': 5, 'kernel_combine': 'add'}]
)
@pytest.mark.parametrize('size', [(1, 1), (5, 6), (7, 3)])
def test_pack_works_at_any_size(settings, size):
    pack = DDFPack(4, **settings)
    stride = settings.get('stride', 1)
    output = pack(torch.randn(2, 4, *size))
    assert output.shape == (2, 4, *((length - 1) // stride + 1 for length in size))


SETTINGS = [
    {},
    {'stride': 2, 'head': 2},
    {'kernel_size': 5, 'kernel_combine': 'add', 'dilation': 2, 'nonlinearity': 'linear'},
]


@pytest.mark.parametrize('settings', SETTINGS)
def test_pack_filters_with_what_it_calls_its_filters(settings):
    """forward leaves the normalisation of the spatial filter to the operation, filters() does not."""
    pack = DDFPack(4, **settings).double()
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64, requires_grad=True)
    channel_filter, spatial_filter = pack.filters(x)
    size, dilation, stride, head, combine = (
        getattr(pack, name) for name in ('kernel_size', 'dilation', 'stride', 'head', 'kernel_combine')
    )
    assert channel_filter.shape == (2, 4, size, size)
    taps = spatial_filter.unflatten(1, (head, size**2))
    torch.testing.assert_close(taps.std(2), torch.full_like(taps[:, :, 0], pack.spatial_branch[1].gain))
    expected = ddf(x, channel_filter, spatial_filter, size, dilation, stride, head, combine)
    assert_same_with_gradients(pack(x), expected, (x, *pack.parameters()))


def assert_same_with_gradients(actual, expected, leaves):
    torch.testing.assert_close(actual, expected)
    grad_output = torch.randn_like(expected)
    gradients = [torch.autograd.grad(output, leaves, grad_output) for output in (actual, expected)]
    for gradient, expected_gradient in zip(*gradients):
        torch.testing.assert_close(gradient, expected_gradient)


def test_normalisations_that_the_operation_does_not_know_are_called():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    pack = DDFPack(4).double()
    expected = pack(x)
    seen = []
    pack.spatial_branch[1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    torch.testing.assert_close(pack(x), expected)
    assert len(seen) == 1
    torch.testing.assert_close(seen[0], pack.filters(x)[1])
    pack = DDFPack(4).double()
    norm = pack.spatial_branch[1]
    norm.forward = lambda filters: 2 * FilterNorm.forward(norm, filters)
    torch.testing.assert_close(pack(x), ddf(x, *pack.filters(x)))
    pack.spatial_branch[1] = FilterNorm(1, 3, 'spatial', 'relu', running_std=True, running_mean=True).double()
    torch.testing.assert_close(pack(x), ddf(x, *pack.filters(x)))
    pack.spatial_branch[1] = torch.nn.Sigmoid()
    torch.testing.assert_close(pack(x), ddf(x, *pack.filters(x)))


def test_channel_branch_equals_its_layers_and_calls_those_with_hooks():
    branch = DDFPack(8).double().channel_branch
    x = torch.randn(2, 8, 5, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.Sequential(*branch)(x)
    assert_same_with_gradients(branch(x), expected, (x, *branch.parameters()))
    seen = []
    branch[3].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    torch.testing.assert_close(branch(x), expected)
    assert [tuple(output.shape) for output in seen] == [(2, 72, 1, 1)]


@pytest.mark.parametrize(
    ('index', 'layer'),
    [(1, torch.nn.Conv2d(8, 1, 3, padding=1)), (2, torch.nn.Identity()), (3, torch.nn.Conv2d(8, 72, 1, groups=8))],
)
def test_channel_branch_calls_layers_that_were_replaced(index, layer):
    branch, x = DDFPack(8, se_ratio=1 if index == 3 else 0.2).channel_branch, torch.randn(2, 8, 5, 3)
    branch[index] = layer
    torch.testing.assert_close(branch(x), torch.nn.Sequential(*branch)(x))


@pytest.mark.parametrize('stride', [1, 2])
@CHANNELS_LAST_TOO
def test_spatial_convolution_as_a_product_equals_the_module(memory_format, stride):
    pack = DDFPack(8, stride=stride).double()
    x = torch.randn(2, 8, 5, 6).double().to(memory_format=memory_format).requires_grad_()
    parameters = x, *pack.parameters()
    product = pack(x)
    seen = []
    handle = pack.spatial_branch[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    called = pack(x)
    handle.remove()
    assert len(seen) == 1
    torch.testing.assert_close(product, called)
    grad = torch.randn_like(product)
    gradients = torch.autograd.grad(product, parameters, grad)
    assert gradients[0].is_contiguous(memory_format=memory_format)
    for found, expected in zip(gradients, torch.autograd.grad(called, parameters, grad)):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('combine', ['mul', 'add'])
def test_pack_without_a_channel_branch(combine):
    pack = DDFPack(4, stride=2, head=2, kernel_combine=combine, branches='spatial')
    x = torch.randn(2, 4, 7, 6)
    channel_filter, spatial_filter = pack.filters(x)
    assert_constant_without_memory(channel_filter, 1.0 if combine == 'mul' else 0.0, (2, 4, 3, 3))
    assert {key.split('.')[0] for key in pack.state_dict()} == {'spatial_branch'}
    patches = torch.nn.functional.unfold(x, 3, padding=1, stride=2).reshape(2, 2, 2, 9, 4, 3)
    expected = (patches * spatial_filter.reshape(2, 2, 1, 9, 4, 3)).sum(3).reshape(2, 4, 4, 3)
    torch.testing.assert_close(pack(x), expected)


@pytest.mark.parametrize('combine', ['mul', 'add'])
def test_pack_without_a_spatial_branch(combine):
    pack = DDFPack(4, stride=2, head=2, kernel_combine=combine, branches='channel')
    x = torch.randn(2, 4, 7, 6)
    channel_filter, spatial_filter = pack.filters(x)
    assert_constant_without_memory(spatial_filter, 1.0 if combine == 'mul' else 0.0, (2, 18, 4, 3))
    assert {key.split('.')[0] for key in pack.state_dict()} == {'channel_branch'}
    expected = torch.nn.functional.conv2d(
        x.reshape(1, 8, 7, 6), channel_filter.reshape(8, 1, 3, 3), stride=2, padding=1, groups=8
    )
    torch.testing.assert_close(pack(x), expected.reshape(2, 4, 4, 3))


def assert_constant_without_memory(filter, value, shape):
    assert tuple(filter.shape) == shape
    assert filter.eq(value).all()
    assert filter.untyped_storage().nbytes() == filter.element_size()


@pytest.mark.parametrize('branches', ['both', 'spatial', 'channel'])
def test_up_pack_filters_each_sub_pixel(branches):
    up = DDFUpPack(4, kernel_size=5, scale_factor=2, head=2, branches=branches).double()
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    filters = up.filters(x)
    assert len(filters) == 4
    stacked = torch.stack([ddf(x, *pair, 5, head=2) for pair in filters], 2)
    expected = torch.nn.functional.pixel_shuffle(stacked.flatten(1, 2), 2)
    assert_same_with_gradients(up(x), expected, (x, *up.parameters()))
    parts = {'both': {'spatial_branch', 'channel_branch'}}.get(branches, {f'{branches}_branch'})
    assert {key.split('.')[0] for key in up.state_dict()} == parts


@pytest.mark.parametrize('dtype', HALVES)
@pytest.mark.parametrize('build', [DDFPack, DDFUpPack])
@pytest.mark.parametrize('branches', ['both', 'spatial', 'channel'])
def test_half_precision(dtype, build, branches):
    torch.manual_seed(0)
    module, x = build(8, branches=branches), torch.randn(2, 8, 7, 6)
    expected = module(x)
    x = x.to(dtype).requires_grad_()
    output = module.to(dtype)(x)
    assert output.dtype == dtype
    torch.testing.assert_close(output.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    output.sum().backward()
    assert all(leaf.grad.dtype == dtype and leaf.grad.isfinite().all() for leaf in (x, *module.parameters()))


@pytest.mark.parametrize('build', [lambda: DDFPack(8, stride=2, head=2), lambda: DDFUpPack(8, joint_channels=8)])
def test_channels_last(build):
    module = build().double()
    x = torch.randn(2, 8, 7, 6, dtype=torch.float64)
    expected = module(x)
    module = module.to(memory_format=torch.channels_last)
    output = module(x.contiguous(memory_format=torch.channels_last))
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize('branches', ['both', 'spatial', 'channel'])
@pytest.mark.filterwarnings('ignore:.*torch.jit', 'ignore::torch.jit.TracerWarning')
def test_torchscript(branches):
    x, other = torch.randn(2, 8, 7, 6), torch.randn(1, 8, 4, 9)
    pack = DDFPack(8, stride=2, branches=branches)
    for script in (torch.jit.script(pack), torch.jit.trace(pack, x)):
        torch.testing.assert_close(script(x), pack(x))
    torch.testing.assert_close(torch.jit.script(pack)(other), pack(other))


def test_pack_with_few_channels_keeps_a_hidden_one():
    assert DDFPack(3).channel_branch[1].out_channels == 1


@pytest.mark.parametrize('build', [DDFPack, DDFUpPack, lambda *size: FilterNorm(*size, 'spatial')])
def test_repr_shows_all_settings(build):
    module = build(8, 3)
    settings = inspect.signature(type(module)).parameters.keys() - {'in_channels', 'device', 'dtype'}
    assert [name for name in settings if f'{name}=' not in module.extra_repr()] == []
    assert module.extra_repr().startswith('8, ')


@pytest.mark.parametrize('build', [DDFPack, DDFUpPack])
def test_device_and_dtype_reach_every_parameter(build):
    parameters = list(build(8, device='meta', dtype=torch.bfloat16).parameters())
    assert {(parameter.device.type, parameter.dtype) for parameter in parameters} == {('meta', torch.bfloat16)}


def test_up_pack_takes_a_joint_input_of_its_own_channels_and_resolution():
    x = torch.randn(2, 4, 5, 6)
    up = DDFUpPack(4, scale_factor=2, joint_channels=3)
    guide = torch.randn(2, 3, 10, 12)
    output = up(x, guide)
    assert output.shape == (2, 4, 10, 12)
    # each sub-pixel reads its own pixels of the guide: the even rows and columns give output's even rows and columns
    changed = guide.clone()
    changed[..., 1::2, :] += 1
    difference = (up(x, changed) - output).abs().amax((0, 1))
    assert difference[0::2].max() == 0
    assert difference[1::2].min() > 0
    assert up(x, torch.randn(2, 3, 5, 6)).shape == (2, 4, 10, 12)
    assert DDFUpPack(4, scale_factor=2)(x, torch.randn(2, 4, 10, 12)).shape == (2, 4, 10, 12)
    with pytest.raises(ValueError, match=r'joint_x must have shape \(2, 3, H, W\)'):
        up(x)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: FilterNorm(2, 1, 'spatial'), 'kernel_size must be at least 2'),
        (lambda: FilterNorm(2, 3, 'pixel'), "filter_type must be 'spatial' or 'channel'"),
        (lambda: DDFPack(8, kernel_size=1), 'kernel_size must be odd and at least 3'),
        (lambda: DDFPack(8, kernel_size=4), 'kernel_size must be odd'),
        (lambda: DDFPack(8, head=3), 'head must divide in_channels=8'),
        (lambda: DDFPack(8, kernel_combine='sum'), "kernel_combine must be 'mul' or 'add'"),
        (lambda: DDFPack(8, branches='none'), "branches must be 'both', 'spatial' or 'channel', got 'none'"),
        (lambda: DDFPack(8, se_ratio=0), 'se_ratio must be positive, got 0'),
        (lambda: DDFPack(0), 'in_channels must be at least 1, got 0'),
        (lambda: DDFPack(8, se_ratio='0.2'), "se_ratio must be a number, got '0.2'"),
        (lambda: DDFPack(8, stride=2.0), r'stride must be an int, got 2.0 \(float\)'),
        (lambda: DDFUpPack(8, dw_kernel_size=2), 'dw_kernel_size must be odd'),
        (lambda: DDFUpPack(8, scale_factor=0), 'scale_factor must be at least 1'),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()
