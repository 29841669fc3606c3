"""The compiled CPU kernels against the definition: sizes, settings, dtypes, layouts, threads."""

import itertools

import pytest
import torch

import ddf
from ddf import check, operators, reference
from ddf.check import Case, evaluate

from .kernel_cases import DETERMINISM, SLIDING_ROWS, SMALL_MAPS, STRIDED_ROWS, UNREACHED, WHOLE_PLANES, WIDE_ROWS

pytestmark = pytest.mark.usefixtures('compiled_cpu_kernels')


def assert_agrees(case, dtype=torch.float64):
    errors = check.errors(case, dtype, 'cpu')
    assert max(errors) <= check.tolerance(dtype), dict(zip(check.RESULTS, errors))


def test_kernels_are_registered():
    for name in ('forward', 'input_gradient', 'filter_gradients'):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f'ddf::{name}', 'CPU')


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('case', check.CASES, ids=str)
def test_dtypes_and_layouts(case, dtype):
    assert_agrees(case, dtype)


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('case', SMALL_MAPS, ids=str)
def test_small_maps_of_many_channels(case, dtype):
    assert_agrees(case, dtype)


@pytest.mark.parametrize('case', WIDE_ROWS, ids=str)
def test_wide_rows_of_larger_kernels(case):
    assert_agrees(case, torch.float32)


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('case', WHOLE_PLANES, ids=str)
def test_whole_planes(case, dtype):
    assert_agrees(case, dtype)


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('case', SLIDING_ROWS, ids=str)
def test_rows_of_channels_last_maps(case, dtype):
    assert_agrees(case, dtype)


@pytest.mark.parametrize('case', STRIDED_ROWS, ids=str)
def test_rows_at_stride_two(case):
    assert_agrees(case, torch.float32)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
def test_every_width_at_stride_two(kernel_combine):
    for height, width in itertools.product((1, 2, 3, 4, 7, 10), range(1, 68)):
        assert_agrees(Case((1, 3, height, width), 3, stride=2, kernel_combine=kernel_combine), torch.float32)


def test_rows_at_stride_two_of_any_strides():
    """The same bits from rows that lie apart, and from filters of any strides."""
    case = Case((2, 4, 9, 37), 3, stride=2, head=2)
    _, input, *filters = case.tensors(torch.float32)
    apart = torch.cat([input, torch.full_like(input, float('nan'))], -1)[..., :37]
    expected = operators.forward(input, *filters, *case.settings)
    for arranged in (
        [tensor.mT.contiguous().mT for tensor in filters],
        [torch.stack([tensor, tensor], -1)[..., 0] for tensor in filters],
        [tensor.contiguous(memory_format=torch.channels_last) for tensor in filters],
    ):
        assert not any(tensor.is_contiguous() for tensor in arranged)
        assert torch.equal(operators.forward(apart, *arranged, *case.settings), expected)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 9])
def test_small_sizes(kernel_size, kernel_combine):
    """Every border meets every other: maps smaller than the kernel, strides beyond the map, partial vectors."""
    for height, width, dilation, stride in itertools.product((1, 2, 5), (1, 3, 18), (1, 2, 4), (1, 2, 3, 7)):
        assert_agrees(Case((2, 4, height, width), kernel_size, dilation, stride, 2, kernel_combine))


