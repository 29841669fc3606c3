"""The modules in one call of the compiled library: equal to their layers, and left to these wherever more is asked."""

import copy
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ddf import DDFPack, FilterNorm, fused, guards

from .module_cases import LAYOUTS, PACKS, calls_of

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')
TOLERANCES = {torch.float32: 3e-6, torch.float64: 1e-14}


@pytest.fixture
def calls():
    """How often the operator was called: a list with an entry each."""
    with calls_of(fused, 'dynamic_filter') as seen:
        yield seen


def by_layers(pack, x):
    with torch.no_grad(), mock.patch.object(guards, 'has_kernel', return_value=False):
        return pack(x)


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize(('shape', 'settings'), PACKS)
def test_equals_the_layers(calls, shape, settings, dtype, memory_format):
    pack = DDFPack(shape[1], dtype=dtype, **settings).eval()
    x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
    with torch.inference_mode():
        output = pack(x)
    expected = by_layers(pack, x)
    assert len(calls) == 1
    assert output.stride() == expected.stride()
    error = (output - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCES[dtype]


@LAYOUTS
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('batch', [1, 11, 32])
def test_threads_change_no_bit(batch, stride, memory_format):
    """Whole images for each thread, or every step shared: by the number of images and of threads."""
    pack = DDFPack(48, stride=stride).eval()
    x = torch.randn(batch, 48, 23, 20).to(memory_format=memory_format)
    threads = torch.get_num_threads()
    outputs = []
    with torch.inference_mode():
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            outputs.append(pack(x))
        torch.set_num_threads(threads)
        alone = torch.cat([pack(image) for image in x.split(1)])
    assert all(torch.equal(output, outputs[0]) for output in (*outputs, alone))


@LAYOUTS
def test_what_is_not_a_number_stays_in_its_image(memory_format):
    pack = DDFPack(8).eval()
    x = torch.randn(3, 8, 9, 9)
    expected = by_layers(pack, x)
    x[1, 3, 0, 0] = float('nan')
    with torch.no_grad():
        output = pack(x.to(memory_format=memory_format))
    assert output[1].isnan().any(dim=(1, 2)).all()  # through the channel branch it reaches every channel
    torch.testing.assert_close(output[::2], expected[::2])


def test_training_mode_changes_nothing_without_gradients(calls):
    pack, x = DDFPack(8).train(), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        assert torch.equal(pack(x), pack.eval()(x))
    assert len(calls) == 2


def test_filters_of_equal_taps_are_zero():
    pack = DDFPack(8).eval()
    for layer in (pack.spatial_branch[0], pack.channel_branch[3]):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, 0.1)
    with torch.no_grad():
        assert pack(torch.randn(2, 8, 6, 6)).eq(0).all()


def norm_and_activation(channels, dtype=torch.float32):
    norm = nn.BatchNorm2d(channels, eps=1e-3, dtype=dtype)
    for values in (norm.weight, norm.bias, norm.running_mean):
        nn.init.normal_(values)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm.eval(), nn.ReLU(inplace=True)


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(1, 24, 9, 7), (17, 19, 5, 6), (3, 64, 1, 1)])
def test_norms_before_and_after(calls, shape, dtype, memory_format):
    pack = DDFPack(shape[1], stride=2, dtype=dtype).eval()
    before, after = norm_and_activation(shape[1], dtype), norm_and_activation(shape[1], dtype)
    x = torch.randn(shape, dtype=dtype).to(memory_format=memory_format)
    x[0, 0, 0, 0] = float('nan')
    given = x.clone()
    for pair in ((before, after), (before, None), (None, after)):
        first, last = (nn.Sequential() if layers is None else nn.Sequential(*layers) for layers in pair)
        with torch.no_grad():
            output = pack.in_one_call(x, *pair)
            expected = last(by_layers(pack, first(x)))
        assert output.stride() == expected.stride()
        assert output.isnan().equal(expected.isnan())
        error = (output - expected).nan_to_num().abs().max() / expected.nan_to_num().abs().max().clamp(min=1)
        assert error <= 3 * TOLERANCES[dtype]
    assert torch.equal(x.nan_to_num(), given.nan_to_num())
    assert len(calls) == 3


def in_training(norm, activation):
    return norm.train(), activation


def hooked_norm(norm, activation):
    norm.register_forward_hook(lambda *_: None)
    return norm, activation


def without_weights(norm, activation):
    return nn.BatchNorm2d(8, affine=False).eval(), activation


def by_the_batch(norm, activation):
    return nn.BatchNorm2d(8, track_running_stats=False).eval(), activation


def of_other_channels(norm, activation):
    return nn.BatchNorm2d(4).eval(), activation


def of_other_dtype(norm, activation):
    return norm.double(), activation


def on_another_device(norm, activation):
    return norm.to('meta'), activation


def another_activation(norm, activation):
    return norm, nn.LeakyReLU()


