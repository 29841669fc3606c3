"""The end of a residual block: equal to its layers, and left to these wherever more is asked."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ddf.residual import add_residual

from .module_cases import LAYOUTS, downsample_avg, downsample_conv

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')
TOLERANCES = {torch.float32: 2e-6, torch.float64: 4e-15}


class Block(nn.Module):
    """What surrounds the filters in a block, and how often the last layers were one pass. Before a norm is no bias,
    whose gradient would cancel."""

    def __init__(self, channels, downsample=None):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels, eps=1e-3)
        self.activation = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.passes = 0
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for values in (*module.parameters(), module.running_mean):
                    nn.init.normal_(values)
                nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x, shortcut):
        x = self.conv(x)
        output = add_residual(x, self.norm, self.activation, shortcut, self.downsample)
        if output is not None:
            assert (output is x) != self.training
            self.passes += 1
            return output
        return self.by_layers(x, shortcut)

    def by_layers(self, x, shortcut):
        return self.activation(self.norm(x) + (shortcut if self.downsample is None else self.downsample(shortcut)))


def no_downsample(_in_channels, _out_channels):
    return None


def with_a_norm(in_channels, out_channels):
    return downsample_conv(in_channels, out_channels, 2)


def with_pooling(in_channels, out_channels):
    return downsample_avg(in_channels, out_channels)


def without_a_norm(in_channels, out_channels):
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, 2))


def with_a_norm_of_its_own(in_channels, out_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, 2, bias=False), nn.BatchNorm2d(out_channels, affine=False)
    )


def one_value_for_a_plane(in_channels, out_channels):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1))


def one_norm_for_a_plane(in_channels, out_channels):
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
    )


DOWNSAMPLES = (
    *(no_downsample, with_a_norm, with_pooling, without_a_norm, with_a_norm_of_its_own),
    *(one_value_for_a_plane, one_norm_for_a_plane),
)


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(2, 8, 5, 6), (3, 19, 7, 7), (1, 64, 24, 24), (5, 6, 1, 1)], ids=str)
@pytest.mark.parametrize('downsample', DOWNSAMPLES, ids=lambda downsample: downsample.__name__)
def test_equals_the_layers(downsample, shape, dtype, memory_format):
    batch, channels, height, width = shape
    layers = downsample(4, channels)
    block = Block(channels, layers).to(dtype).eval()
    x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
    size = shape if layers is None else (batch, 4, 2 * height, 2 * width)
    shortcut = torch.randn(size, dtype=dtype).to(memory_format=memory_format)
    given = shortcut.clone()
    with torch.inference_mode():
        output, expected = block(x, shortcut), block.by_layers(block.conv(x), shortcut)
    assert block.passes == 1
    assert output.is_contiguous(memory_format=memory_format)
    assert torch.equal(shortcut, given)
    assert (output - expected).abs().max() <= TOLERANCES[dtype] * expected.abs().max()


def test_shortcut_of_another_layout_is_added():
    block, x = Block(8).eval(), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        output = block(x, x.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(output, block.by_layers(block.conv(x), x))
    assert output.is_contiguous()
    assert block.passes == 1


@LAYOUTS
def test_what_is_not_a_number_stays_where_it_is(memory_format):
    block = Block(8).eval()
    x, shortcut = (torch.randn(2, 8, 5, 6).to(memory_format=memory_format) for _ in range(2))
    shortcut[1, 3, 2, 4] = float('nan')
    with torch.no_grad():
        assert block(x, shortcut).isnan().nonzero().tolist() == [[1, 3, 2, 4]]


def test_threads_change_no_bit():
    block = Block(33, downsample_conv(33, 33)).eval()
    x, shortcut = torch.randn(5, 33, 9, 11), torch.randn(5, 33, 9, 11)
    threads = torch.get_num_threads()
    outputs = []
    with torch.inference_mode():
        layers_output = block.conv(x), block.downsample[0](shortcut)
        block.conv, block.downsample[0] = nn.Identity(), nn.Identity()
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(block(layers_output[0].clone(), layers_output[1]))
        torch.set_num_threads(threads)
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def with_gradients(block, x):
    with torch.enable_grad():
        block(x, x).sum().backward()


def with_autocast(block, x):
    with torch.autocast('cpu', torch.bfloat16):
        block(x, x)


def in_forward_mode(block, x):
    with forward_ad.dual_level():
        block(forward_ad.make_dual(x, x), x)


def in_vmap(block, x):
    torch.vmap(block)(x[None], x[None])


def traced(block, x):
    program = torch.jit.trace(block, (x, x), check_trace=False)
    assert 'normalized_sum' not in str(program.inlined_graph)


def counted(block, x):
    with FlopCounterMode(display=False):
        block(x, x)


def exported(block, x):
    assert 'normalized_sum' not in str(torch.export.export(block, (x, x)).graph)


def compiled(block, x):
    torch.compile(block, backend='eager', fullgraph=True)(x, x)


def in_half_precision(block, x):
    block.bfloat16()(x.bfloat16(), x.bfloat16())


def empty(block, x):
    block(x[:0], x[:0])


def hooked(block, x):
    block.norm.register_forward_hook(lambda *_: None)
    block(x, x)


def hooked_everywhere(block, x):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    block(x, x)
    handle.remove()


def another_norm(block, x):
    block.norm = nn.BatchNorm2d(8, track_running_stats=False)
    block(x, x)


def another_activation(block, x):
    block.activation = nn.GELU()
    block(x, x)


@pytest.mark.parametrize(
    'use',
    [
        *(with_gradients, with_autocast, in_forward_mode, in_vmap, traced, counted, exported, compiled),
        *(in_half_precision, empty, hooked, hooked_everywhere, another_norm, another_activation),
    ],
    ids=lambda use: use.__name__,
)
def test_layers_serve_where_more_is_asked(use):
    block, x = Block(8).eval(), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        good = copy.deepcopy(block)
        good(x, x)
        assert good.passes == 1, 'or what follows would prove nothing'
        use(block, x)
    assert block.passes == 0


@pytest.mark.parametrize('hooked', ['', '0', '1'], ids=['shortcut', 'convolution', 'norm'])
@pytest.mark.parametrize('training', [False, True])
def test_hooked_layers_of_the_shortcut_are_called(training, hooked):
    block, x, seen = Block(8, downsample_conv(8, 8)).train(training), torch.randn(2, 8, 5, 6), []
    block.downsample.get_submodule(hooked).register_forward_hook(lambda *_: seen.append(hooked))
    with torch.no_grad():
        torch.testing.assert_close(block(x, x), block.by_layers(block.conv(x), x))
    assert seen == [hooked] * 2


def gradients(block, x, shortcut, by_layers=False):
    """Output, gradients of both maps and of the parameters that have one, and all buffers."""
    for value in (x, shortcut):
        value.requires_grad_()
    output = block.by_layers(block.conv(x), shortcut) if by_layers else block(x, shortcut)
    weights = torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)
    return [output, *torch.autograd.grad(output, [x, shortcut, *block.parameters()], weights), *block.buffers()]


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(2, 8, 5, 6), (3, 19, 7, 7), (2, 64, 24, 24), (5, 6, 1, 1)], ids=str)
@pytest.mark.parametrize('downsample', DOWNSAMPLES, ids=lambda downsample: downsample.__name__)
def test_equals_the_layers_in_training(downsample, shape, dtype, memory_format):
    batch, channels, height, width = shape
    block = Block(channels, downsample(8, channels)).to(dtype)
    size = shape if block.downsample is None else (batch, 8, 2 * height, 2 * width)
    x, shortcut = (torch.randn(of, dtype=dtype).to(memory_format=memory_format) for of in (shape, size))
    expected = gradients(copy.deepcopy(block), x, shortcut, by_layers=True)
    results = gradients(block, x, shortcut)
    assert block.passes == 1
    for result, exact in zip(results, expected, strict=True):
        assert result.shape == exact.shape
        assert (result - exact).abs().max() <= 30 * TOLERANCES[dtype] * exact.abs().max()


def test_second_derivatives_in_training():
    block = Block(2, downsample_conv(2, 2)).double()
    x, shortcut = (torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradgradcheck(block, (x, shortcut))
    assert block.passes > 0