@pytest.mark.parametrize('case', [
    Case((1, 2, 5, 6), 3, dilation=2**62),
    Case((1, 2, 5, 6), 5, dilation=5),
    Case((1, 2, 5, 6), 3, stride=2**62),
    Case((1, 2, 3, 2100), 3),
    Case((1, 2, 300, 9), 5, stride=2),
    Case((1, 30, 6, 6), 3, head=30),
    Case((0, 4, 5, 6), 3),
    Case((2, 0, 5, 6), 3),
    Case((2, 4, 0, 6), 3, stride=2),
    Case((2, 4, 5, 0), 3),
], ids=str)  # fmt: skip
def test_extreme_sizes(case):
    if 0 in case.size or case.dilation > 1000 or case.stride > 1000:
        tensors = case.tensors(torch.float64)
        near = case.settings if case.dilation < 1000 else (10**6, *case.settings[1:])  # equally far from the map
        for found, expected in zip(evaluate(operators, tensors, case.settings), evaluate(reference, tensors, near)):
            torch.testing.assert_close(found, expected)
    else:
        assert_agrees(case)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    'case',
    [*DETERMINISM, *SMALL_MAPS[:3], *WIDE_ROWS[:3], *WHOLE_PLANES[:4], *SLIDING_ROWS[:3], *STRIDED_ROWS[:3]],
    ids=str,
)
def test_results_do_not_depend_on_run_or_number_of_threads(case, dtype):
    tensors, threads = case.tensors(dtype), torch.get_num_threads()
    try:
        results = []
        for number in (1, 1, 2, 3, 4, 4):
            torch.set_num_threads(number)
            results.append(evaluate(operators, tensors, case.settings))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('filters', ['own', 'batch 1', 'expanded'])
@pytest.mark.parametrize('size', [(2, 4, 5, 6), (1, 4, 2, 2), (2, 1, 3, 3), (2, 4, 1, 1)])
def test_strides_are_those_of_the_traced_operator(size, filters, channels_last):
    case = Case(size, 3, stride=2, channels_last=channels_last, filters=filters, norm_gain=0.5)
    for dtype in (torch.float32, torch.float16):
        tensors = case.tensors(dtype)
        real = evaluate(operators, tensors, case.settings)
        with torch._subclasses.FakeTensorMode() as mode:
            fake = evaluate(operators, [mode.from_tensor(tensor) for tensor in tensors], case.settings)
        assert [tensor.stride() for tensor in real] == [tensor.stride() for tensor in fake]


def test_inputs_of_any_strides():
    case = Case((2, 4, 6, 5), 3, head=2)
    plain = case.tensors(torch.float64)
    expected = evaluate(reference, plain, case.settings)
    transposed = [tensor.mT.contiguous().mT for tensor in plain]
    sliced = [torch.stack([tensor, tensor], -1)[..., 0] for tensor in plain]
    shifted = [torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view_as(tensor) for tensor in plain]
    assert not any(tensor.data_ptr() % 16 == 0 for tensor in shifted)
    for tensors in (transposed, sliced, shifted):
        for found, exact in zip(evaluate(operators, tensors, case.settings), expected):
            torch.testing.assert_close(found, exact)
    expanded = [tensor[:, :1, :1, :1].expand_as(tensor) for tensor in plain]
    repeated = [tensor.contiguous() for tensor in expanded]
    for found, exact in zip(*(evaluate(operators, tensors, case.settings) for tensors in (expanded, repeated))):
        assert torch.equal(found, exact)