@pytest.mark.parametrize(
    'change',
    [
        *(in_training, hooked_norm, without_weights, by_the_batch, of_other_channels, of_other_dtype),
        *(on_another_device, another_activation),
    ],
    ids=lambda change: change.__name__,
)
def test_other_norms_are_left_to_their_layers(change):
    pack, x = DDFPack(8).eval(), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        assert pack.in_one_call(x, norm_and_activation(8), norm_and_activation(8)) is not None
        assert pack.in_one_call(x, change(*norm_and_activation(8))) is None
        assert pack.in_one_call(x, None, change(*norm_and_activation(8))) is None


class Layer(nn.Conv2d):
    pass


def gradients_wanted(pack, x):
    with torch.enable_grad():
        pack(x)


def autocast(pack, x):
    with torch.autocast('cpu', torch.bfloat16):
        pack(x)


def forward_mode(pack, x):
    torch.func.jvp(pack, (x,), (x,))


def vmapped(pack, x):
    torch.vmap(pack)(x[None])


def traced(pack, x):
    program = torch.jit.trace(pack, x, check_trace=False)  # which would call the module once more
    assert 'dynamic_filter' not in str(program.inlined_graph)


def counted(pack, x):
    with FlopCounterMode(display=False) as counter:
        pack(x)
    assert counter.get_total_flops() > 0


def exported(pack, x):
    for strict in (False, True):
        program = torch.export.export(pack, (x,), strict=strict)
        assert 'dynamic_filter' not in str(program.graph)


def half_precision(pack, x):
    pack.bfloat16()(x.bfloat16())


def other_strides(pack, x):
    pack(x.transpose(2, 3))


def empty(pack, x):
    pack(x[:0])


def hooked(pack, x):
    pack.channel_branch[1].register_forward_hook(lambda *_: None)
    pack(x)


def hooked_everywhere(pack, x):
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    pack(x)
    handle.remove()


def another_layer(pack, x):
    pack.channel_branch[3] = Layer(1, 72, 1)
    pack(x)


def another_norm(pack, x):
    pack.channel_branch[4] = FilterNorm(8, 3, 'channel', running_std=True, running_mean=True)
    pack(x)


def without_bias(pack, x):
    pack.spatial_branch[0] = nn.Conv2d(8, 9, 1, bias=False)
    pack(x)


def parametrised(pack, x):
    nn.utils.parametrizations.weight_norm(pack.channel_branch[3])
    pack(x)


@pytest.mark.parametrize(
    'use',
    [
        *(gradients_wanted, autocast, forward_mode, vmapped, traced, counted, exported, half_precision),
        *(other_strides, empty, hooked, hooked_everywhere, another_layer, another_norm, without_bias, parametrised),
    ],
    ids=lambda use: use.__name__,
)
def test_layers_serve_where_more_is_asked(calls, use):
    pack, x = DDFPack(8).eval(), torch.randn(2, 8, 5, 6)
    with torch.no_grad():
        copy.deepcopy(pack)(x)
        assert len(calls) == 1, 'or what follows would prove nothing'
        use(pack, x)
    assert len(calls) == 1


def test_map_of_other_channels_is_refused_as_by_the_layer():
    pack = DDFPack(8).eval()
    with torch.no_grad(), pytest.raises(RuntimeError, match='8'):
        pack(torch.randn(1, 4, 5, 5))


def test_counted_as_the_layers(calls):
    pack, x = DDFPack(8, stride=2, head=2).eval(), torch.randn(2, 8, 9, 7)
    flops = []
    with torch.no_grad():
        pack(x)
        for call in (lambda: torch.ops.ddf.dynamic_filter(*calls[0]), lambda: pack(x)):
            with FlopCounterMode(display=False) as counter:
                call()
            flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] > 0


WEIGHTS = [(9, 4), (9,), (2, 4), (2,), (36, 2), (36,), (36,)]


@pytest.mark.parametrize('position', range(8))
def test_wrong_direct_calls_are_refused(position):
    good = [torch.randn(1, 4, 5, 5), *map(torch.randn, WEIGHTS)]
    settings = 3, 1, 1, 1, 'mul', 0.5, [], [], 0.0, 0.0
    assert torch.ops.ddf.dynamic_filter(*good, *settings).shape == (1, 4, 5, 5)
    tensor = good[position]
    for wrong in (
        tensor[:0],
        tensor[..., :-1],
        tensor.double(),
        tensor.to('meta'),
        tensor.new_empty(()),
        tensor.half(),
    ):
        arguments = [*good[:position], wrong, *good[position + 1 :]]
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.ops.ddf.dynamic_filter(*arguments, *settings)
    norm = [torch.rand(4)] * 4
    for wrong_norm in (
        norm[:3],
        [*norm[:3], torch.rand(5)],
        [torch.rand(4).double(), *norm[1:]],
        [*norm[:3], norm[3].to('meta')],
    ):
        for norms in ((wrong_norm, []), ([], wrong_norm)):
            with pytest.raises(RuntimeError, match='norm'):
                torch.ops.ddf.dynamic_filter(*good, *settings[:6], *norms, 0.0, 0.0)
    for wrong_settings in ((5, 1, 1, 1), (3, 1, 1, 2), (3, 0, 1, 1)):
        with pytest.raises(RuntimeError):
            torch.ops.ddf.dynamic_filter(*good, *wrong_settings, *settings[4:])
