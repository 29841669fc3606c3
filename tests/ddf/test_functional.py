"""The public function: call forms, a literal sum as ground truth, semantics at the edges, errors."""

import itertools

import pytest
import torch

import ddf
from ddf import check


def literal_sum(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine):
    """The definition, pixel by pixel, with nothing clever."""
    batch, channels, height, width = input.shape
    k = channel_filter.shape[-1]
    grid = (height - 1) // stride + 1, (width - 1) // stride + 1
    output = torch.zeros(batch, channels, *grid, dtype=input.dtype)
    for b, c, y, x, i, j in itertools.product(*map(range, (batch, channels, *grid, k, k))):
        row, column = y * stride + (i - k // 2) * dilation, x * stride + (j - k // 2) * dilation
        if 0 <= row < height and 0 <= column < width:
            spatial = spatial_filter[b % len(spatial_filter), (c * head // channels) * k * k + i * k + j, y, x]
            channel = channel_filter[b % len(channel_filter), c, i, j]
            weight = channel * spatial if kernel_combine == 'mul' else channel + spatial
            output[b, c, y, x] += weight * input[b, c, row, column]
    return output


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize(
    ('height', 'width', 'kernel_size', 'dilation', 'stride', 'head'),
    [
        (5, 4, 3, 1, 1, 1),
        (5, 6, 3, 2, 2, 2),
        (3, 2, 7, 1, 1, 4),
        (7, 5, 5, 3, 3, 2),
        (1, 1, 3, 1, 2, 1),
        (4, 4, 9, 50, 1, 1),
    ],
)
def test_definition(backend, make_arguments, height, width, kernel_size, dilation, stride, head, kernel_combine):
    tensors = make_arguments(2, 4, height, width, kernel_size, stride, head)
    output = ddf.ddf(*tensors, kernel_size, dilation, stride, head, kernel_combine)
    expected = literal_sum(*(tensor.detach() for tensor in tensors), dilation, stride, head, kernel_combine)
    torch.testing.assert_close(output.detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize(('channel_batch', 'spatial_batch'), [(1, 3), (3, 1), (1, 1)])
def test_filters_of_batch_1_serve_every_image(backend, make_arguments, channel_batch, spatial_batch, kernel_combine):
    sizes = {'batch': 3, 'head': 2, 'stride': 2, 'channel_batch': channel_batch, 'spatial_batch': spatial_batch}
    tensors = make_arguments(**sizes)
    settings = {'stride': 2, 'head': 2, 'kernel_combine': kernel_combine}
    output = ddf.ddf(*tensors, **settings)
    expected = literal_sum(*(tensor.detach() for tensor in tensors), 1, 2, 2, kernel_combine)
    torch.testing.assert_close(output.detach(), expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output.sin().sum(), tensors)
    for_each_image = ddf.ddf(
        tensors[0], *(filter.repeat(3 // len(filter), 1, 1, 1) for filter in tensors[1:]), **settings
    )
    for gradient, summed in zip(gradients, torch.autograd.grad(for_each_image.sin().sum(), tensors)):
        torch.testing.assert_close(gradient, summed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize('spatial_batch', [1, 2])
def test_norm_gain_normalises_the_taps(backend, make_arguments, spatial_batch, kernel_combine):
    tensors = make_arguments(head=2, stride=2, spatial_batch=spatial_batch)
    settings = {'stride': 2, 'head': 2, 'kernel_combine': kernel_combine}
    taps = tensors[2].unflatten(1, (2, 9))
    normalised = (taps - taps.mean(2, keepdim=True)) / (taps.std(2, keepdim=True) + 1e-10) * 0.7
    output = ddf.ddf(*tensors, **settings, norm_gain=0.7)
    expected = ddf.ddf(*tensors[:2], normalised.flatten(1, 2), **settings)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    gradients = torch.autograd.grad(output.sin().sum(), tensors)
    for gradient, exact in zip(gradients, torch.autograd.grad(expected.sin().sum(), tensors)):
        torch.testing.assert_close(gradient, exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equal_taps_are_normalised_to_zero(backend, make_arguments, dtype):
    input, channel_filter, _ = make_arguments(dtype=dtype)
    spatial_filter = torch.full((2, 9, 6, 7), 0.1, dtype=dtype, requires_grad=True)  # the mean of nine 0.1 is not 0.1
    output = ddf.ddf(input, channel_filter, spatial_filter, norm_gain=0.5)
    assert output.eq(0).all()
    output.sum().backward()
    assert spatial_filter.grad.isfinite().all()  # float16 could not hold 1 / eps and takes 0


def test_norm_gain_of_halves_is_computed_in_float32(backend, make_arguments):
    tensors = make_arguments(dtype=torch.float16)
    exact = ddf.ddf(*(tensor.double() for tensor in tensors), norm_gain=0.7)
    output = ddf.ddf(*tensors, norm_gain=0.7)
    assert check.error(output.detach(), exact.detach(), torch.float16, torch.contiguous_format) <= 1e-6


def test_both_published_call_forms(make_arguments):
    tensors = make_arguments()
    expected = ddf.ddf(*tensors, kernel_size=3, dilation=1, stride=1, head=1, kernel_combine='add')
    assert torch.equal(ddf.ddf(*tensors, 3, 1, 1, 1, 'add'), expected)
    assert torch.equal(ddf.ddf(*tensors, 3, 1, 1, 'add'), expected)
    assert not torch.equal(ddf.ddf(*tensors, 3, 1, 1, 'mul'), expected)


@pytest.mark.parametrize('sizes', [{'batch': 0}, {'height': 0}, {'width': 0}, {'channels': 0}])
def test_empty_input(backend, make_arguments, sizes):
    tensors = make_arguments(**sizes)
    output = ddf.ddf(*tensors)
    assert output.shape == tensors[0].shape
    output.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in tensors)


def test_channels_last_and_sliced_inputs(backend, make_arguments):
    input, channel_filter, spatial_filter = make_arguments(channels=6, stride=2)
    expected = ddf.ddf(input, channel_filter, spatial_filter, stride=2)
    channels_last = input.detach().contiguous(memory_format=torch.channels_last)
    output = ddf.ddf(channels_last, channel_filter, spatial_filter, stride=2)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()
    torch.testing.assert_close(output, expected)
    wider = torch.cat([input, input], dim=3).detach()[..., : input.shape[3]]
    assert not wider.is_contiguous()
    torch.testing.assert_close(ddf.ddf(wider, channel_filter, spatial_filter, stride=2), expected)


@pytest.mark.parametrize(
    ('change', 'error', 'message'),
    [
        ({'kernel_size': 4}, ValueError, 'kernel_size must be odd, got 4'),
        ({'kernel_size': 5}, ValueError, r'channel_filter must have shape .*\(2, 4, 5, 5\), got \(2, 4, 3, 3\)'),
        ({'kernel_size': (3, 3)}, TypeError, 'kernel_size must be an int'),
        ({'dilation': 0}, ValueError, 'dilation must be at least 1, got 0'),
        ({'stride': 2}, ValueError, r'spatial_filter must have shape .*\(2, 9, 3, 4\), got \(2, 9, 6, 7\)'),
        ({'stride': 1.0}, TypeError, 'stride must be an int, got 1.0'),
        ({'head': 3}, ValueError, 'head must divide the 4 channels of input, got 3'),
        ({'kernel_combine': 'multiply'}, ValueError, "kernel_combine must be 'mul' or 'add', got 'multiply'"),
        ({'kernel_combine': None}, ValueError, "kernel_combine must be 'mul' or 'add', got None"),
        ({'head': None}, TypeError, 'head must be an int, got None'),
        ({'dilation': True}, TypeError, 'dilation must be an int, got True'),
        ({'dilation': 2**31}, ValueError, 'dilation must be at most 2147483647, got 2147483648'),
        ({'norm_gain': '1'}, TypeError, 'norm_gain must be a number or None, got str'),
        ({'norm_gain': True}, TypeError, 'norm_gain must be a number or None, got bool'),
        (
            {'norm_gain': torch.ones(9)},
            TypeError,
            'got Tensor; a scale to be learned belongs to the filters: normalise',
        ),
        ({'norm_gain': float('inf')}, ValueError, 'norm_gain must be finite, got inf'),
    ],
)
def test_bad_settings(make_arguments, change, error, message):
    with pytest.raises(error, match=message):
        ddf.ddf(*make_arguments(), **change)


@pytest.mark.parametrize(
    ('position', 'replace', 'error', 'message'),
    [
        (0, lambda x: x[0], ValueError, 'input must have 4 dimensions'),
        (0, lambda x: x.long(), TypeError, 'input must have a floating dtype of 16, 32 or 64 bits, got torch.int64'),
        (1, lambda c: c.float(), TypeError, 'one dtype outside of an autocast region'),
        (1, lambda c: c.flatten(2), ValueError, 'channel_filter must have 4 dimensions'),
        (
            0,
            lambda x: x.to(torch.float8_e4m3fn),
            TypeError,
            'floating dtype of 16, 32 or 64 bits, got torch.float8_e4m3fn',
        ),
        (0, lambda x: x.to_sparse(), TypeError, 'input must be dense, got layout torch.sparse_coo'),
        (1, lambda c: c[:0], ValueError, r'channel_filter must have shape .*\(2, 4, 3, 3\), got \(0, 4, 3, 3\)'),
        (
            1,
            lambda c: torch.cat([c, c]),
            ValueError,
            r'got \(4, 4, 3, 3\); a filter for the whole batch may have batch 1',
        ),
        (2, lambda s: s.to('meta'), ValueError, 'spatial_filter must be on the device of input, cpu, got meta'),
        (2, lambda s: s.tolist(), TypeError, 'spatial_filter must be a torch.Tensor, got list'),
    ],
)
def test_bad_tensors(make_arguments, position, replace, error, message):
    tensors = list(make_arguments())
    tensors[position] = replace(tensors[position].detach())
    with pytest.raises(error, match=message):
        ddf.ddf(*tensors)


def test_norm_gain_needs_several_taps(make_arguments):
    with pytest.raises(ValueError, match='norm_gain needs a kernel_size of at least 2'):
        ddf.ddf(*make_arguments(kernel_size=1), kernel_size=1, norm_gain=1.0)
