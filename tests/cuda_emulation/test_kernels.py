"""The emulated CUDA kernels against the definition: sizes, settings, dtypes, layouts, and how launches are cut."""

import itertools

import pytest
import torch
from hypothesis import given, settings

from ddf import check, reference
from ddf.check import Case, evaluate
from tests.ddf.kernel_cases import DETERMINISM, UNREACHED
from tests.ddf.test_fuzz import FUZZ, calls

LIMITS = ({}, {'blocks': 1}, {'blocks': 10**6}, {'offset': 10})  # the last: everything in 64-bit indices
EVEN = (
    Case((2, 16, 8, 16), 1),
    Case((2, 16, 8, 16), 3),
    Case((2, 16, 8, 32), 3, stride=2, head=2, kernel_combine='add'),
    Case((1, 8, 6, 12), 3, norm_gain=0.5),  # halves by 8 bytes
    Case((2, 8, 7, 10), 3, head=2),  # float32 by 8 bytes
    Case((2, 6, 8, 16), 5, head=2, kernel_combine='add'),
    Case((1, 7, 8, 8), 7, norm_gain=0.5),
    Case((2, 16, 9, 10), 1, channels_last=True),
    Case((2, 48, 9, 10), 3, head=2, channels_last=True, norm_gain=0.5),
    Case((1, 16, 7, 9), 5, channels_last=True, kernel_combine='add', norm_gain=0.5),
    Case((1, 8, 9, 11), 7, stride=2, channels_last=True),
    Case((1, 136, 3, 5), 3, channels_last=True),
)  # sizes at which accesses of 16 bytes are aligned


def errors(emulation, case, dtype, tensors=None):
    tensors = case.tensors(dtype) if tensors is None else tensors
    exact = evaluate(reference, [tensor.double() for tensor in tensors], case.settings)
    _, input, _, spatial = (reference.memory_format_of(tensor) for tensor in tensors)
    formats = (input, input, torch.contiguous_format, spatial)
    return [
        check.error(result, expected, dtype, memory_format)
        for result, expected, memory_format in zip(evaluate(emulation, tensors, case.settings), exact, formats)
    ]


def assert_agrees(emulation, case, dtype=torch.float64, tensors=None):
    found = errors(emulation, case, dtype, tensors)
    assert max(found) <= check.tolerance(dtype), (case, dtype, dict(zip(check.RESULTS, found)))


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('case', [*check.CASES, *EVEN], ids=str)
def test_dtypes_and_layouts(emulation, case, dtype):
    assert_agrees(emulation, case, dtype)