@pytest.mark.parametrize('size', [(16, 32, 28, 28), (1, 2048, 8, 8)], ids=str)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_over_many_elements_round_little(memory_format, size):
    generator = torch.Generator().manual_seed(0)
    # all of one sign: a sum of floats taken one after another is off by more than that
    grad, input = (torch.rand(size, generator=generator).contiguous(memory_format=memory_format) for _ in range(2))
    batch, channels, height, width = size
    filters = (
        torch.rand(batch, channels, 3, 3, generator=generator),
        torch.rand(batch, 9, height, width, generator=generator),
    )
    settings = 1, 1, 1, 'mul', None
    found = operators.filter_gradients(grad, input, *filters, *settings)
    exact = reference.filter_gradients(*(tensor.double() for tensor in (grad, input, *filters)), *settings)
    for gradient, expected in zip(found, exact):
        assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize('kernel_size', [1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_to_nearest(dtype, memory_format, kernel_size):
    """With one tap that is not zero the result is a product, exact in float; many lie between two values."""
    generator = torch.Generator().manual_seed(0)
    input = torch.randn(2, 48, 9, 23, generator=generator).to(dtype)
    input.flatten()[::7] *= torch.finfo(dtype).max / 8  # some products lie beyond the range
    if kernel_size == 1:
        for place, value in enumerate((float('nan'), float('inf'), -float('inf'))):
            input.flatten()[place::311] = value
    channel_filter = torch.zeros(2, 48, kernel_size, kernel_size, dtype=dtype)
    channel_filter[:, :, kernel_size // 2, kernel_size // 2] = (
        1 + torch.randint(128, (2, 48), generator=generator) / 128
    )
    spatial_filter = torch.full((2, kernel_size**2, 9, 23), -1.0, dtype=dtype)
    product = -input.float() * channel_filter.float().sum((2, 3), keepdim=True)
    expected = product.to(dtype)
    assert expected.isinf().any()
    assert (expected != product).any()
    found = ddf.ddf(input.contiguous(memory_format=memory_format), channel_filter, spatial_filter, kernel_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('size', [(9, 23), (7, 7), (16, 16), (5, 50), (3, 11)], ids=str)
@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_the_sum(dtype, kernel_size, size):
    """Sums of integers, exact in float whatever their order: many are ties, some infinite or NaN, most tiles finite."""
    generator = torch.Generator().manual_seed(0)

    def integers(*shape, most):
        values = torch.randint(1, most + 1, shape, generator=generator)
        return (values * (2 * torch.randint(2, shape, generator=generator) - 1)).to(dtype)

    input = integers(2, 48, *size, most=256)
    input.flatten()[::97] *= 64  # some sums lie beyond the range of float16
    for place, value in enumerate((float('nan'), float('inf'), -float('inf'))):
        input.flatten()[211 * place :: 1511] = value
    filters = integers(2, 48, kernel_size, kernel_size, most=8), integers(2, kernel_size**2, *size, most=8)
    settings = 1, 1, 1, 'mul', None
    sums = reference.forward(*(tensor.double() for tensor in (input, *filters)), *settings)
    expected = sums.to(dtype)
    assert expected.isinf().any()
    assert expected.isnan().any()
    assert (expected != sums).any()
    found = operators.forward(input, *filters, *settings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('head', [1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_maps_beyond_the_caches_have_the_bits_of_their_images(dtype, head, stride, memory_format):
    """Kernels write results past the caches where input and output exceed half of them: all images do, one does not."""
    images = 96
    case = Case((1, 64, 112, 112 // dtype.itemsize), 3, stride=stride, head=head)
    grad, input, *filters = case.tensors(dtype)
    for name, maps in (('forward', [input]), ('input_gradient', [grad, input])):
        results = []
        for count in (1, images):
            tensors = [tensor.repeat(count, 1, 1, 1).contiguous(memory_format=memory_format) for tensor in maps]
            tensors += [tensor.repeat(count, 1, 1, 1) for tensor in filters]
            results.append(getattr(operators, name)(*tensors, *case.settings))
        assert results[1].is_contiguous(memory_format=memory_format)
        assert torch.equal(results[1], results[0].expand(images, -1, -1, -1))


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('kernel_size', [3, 5, 7])
@pytest.mark.parametrize('value', [float('nan'), float('inf')], ids=str)
@pytest.mark.parametrize('shape', [(2, 40, 18, 23), (1, 8, 72, 72)], ids=str)
def test_values_without_end_reach_what_their_taps_reach(shape, value, kernel_size, memory_format, kernel_combine):
    """They do not reach the other end of a row or the neighbouring plane, which lie next to them in memory."""
    case = Case(shape, kernel_size, kernel_combine=kernel_combine)
    grad, input, *filters = case.tensors(torch.float32)
    for tensor in (grad, input):
        tensor[:, ::3, ::9, ::11] = value
    grad, input = (tensor.contiguous(memory_format=memory_format) for tensor in (grad, input))
    ones = [torch.ones_like(tensor) for tensor in (grad, input, *filters)]
    counts = reference.filter_gradients(*ones, *case.settings[:3], 'mul')  # of what meets the map
    for name, maps in (('forward', [input]), ('input_gradient', [grad, input]), ('filter_gradients', [grad, input])):
        found = getattr(operators, name)(*maps, *filters, *case.settings)
        exact = getattr(reference, name)(*(tensor.double() for tensor in (*maps, *filters)), *case.settings)
        if name != 'filter_gradients':
            found, exact = [found], [exact]
        for result, of_reference, count in zip(found, exact, counts if len(found) > 1 else [torch.ones(())]):
            assert 0 < of_reference.isfinite().sum() < of_reference.numel()
            assert torch.equal(result.isfinite(), of_reference.isfinite() | (count == 0))
            # the reference multiplies infinity by the zeros around the map
            is_nan = of_reference.isnan() & (result.isnan() if name == 'filter_gradients' else True) & (count != 0)
            assert torch.equal(result.isnan(), is_nan)


def test_every_element_is_written(monkeypatch):
    """Uninitialised memory, the kernels' results among it, holds NaN here; also where no tap touches the map."""
    monkeypatch.setattr(torch.utils.deterministic, 'fill_uninitialized_memory', True)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        for case, dtype in itertools.product(UNREACHED, check.DTYPES):
            for result in evaluate(operators, case.tensors(dtype), case.settings):
                assert result.isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ('index', 'shape'),
    [
        (0, (2, 4, 5, 5)),
        (0, (2, 4, 30)),
        (1, (4, 5, 6)),
        (1, (2, 3, 5, 6)),
        (1, (2, 4, 6, 6)),
        (2, (2, 4, 3, 5)),
        (2, (2, 4, 2, 2)),
        (2, (3, 4, 3, 3)),
        (2, (0, 4, 3, 3)),
        (3, (2, 9, 5, 6)),
        (3, (2, 18, 5, 7)),
        (3, (3, 18, 5, 6)),
    ],
)
def test_wrong_shapes_are_refused(index, shape):
    """Direct calls of the operators, which the public function does not check."""
    case = Case((2, 4, 5, 6), 3, head=2)
    tensors = list(case.tensors(torch.float32))
    tensors[index] = torch.randn(shape)
    with pytest.raises(RuntimeError, match='ddf: '):
        operators.input_gradient(*tensors, *case.settings)
    with pytest.raises(RuntimeError, match='ddf: '):
        operators.filter_gradients(*tensors, *case.settings)
    if index > 0:
        with pytest.raises(RuntimeError, match='ddf: '):
            operators.forward(*tensors[1:], *case.settings)


@pytest.mark.parametrize('settings', [
    (0, 1, 1, 'mul', None),
    (1, 0, 1, 'mul', None),
    (1, 1, 0, 'mul', None),
    (1, 1, 3, 'mul', None),
    (-(2**63), 1, 1, 'mul', None),
    (1, 1, 2**61, 'mul', None),
    (1, 1, 1, 'mean', None),
    (2**63 - 1, 1, 2**62, 'mul', 0.5),
])  # fmt: skip
def test_wrong_settings_are_refused(settings):
    _, *tensors = Case((2, 4, 5, 6), 3).tensors(torch.float32)
    with pytest.raises(RuntimeError, match='ddf: '):
        operators.forward(*tensors, *settings)


def test_wrong_dtypes_are_refused():
    case = Case((1, 2, 3, 3), 3)
    _, input, channel, spatial = case.tensors(torch.float32)
    with pytest.raises(RuntimeError, match='one dtype'):
        operators.forward(input.double(), channel, spatial, *case.settings)
    with pytest.raises(RuntimeError, match='expected float64, float32, float16 or bfloat16'):
        operators.forward(input.int(), channel.int(), spatial.int(), *case.settings)
