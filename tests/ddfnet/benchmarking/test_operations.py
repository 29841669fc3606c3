"""The operation's formulations compute the operation; models and operations count what they should."""

import pytest
import torch

from ddfnet.benchmarking import operations
from ddfnet.benchmarking.networks import Network
from ddfnet.benchmarking.operations import Operation
from ddfnet.benchmarking.subjects import Job
from ddfnet.config import BenchmarkConfig, PrecisionConfig
from ddfnet.precision import Precision

SHAPE = (3, 6, 7, 9)


def operation(name: str, train: bool = False, kernel_size: int = 3, **precision: bool) -> Operation:
    config = BenchmarkConfig(train=train, kernel_size=kernel_size)
    return Operation(Job(name, 3, SHAPE), config, Precision(PrecisionConfig(**precision), torch.device('cpu')))


@pytest.mark.parametrize('kernel_size', [3, 5])
@pytest.mark.parametrize('precision', [{}, {'amp': True, 'channels_last': True}], ids=['float32', 'amp'])
@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', ['ddf', 'unfold', 'shifted'])
def test_formulations_agree_with_the_definition(name, train, precision, kernel_size):
    work = operation(name, train, kernel_size, **precision).work(3, compiled=True)
    assert work.error is not None
    assert work.error() < work.tolerance


@pytest.mark.parametrize('train', [False, True])
def test_a_wrong_formulation_is_noticed(monkeypatch, train):
    """The wrong one swaps two taps, in the last image alone."""
    right = operations.unfolded

    def wrong(input, channel_filter, spatial_filter):
        swapped = spatial_filter[:, [1, 0, *range(2, 9)]]
        spatial_filter = torch.cat([spatial_filter[:-1], swapped[-1:]])
        return right(input, channel_filter, spatial_filter)

    monkeypatch.setattr(operations, 'unfolded', wrong)
    work = operation('unfold', train).work(3, compiled=True)
    assert work.error is not None
    assert work.error() > 100 * work.tolerance


def test_not_a_number_is_an_error(monkeypatch):
    monkeypatch.setattr(operations, 'shifted', lambda input, *_: input * float('nan'))
    work = operation('shifted').work(3, compiled=True)
    assert work.error is not None
    assert work.error() == float('inf')


@pytest.mark.parametrize('name', ['conv', 'depthwise', 'module'])
def test_training_leaves_gradients(name):
    subject = operation(name, train=True)
    work = subject.work(3, compiled=True)
    before = len(work.held())
    work.run()
    leaves = len(list(subject.function.parameters())) + 1
    assert len(work.held()) == before + leaves


@pytest.mark.parametrize('train', [False, True])
def test_modules_are_in_the_mode_that_is_measured(train):
    assert operation('module', train=train).function.training == train


def test_counts_per_image():
    per_tap = 9 * 6 * 7 * 9 / 1e9
    assert operation('conv').gmacs == pytest.approx(6 * per_tap)
    for name in ('depthwise', 'ddf', 'unfold', 'shifted', 'compiled'):
        assert operation(name).gmacs == pytest.approx(per_tap)
    assert operation('module').gmacs > 2 * per_tap  # the op, and as much for the spatial filters
    assert [operation(name).params for name in ('conv', 'depthwise', 'ddf')] == [6 * 6 * 9, 6 * 9, 0]


def test_counts_of_the_paper():
    network = Network(Job('ddf_mul_resnet50', 1), BenchmarkConfig(), Precision(PrecisionConfig(), torch.device('cpu')))
    assert network.params == 16_843_748
    assert network.gmacs == pytest.approx(2.2668, abs=5e-5)
    assert network.input_size == (3, 224, 224)


def test_attention_is_counted():
    """timm's vit_tiny_patch16_224 has 1.08 GMACs outside of attention; its 197 tokens meet in 12 layers."""
    config = BenchmarkConfig()
    network = Network(Job('vit_tiny_patch16_224', 1), config, Precision(PrecisionConfig(), torch.device('cpu')))
    attention = 12 * 2 * 197**2 * 192 / 1e9
    linear = 12 * 197 * 192**2 * 12 / 1e9
    embedding = 196 * 768 * 192 / 1e9
    assert network.gmacs == pytest.approx(attention + linear + embedding + 192 * 1000 / 1e9)


def test_training_step_changes_the_weights():
    config = BenchmarkConfig(train=True, img_size=32, model_kwargs={'channels': (8, 8, 16, 16)})
    network = Network(Job('ddf_mul_resnet26', 2), config, Precision(PrecisionConfig(), torch.device('cpu')))
    weight = next(network.model.parameters()).detach().clone()
    work = network.work(2, compiled=True)
    work.run()
    assert not torch.equal(weight, next(network.model.parameters()))
    parameters, buffers = len(list(network.model.parameters())), len(list(network.model.buffers()))
    assert len(work.held()) == 3 * parameters + buffers + 1  # weights, gradients, momenta; buffers; images