@pytest.mark.parametrize('limits', LIMITS[1:], ids=str)
def test_cuts_of_a_launch(emulation, limits):
    with emulation.limits(**limits):
        for case, dtype in itertools.product(EVEN, (torch.float32, torch.bfloat16)):
            assert_agrees(emulation, case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize('limits', LIMITS, ids=str)
@pytest.mark.parametrize('kernel_size', [1, 3, 5, 7, 9, 15])
def test_small_sizes(emulation, kernel_size, limits):
    """Every border meets every other: maps smaller than the kernel, strides beyond the map, partial vectors.

    Each of the limits takes its share of the sizes.
    """
    sizes = list(itertools.product((1, 2, 5), (1, 3, 16), (1, 2, 4), (1, 2, 3, 7)))
    with emulation.limits(**limits):
        for height, width, dilation, stride in sizes[LIMITS.index(limits) :: len(LIMITS)]:
            for kernel_combine, channels_last in (('mul', False), ('add', True)):
                case = Case((2, 8, height, width), kernel_size, dilation, stride, 2, kernel_combine, channels_last)
                assert_agrees(emulation, case, torch.float32)


@pytest.mark.parametrize('layout', ['shifted', 'sliced', 'transposed', 'expanded'])
def test_inputs_of_any_strides(emulation, layout):
    for channels_last, dtype in itertools.product((False, True), (torch.float32, torch.float16)):
        case = Case((2, 8, 6, 8), 3, head=2, channels_last=channels_last, norm_gain=0.5)
        assert_agrees(emulation, case, dtype, [rearranged(tensor, layout) for tensor in case.tensors(dtype)])


def rearranged(tensor, layout):
    if layout == 'shifted':  # by one element: no longer aligned to a vector
        storage = tensor.new_empty(tensor.numel() + 1)
        return torch.as_strided(storage, tensor.shape, tensor.stride(), 1).copy_(tensor)
    if layout == 'sliced':
        return torch.stack([tensor, torch.full_like(tensor, float('nan'))], -1)[..., 0]
    if layout == 'transposed':
        return tensor.mT.contiguous().mT
    return tensor[:1].expand_as(tensor)


@pytest.mark.parametrize('case', [
    Case((1, 2, 5, 6), 3, dilation=2**62),
    Case((1, 2, 5, 6), 3, stride=2**62),
    Case((1, 2, 5, 9), 9, dilation=2**62, stride=2**62),
    Case((0, 4, 5, 6), 3),
    Case((0, 4, 5, 6), 3, filters='batch 1'),
    Case((2, 0, 5, 6), 3),
    Case((2, 4, 0, 6), 3, stride=2),
    Case((2, 4, 5, 0), 3, norm_gain=0.5),
], ids=str)  # fmt: skip
def test_extreme_sizes(emulation, case):
    tensors = case.tensors(torch.float64)
    dilation, stride, *others = case.settings
    near = (min(dilation, 10**6), stride, *others)  # equally far from the map
    found = evaluate(emulation, tensors, case.settings)
    for result, expected in zip(found, evaluate(reference, tensors, near)):
        torch.testing.assert_close(result, expected)


def test_gradients_are_those_of_the_operation(emulation, emulated_ddf, make_arguments):
    for (kernel_combine, norm_gain, stride), limits in itertools.product(
        (('mul', None, 1), ('add', 0.5, 2), ('mul', 0.5, 2)), (LIMITS[0], LIMITS[-1])
    ):
        tensors = make_arguments(batch=2, channels=4, height=5, width=6, stride=stride, head=2, channel_batch=1)
        settings = 1, stride, 2, kernel_combine, norm_gain
        with emulation.limits(**limits):
            assert torch.autograd.gradcheck(lambda *tensors, s=settings: emulated_ddf(*tensors, *s), tensors)


@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
def test_gradients_of_kernels_above_7(emulated_ddf, make_arguments, kernel_combine):
    tensors = make_arguments(batch=1, channels=2, height=4, width=3, kernel_size=9)
    assert torch.autograd.gradcheck(lambda *tensors: emulated_ddf(*tensors, 1, 1, 1, kernel_combine, 0.5), tensors)


@pytest.mark.parametrize('limits', [LIMITS[0], LIMITS[-1]], ids=str)
@pytest.mark.parametrize('kernel_size', [3, 9])
@pytest.mark.parametrize('channels_last', [False, True])
def test_one_kernel_reads_the_maps_for_both_filters(emulation, channels_last, kernel_size, limits):
    case = Case((2, 16, 9, 8), kernel_size, channels_last=channels_last, norm_gain=0.5)
    tensors = case.tensors(torch.float32)
    with emulation.limits(**limits):
        before = emulation.launches
        emulation.filter_gradients(*tensors, *case.settings)
    assert emulation.launches - before == 3  # two more add the partial sums


@settings(max_examples=60, **FUZZ)
@given(calls())
def test_random_calls_agree(emulation, call):
    tensors, arguments = call
    order = ('dilation', 'stride', 'head', 'kernel_combine', 'norm_gain')
    values = tuple(arguments[name] for name in order)
    dtype = tensors[0].dtype
    generator = torch.Generator().manual_seed(0)
    shape = emulation.forward(*tensors, *values).shape
    tensors = [torch.randn(shape, generator=generator).to(dtype), *tensors]
    exact = evaluate(reference, [tensor.double() for tensor in tensors], values)
    found = evaluate(emulation, tensors, values)
    _, input, _, spatial = (reference.memory_format_of(tensor) for tensor in tensors)
    formats = (input, input, torch.contiguous_format, spatial)
    for result, expected, memory_format in zip(found, exact, formats):
        assert check.error(result, expected, dtype, memory_format) <= 3 * check.tolerance(dtype)


@pytest.mark.parametrize('case', DETERMINISM, ids=str)
def test_results_do_not_depend_on_the_run(emulation, case):
    tensors = case.tensors(torch.float32)
    first, second = (evaluate(emulation, tensors, case.settings) for _ in range(2))
    assert all(map(torch.equal, first, second))


def test_every_element_is_written(emulation):
    for case, dtype in itertools.product(UNREACHED, check.DTYPES):
        for result in evaluate(emulation, case.tensors(dtype), case.settings):
            assert result.isfinite().all()


@pytest.mark.parametrize('dtype', check.DTYPES, ids=str)
@pytest.mark.parametrize('kernel_combine', ['mul', 'add'])
def test_equal_taps(emulation, dtype, kernel_combine):
    """Normalised they are zeros; their gradient is finite wherever the dtype can hold it."""
    for channels_last in (False, True):
        case = Case((2, 8, 6, 8), 3, kernel_combine=kernel_combine, channels_last=channels_last, norm_gain=0.5)
        tensors = [tensor.fill_(0.3) if index == 3 else tensor for index, tensor in enumerate(case.tensors(dtype))]
        found = evaluate(emulation, tensors, case.settings)
        for result, expected in zip(found, evaluate(reference, tensors, case.settings)):
            largest = expected.abs().max().item()
            atol = 16 * torch.finfo(dtype).eps * max(largest, 1e-3)
            torch.testing.assert_close(result, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('limits', [LIMITS[0], LIMITS[-1]], ids=str)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
def test_sums_over_large_maps_round_little(emulation, memory_format, limits):
    generator = torch.Generator().manual_seed(0)
    # all of one sign: a sum of floats taken one after another is off by more than that
    grad, input = (
        torch.rand(4, 32, 28, 28, generator=generator).contiguous(memory_format=memory_format) for _ in range(2)
    )
    filters = torch.rand(1, 32, 3, 3, generator=generator), torch.rand(1, 9, 28, 28, generator=generator)
    values = 1, 1, 1, 'mul', None
    with emulation.limits(**limits):
        found = emulation.filter_gradients(grad, input, *filters, *values)
    exact = reference.filter_gradients(*(tensor.double() for tensor in (grad, input, *filters)), *values)
    for gradient, expected in zip(found, exact):
        assert (gradient - expected).abs().max() <= 1e-6 * expected.abs().max()
