"""The operation and its modules against the official implementation's numbers, in float64."""

import pytest
import torch

import ddf
from tests.conftest import assert_golden, load_golden, set_golden_weights

OP_CASES = load_golden('ddf_op_cases.json')
MODULE_CASES = load_golden('modules_cases.json')


@pytest.mark.parametrize('case', OP_CASES, ids=lambda case: f'c{case["case"]:02d}')
def test_operation(case, backend):
    numbers = load_golden('ddf_op.npz')
    name = f'c{case["case"]:02d}'
    tensors = [
        torch.from_numpy(numbers[f'{name}/{key}']).requires_grad_() for key in ('x', 'channel_filter', 'spatial_filter')
    ]
    output = ddf.ddf(*tensors, case['kernel_size'], case['dilation'], case['stride'], 1, case['op'])
    assert_golden(output, numbers[f'{name}/out'])
    gradients = torch.autograd.grad(output, tensors, torch.from_numpy(numbers[f'{name}/grad_out']))
    for gradient, key in zip(gradients, ('x', 'channel_filter', 'spatial_filter')):
        assert_golden(gradient, numbers[f'{name}/grad_{key}'])


@pytest.mark.parametrize(
    'case', [case for case in MODULE_CASES if case['kind'] != 'FilterNorm'], ids=lambda case: case['name']
)
def test_module(case, backend):
    compare_module(case)


@pytest.mark.parametrize(
    'case', [case for case in MODULE_CASES if case['kind'] == 'FilterNorm'], ids=lambda case: case['name']
)
def test_filter_norm(case):
    compare_module(case)


def compare_module(case):
    numbers = load_golden('modules.npz')
    name = case['name']
    module = getattr(ddf, case['kind'])(**case['args']).double()
    assert {key: list(value.shape) for key, value in module.state_dict().items()} == case['state_dict']
    set_golden_weights(module)
    inputs = {key: torch.from_numpy(numbers[f'{name}/in/{key}']).requires_grad_() for key in case['inputs']}
    output = module(**inputs)
    assert_golden(output, numbers[f'{name}/out'])
    output.backward(torch.from_numpy(numbers[f'{name}/grad_out']))
    for key, tensor in inputs.items():
        assert_golden(tensor.grad, numbers[f'{name}/grad_in/{key}'])
    for key, parameter in module.named_parameters():
        assert_golden(parameter.grad, numbers[f'{name}/grad/{key}'])
