"""The modules beyond the official numbers: precision, sizes, joint inputs, errors."""

import pytest
import torch

from ddf import DDFPack, DDFUpPack, FilterNorm


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_filter_norm_of_constants_is_zero_with_finite_gradients(dtype):
    x = torch.full((2, 9, 4, 4), 0.5, dtype=dtype, requires_grad=True)
    output = FilterNorm(1, 3, 'spatial', dtype=dtype)(x)
    assert output.dtype == dtype
    assert output.eq(0).all()
    output.sum().backward()
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


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_pack_keeps_half_precision(dtype):
    x = torch.randn(2, 8, 6, 6, dtype=dtype)
    assert DDFPack(8, dtype=dtype)(x).dtype == dtype
    assert DDFUpPack(8, dtype=dtype)(x).dtype == dtype


def test_pack_with_few_channels_keeps_a_hidden_one():
    assert DDFPack(3).channel_branch[1].out_channels == 1


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
        (lambda: DDFUpPack(8, dw_kernel_size=2), 'dw_kernel_size must be odd'),
        (lambda: DDFUpPack(8, scale_factor=0), 'scale_factor must be at least 1'),
    ],
)
def test_bad_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
