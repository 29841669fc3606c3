"""Random calls: any shapes, strides, dtypes and settings against the definition in float64, and wrong ones."""

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ddf
from ddf import check, operators, reference

FUZZ = {'deadline': None, 'derandomize': True, 'database': None, 'suppress_health_check': list(HealthCheck)}
LAYOUTS = ('contiguous', 'channels_last', 'transposed', 'sliced', 'shifted', 'expanded')


@st.composite
def calls(draw):
    """Input, filters and keyword arguments of a call that is right."""
    head = draw(st.integers(1, 3))
    batch, channels = draw(st.sampled_from([1, 2, 3, 0])), head * draw(st.integers(1, 9))
    height, width = draw(st.integers(1, 12)), draw(st.integers(0, 20))
    size, stride = draw(st.sampled_from([3, 1, 5, 7])), draw(st.sampled_from([1, 2, 3, 50]))
    arguments = {
        'kernel_size': size,
        'dilation': draw(st.sampled_from([1, 2, 3, 40])),
        'stride': stride,
        'head': head,
        'kernel_combine': draw(st.sampled_from(['mul', 'add'])),
        'norm_gain': draw(st.sampled_from([None, 0.5, -2.0])) if size > 1 else None,
    }
    grid = reference.output_size(height, stride), reference.output_size(width, stride)
    shapes = (
        (batch, channels, height, width),
        (draw(st.sampled_from([batch, 1])), channels, size, size),
        (draw(st.sampled_from([batch, 1])), head * size**2, *grid),
    )
    dtype = draw(st.sampled_from(check.DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    tensors = []
    for index, shape in enumerate(shapes):
        layout = draw(st.sampled_from(LAYOUTS))
        fixed = 1 if index == 2 else 4  # equal taps have no gradient worth comparing
        dims = draw(st.sets(st.integers(0, 3).filter(lambda dim, fixed=fixed: dim != fixed), min_size=1))
        tensors.append(arrange(torch.randn(shape, generator=generator).to(dtype), layout, dims))
    return tensors, arguments


def arrange(tensor, layout, dims):
    """The same shape with other strides, and for 'expanded' other values."""
    if layout == 'channels_last':
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == 'transposed':
        return tensor.mT.contiguous().mT
    if layout == 'sliced':
        wide = torch.full([2 * length + 1 for length in tensor.shape], float('nan'), dtype=tensor.dtype)
        window = wide[1::2, 1::2, 1::2, 1::2]
        return window.copy_(tensor)
    if layout == 'shifted':  # by one element: no longer aligned to a vector
        return torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape).copy_(tensor)
    if layout == 'expanded' and tensor.numel():
        for dim in dims:
            tensor = tensor.narrow(dim, 0, 1).expand(tensor.shape)
    return tensor


def gradients(output, tensors, dtype):
    generator = torch.Generator().manual_seed(0)
    grad_output = torch.randn(output.shape, generator=generator).to(dtype)
    return torch.autograd.grad(output, tensors, grad_output.to(output.dtype))


@settings(max_examples=100, **FUZZ)
@given(calls())
def test_agrees_with_the_definition(call):
    tensors, arguments = call
    dtype = tensors[0].dtype
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    exact_tensors = [tensor.detach().double().requires_grad_() for tensor in tensors]
    order = ('dilation', 'stride', 'head', 'kernel_combine', 'norm_gain')
    exact = reference.forward(*exact_tensors, *(arguments[name] for name in order))
    output = ddf.ddf(*tensors, **arguments)
    input_format, spatial_format = (reference.memory_format_of(tensor) for tensor in (tensors[0], tensors[2]))
    formats = (input_format, input_format, torch.contiguous_format, spatial_format)
    found = (output.detach(), *gradients(output, tensors, dtype))
    expected = (exact.detach(), *gradients(exact, exact_tensors, dtype))
    errors = [check.error(*pair, dtype, memory_format) for *pair, memory_format in zip(found, expected, formats)]
    assert max(errors) <= check.tolerance(dtype), dict(zip(check.RESULTS, errors))


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2, 4, 6, 2**31, 2**63, -(2**63), 2**70]),
    st.floats(),
    st.text(max_size=3),
    st.just('mul'),
    st.lists(st.integers(), max_size=2),
    st.just(torch.ones(())),
)
SPOILERS = (
    lambda tensor: tensor[None],
    lambda tensor: tensor[0],
    lambda tensor: tensor[:, :1],
    lambda tensor: tensor[:, :, :-1],
    lambda tensor: tensor[..., :0],
    lambda tensor: torch.cat([tensor, tensor]),
    lambda tensor: tensor.repeat(1, 1, 2, 1),
    lambda tensor: tensor.long(),
    lambda tensor: tensor.bool(),
    lambda tensor: tensor.to(torch.complex64),
    lambda tensor: tensor.to(torch.float8_e5m2),
    lambda tensor: tensor.double() if tensor.dtype != torch.float64 else tensor.half(),
    lambda tensor: tensor.to('meta'),
    lambda tensor: tensor.to_sparse(),
    lambda tensor: tensor.tolist(),
    lambda tensor: None,
)


@settings(max_examples=120, **FUZZ)
@given(calls(), st.data())
def test_wrong_calls_raise_value_or_type_error(call, data):
    tensors, arguments = call
    assume(tensors[0].numel())
    if data.draw(st.booleans()):
        name = data.draw(st.sampled_from(sorted(arguments)))
        arguments[name] = data.draw(WRONG)
    else:
        index = data.draw(st.integers(0, 2))
        tensors[index] = data.draw(st.sampled_from(SPOILERS))(tensors[index])
    try:
        output = ddf.ddf(*tensors, **arguments)
    except (ValueError, TypeError):
        return
    assert output.shape[:2] == tensors[0].shape[:2]  # not wrong after all, such as the first of a single channel


@settings(max_examples=120, **FUZZ)
@given(calls(), st.data())
def test_wrong_direct_calls_raise_runtime_error(call, data):
    """torch.ops is called without the public function's checks."""
    tensors, arguments = call
    assume(tensors[0].numel())
    order = ('dilation', 'stride', 'head', 'kernel_combine', 'norm_gain')
    values = [arguments[name] for name in order]
    if data.draw(st.booleans()):
        values[data.draw(st.integers(0, 4))] = data.draw(WRONG)
    else:
        index = data.draw(st.integers(0, 2))
        tensors[index] = data.draw(st.sampled_from(SPOILERS[:9]))(tensors[index])
    grad_output = data.draw(st.sampled_from([tensors[0], tensors[2], torch.ones(1, 2, 3, 4)]))
    for operator, leading in (
        (operators.forward, ()),
        (operators.input_gradient, (grad_output,)),
        (operators.filter_gradients, (grad_output,)),
    ):
        try:
            operator(*leading, *tensors, *values)
        except (RuntimeError, TypeError, OverflowError):  # the last two from the binding of arguments to the schema
            continue
