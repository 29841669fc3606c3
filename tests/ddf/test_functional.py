"""The public function: call forms, a literal sum as ground truth, semantics at the edges, errors."""

import itertools

import pytest
import torch

import ddf


def literal_sum(input, channel_filter, spatial_filter, dilation, stride, head, kernel_combine):
    """The definition, pixel by pixel, with nothing clever."""
    batch, channels, height, width = input.shape
    k = channel_filter.shape[-1]
    grid = (height - 1) // stride + 1, (width - 1) // stride + 1
    output = torch.zeros(batch, channels, *grid, dtype=input.dtype)
    for b, c, y, x, i, j in itertools.product(*map(range, (batch, channels, *grid, k, k))):
        row, column = y * stride + (i - k // 2) * dilation, x * stride + (j - k // 2) * dilation
        if 0 <= row < height and 0 <= column < width:
            spatial = spatial_filter[b, (c * head // channels) * k * k + i * k + j, y, x]
            channel = channel_filter[b, c, i, j]
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
    ],
)
def test_bad_settings(make_arguments, change, error, message):
    with pytest.raises(error, match=message):
        ddf.ddf(*make_arguments(), **change)


@pytest.mark.parametrize(
    ('position', 'replace', 'error', 'message'),
    [
        (0, lambda x: x[0], ValueError, 'input must have 4 dimensions'),
        (0, lambda x: x.long(), TypeError, 'input must have a floating dtype, got torch.int64'),
        (1, lambda c: c.float(), TypeError, 'one dtype outside of an autocast region'),
        (1, lambda c: c.flatten(2), ValueError, 'channel_filter must have 4 dimensions'),
        (1, lambda c: c[:1], ValueError, r'channel_filter must have shape .*\(2, 4, 3, 3\)'),
        (2, lambda s: s.to('meta'), ValueError, 'spatial_filter must be on the device of input, cpu, got meta'),
        (2, lambda s: s.tolist(), TypeError, 'spatial_filter must be a torch.Tensor, got list'),
    ],
)
def test_bad_tensors(make_arguments, position, replace, error, message):
    tensors = list(make_arguments())
    tensors[position] = replace(tensors[position].detach())
    with pytest.raises(error, match=message):
        ddf.ddf(*tensors)
