"""BatchNorm in training with its ReLU: equal to the layers, and left to these wherever more is asked."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ddf import batch_norm
from ddf.batch_norm import rectified

from .module_cases import calls_of, output_and_gradients

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels', 'random_numbers')
TOLERANCES = {torch.float32: 3e-5, torch.float64: 1e-13}
LAYOUTS = pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.fixture
def calls():
    """An entry for each call that took the place of layers."""
    with calls_of(batch_norm, 'train_rectified_sum') as seen:
        yield seen


def norm_of(channels, **settings):
    norm = nn.BatchNorm2d(channels, **settings)
    for values in (*norm.parameters(), norm.running_mean):
        nn.init.normal_(values)
    return norm


@LAYOUTS
@pytest.mark.parametrize('dtype', TOLERANCES, ids=str)
@pytest.mark.parametrize('shape', [(2, 8, 5, 6), (3, 19, 7, 7), (1, 64, 33, 24), (8, 3, 64, 65), (5, 6, 1, 1)], ids=str)
def test_equals_the_layers(calls, shape, dtype, layout):
    norm = norm_of(shape[1], eps=1e-3, momentum=0.3).to(dtype)
    others = copy.deepcopy(norm)
    x = torch.randn(shape, dtype=dtype).to(memory_format=layout)
    for _ in range(2):
        results = output_and_gradients(lambda x: rectified(x, norm, nn.ReLU()), x, norm.parameters())
        expected = output_and_gradients(nn.Sequential(others, nn.ReLU()), x, others.parameters())
    assert len(calls) == 2
    assert all(map.is_contiguous(memory_format=layout) for map in results[:2])
    for result, exact in zip([*results, *norm.buffers()], [*expected, *others.buffers()], strict=True):
        assert result.shape == exact.shape
        assert (result - exact).abs().max() <= TOLERANCES[dtype] * exact.abs().max()


@LAYOUTS
def test_gradients_of_any_layout_are_taken(layout):
    norm, x = norm_of(8), torch.randn(2, 8, 5, 6).to(memory_format=layout).requires_grad_()
    weights = torch.randn(2, 8, 5, 6)
    expected = torch.autograd.grad(norm(x).relu(), [x, *norm.parameters()], weights)
    strided = torch.stack([weights, weights])[1].mT.contiguous().mT
    for given in (weights, weights.contiguous(memory_format=torch.channels_last), strided):
        results = torch.autograd.grad(rectified(x, norm, nn.ReLU()), [x, *norm.parameters()], given)
        torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


@LAYOUTS
def test_batched_gradients_are_those_of_the_layers(layout):
    norm, x = norm_of(4), torch.randn(2, 4, 5, 6).to(memory_format=layout).requires_grad_()
    inputs, weights = [x, *norm.parameters()], torch.randn(3, 2, 4, 5, 6)
    results = torch.autograd.grad(rectified(x, norm, nn.ReLU()), inputs, weights, is_grads_batched=True)
    expected = torch.autograd.grad(norm(x).relu(), inputs, weights, is_grads_batched=True)
    torch.testing.assert_close(results, expected, rtol=1e-4, atol=1e-5)


@LAYOUTS
@pytest.mark.parametrize('offset', [0, 1e3, 1e6])
def test_statistics_are_as_exact_as_torchs(offset, layout):
    """The variance of values that are far from zero is a small difference of large sums, if it is taken so."""
    x = (torch.randn(8, 4, 112, 112) + offset).to(memory_format=layout)
    found, of_torch = ([*take(x, torch.zeros(4), torch.ones(4), 1.0)] for take in STATISTICS)
    variance, mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    for ours, theirs, exact in zip(found, of_torch, (mean, variance), strict=True):
        error, tolerated = ((values - exact).abs().max() / variance.max() for values in (ours, theirs))
        assert error <= 1.01 * tolerated + 2e-7


@LAYOUTS
def test_variance_beside_a_value_that_is_far_off(layout):
    """The first value of all, from which others are counted."""
    x = torch.randn(8, 4, 112, 112).to(memory_format=layout)
    x[0, :, 0, 0] = 1e5
    found = torch.ops.ddf.batch_statistics_(x, torch.zeros(4), torch.ones(4), 1.0)
    torch.testing.assert_close(found[1], x.double().var((0, 2, 3), correction=0).float(), rtol=3e-5, atol=0)


@LAYOUTS
@pytest.mark.parametrize('value', [100.1, 1000.3])
@pytest.mark.parametrize('size', [56, 112, 300])
def test_equal_values_have_no_variance(size, value, layout):
    """Sums of many equal numbers are rounded the same way each time."""
    x = torch.full((2, 3, size, size), value).to(memory_format=layout)
    mean, variance = torch.ops.ddf.batch_statistics_(x, torch.zeros(3), torch.ones(3), 0.1)
    assert mean.eq(x[0, 0, 0, 0]).all()
    assert variance.eq(0).all()


STATISTICS = torch.ops.ddf.batch_statistics_, torch.batch_norm_update_stats


@LAYOUTS
def test_threads_change_no_bit(layout):
    x, threads = torch.randn(5, 33, 9, 11).to(memory_format=layout), torch.get_num_threads()
    norm, results = norm_of(33), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        same = copy.deepcopy(norm)
        passes = output_and_gradients(lambda x, norm=same: rectified(x, norm, nn.ReLU()), x, same.parameters())
        results.append([*passes, *same.buffers()])
    torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(map(torch.equal, other, results[0]))


@LAYOUTS
def test_what_is_not_a_number_stays_in_its_channel(layout):
    norm, x = norm_of(8), torch.randn(2, 8, 5, 6).to(memory_format=layout)
    x[1, 3, 2, 4] = float('nan')
    assert rectified(x, norm, nn.ReLU()).isnan().any(dim=(0, 2, 3)).nonzero().tolist() == [[3]]
    assert norm.running_mean.isnan().nonzero().tolist() == norm.running_var.isnan().nonzero().tolist() == [[3]]
    results = output_and_gradients(lambda x: rectified(x, norm, nn.ReLU()), x, norm.parameters())
    expected = output_and_gradients(nn.Sequential(norm, nn.ReLU()), x, norm.parameters())
    for result, of_layers in zip(results, expected, strict=True):
        assert torch.equal(result.isnan(), of_layers.isnan())


def test_parameters_that_are_frozen_have_no_gradient(calls):
    norm, x = norm_of(4), torch.randn(2, 4, 5, 6, requires_grad=True)
    norm.bias.requires_grad_(False)
    rectified(x, norm, nn.ReLU()).sum().backward()
    assert len(calls) == 1
    assert norm.bias.grad is None
    assert norm.weight.grad is not None
    assert x.grad is not None


def test_checkpointed():
    norm, x = norm_of(4), torch.randn(2, 4, 5, 6)
    expected = output_and_gradients(lambda x: rectified(x, norm, nn.ReLU()), x, norm.parameters())
    results = output_and_gradients(
        lambda x: checkpoint(rectified, x, norm, nn.ReLU(), use_reentrant=False), x, norm.parameters()
    )
    assert all(map(torch.equal, results, expected))


def in_evaluation(norm, x):
    rectified(x, norm.eval(), nn.ReLU())


def averaging_all_batches(norm, x):
    norm.momentum = None
    rectified(x, norm, nn.ReLU())


def one_value(norm, x):
    with pytest.raises(ValueError, match='more than 1 value'):
        rectified(x[:1, :, :1, :1], norm, nn.ReLU())


def by_the_batch(norm, x):
    rectified(x, nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU())


def without_moving_statistics(norm, x):
    norm.track_running_stats, given = False, copy.deepcopy(norm.state_dict())
    rectified(x, norm, nn.ReLU())
    torch.testing.assert_close(norm.state_dict(), given)


def without_weights(norm, x):
    rectified(x, nn.BatchNorm2d(8, affine=False), nn.ReLU())


def in_half_precision(norm, x):
    rectified(x.bfloat16(), norm.bfloat16(), nn.ReLU())


def with_statistics_of_other_dtype(norm, x):
    rectified(x.bfloat16(), norm, nn.ReLU())


def hooked(norm, x):
    norm.register_forward_hook(lambda *_: None)
    rectified(x, norm, nn.ReLU())


def hooked_activation(norm, x):
    activation = nn.ReLU()
    activation.register_forward_hook(lambda *_: None)
    rectified(x, norm, activation)


def another_activation(norm, x):
    rectified(x, norm, nn.SiLU())


def another_norm(norm, x):
    rectified(x, nn.SyncBatchNorm(8).eval(), nn.ReLU())


def in_autocast(norm, x):
    with torch.autocast('cpu', torch.bfloat16):
        rectified(x, norm, nn.ReLU())


def in_forward_mode(norm, x):
    with forward_ad.dual_level():
        rectified(forward_ad.make_dual(x, x), norm, nn.ReLU())


def in_functional_gradients(norm, x):
    with pytest.raises(RuntimeError, match='in-place'):  # as torch refuses its layer there
        torch.func.grad(lambda x: rectified(x, norm, nn.ReLU()).sum())(x)


def compiled(norm, x):
    torch.compile(rectified, backend='eager', fullgraph=True)(x, norm, nn.ReLU())


@pytest.mark.parametrize(
    'use',
    [
        *(in_evaluation, averaging_all_batches, one_value, by_the_batch),
        *(without_moving_statistics, without_weights),
        *(in_half_precision, with_statistics_of_other_dtype, hooked, hooked_activation, another_activation),
        *(another_norm, in_autocast, in_forward_mode, in_functional_gradients, compiled),
    ],
    ids=lambda use: use.__name__,
)
def test_layers_serve_where_more_is_asked(calls, use):
    norm, x = norm_of(8), torch.randn(2, 8, 5, 6)
    rectified(x, copy.deepcopy(norm), nn.ReLU())
    assert len(calls) == 1, 'or what follows would prove nothing'
    use(norm, x)
    assert len(calls) == 1


def sum_arguments(**others):
    norm, shape = [torch.rand(4)] * 4, (2, 4, 5, 6)
    good = {'output': torch.randn(shape), 'map': torch.randn(shape), 'norm': norm, 'shortcut': torch.randn(shape)}
    return *{**good, 'shortcut_norm': norm, **others}.values(), 1e-5, 1e-5


@pytest.mark.parametrize('name', ['output', 'map', 'shortcut'])
def test_sums_of_unlike_maps_are_refused(name):
    torch.ops.ddf.normalized_sum_(*sum_arguments())
    good = torch.randn(2, 4, 5, 6)
    shapes = (2, 4, 5, 5), (1, 4, 5, 6), (2, 3, 5, 6), (2, 4, 5), (0, 4, 5, 6), (2, 4, 6, 5)
    layouts = good.mT.contiguous().mT, good.to(memory_format=torch.channels_last)
    for wrong in (*map(torch.randn, shapes), *layouts, good.double(), good.half(), good.to('meta')):
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.ops.ddf.normalized_sum_(*sum_arguments(**{name: wrong}))


def test_wrong_values_of_norms_are_refused():
    wrong = [torch.rand(4)] * 3, [torch.rand(5)] * 4, [torch.rand(4).double()] * 4, [torch.rand(8)[::2]] * 4
    for name in ('norm', 'shortcut_norm'):
        for values in wrong:
            with pytest.raises(RuntimeError, match='norm'):
                torch.ops.ddf.normalized_sum_(*sum_arguments(**{name: values}))
    with pytest.raises(RuntimeError, match='norm'):
        torch.ops.ddf.normalized_sum_(*sum_arguments(norm=[]))


def test_statistics_of_wrong_tensors_are_refused():
    x, good = torch.randn(2, 4, 5, 6), torch.rand(4)
    torch.ops.ddf.batch_statistics_(x, good, good.clone(), 0.1)
    for wrong in (torch.rand(5), torch.rand(4).double(), torch.rand(8)[::2], good.to('meta')):
        for running in ((wrong, good), (good, wrong)):
            with pytest.raises(RuntimeError):
                torch.ops.ddf.batch_statistics_(x, *running, 0.1)
    for map in (x[:0], x.mT, x.half(), x[0], x.to('meta')):
        with pytest.raises(RuntimeError):
            torch.ops.ddf.batch_statistics_(map, good, good, 0.1)


def test_gradients_of_wrong_tensors_are_refused():
    good, values = torch.randn(2, 4, 5, 6), [torch.rand(4)] * 3
    torch.ops.ddf.normalized_sum_gradients(good, good, [good, *values], [good, *values], False)
    layouts = good.mT.contiguous().mT, good.to(memory_format=torch.channels_last)
    for wrong in (torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5), good[:0], *layouts, good.double(), good.to('meta')):
        for maps in (
            (wrong, good, good, good),
            (good, wrong, good, good),
            (good, good, wrong, good),
            (good,) * 3 + (wrong,),
        ):
            with pytest.raises((RuntimeError, NotImplementedError)):
                torch.ops.ddf.normalized_sum_gradients(*maps[:2], [maps[2], *values], [maps[3], *values], False)
    for wrong_values in (values[:2], [torch.rand(5)] * 3, [torch.rand(4).double()] * 3, [torch.rand(8)[::2]] * 3):
        for norms in (([good, *wrong_values], []), ([good, *values], [good, *wrong_values])):
            with pytest.raises(RuntimeError, match='norm'):
                torch.ops.ddf.normalized_sum_gradients(good, good, *norms, False)
