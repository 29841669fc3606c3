"""First weights and normalisation of the network to train."""

import json

import pytest
import torch
from torch.nn import BatchNorm2d

from ddfnet.config import ModelConfig
from ddfnet.errors import UserError
from ddfnet.seeding import reseed
from ddfnet.training import command
from ddfnet.training.network import build_network
from ddfnet.validation import main as validate

RUN = (
    *('--dataset', 'digits', '--train-num-samples', 24, '--val-num-samples', 20, '-j', 0, '--device', 'cpu'),
    *('--model', 'test_resnet', '--img-size', 32, '-b', 8, '--epochs', 1, '--warmup-epochs', 0, '--cooldown-epochs', 0),
)


def build(**settings):
    reseed(0)
    return build_network(ModelConfig(model='test_resnet', **settings), 10, 1)


def test_head_is_scaled_then_biased():
    plain, scaled = build().get_classifier(), build(head_init_scale=0.5).get_classifier()
    torch.testing.assert_close(scaled.weight, plain.weight / 2)
    torch.testing.assert_close(scaled.bias, plain.bias / 2)
    biased = build(head_init_bias=-4.6).get_classifier()
    assert torch.equal(biased.weight, plain.weight)
    assert torch.equal(biased.bias, torch.full_like(plain.bias, -4.6))


def test_every_batch_norm_is_set():
    layers = [module for module in build(bn_momentum=0.02, bn_eps=1e-3).modules() if isinstance(module, BatchNorm2d)]
    assert layers
    assert {(layer.momentum, layer.eps) for layer in layers} == {(0.02, 1e-3)}


@pytest.mark.parametrize(('settings', 'message'), [
    ({'bn_eps': 1e-3, 'model': 'test_vit'}, 'no BatchNorm: leave --bn-momentum and --bn-eps out'),
    ({'head_init_scale': 0.1, 'gp': 'avg', 'model': 'test_resnet'}, 'no classifier with weights and biases'),
])  # fmt: skip
def test_models_without_what_is_set_are_refused(settings, message):
    num_classes = 10 if 'bn_eps' in settings else 0
    with pytest.raises(UserError, match=message):
        build_network(ModelConfig(**settings), num_classes, 3)


def test_split_batch_norm_trains_goes_on_and_validates(run_command, tmp_path, capsys):
    flags = (*RUN, '--output', tmp_path, '--experiment', 'a', '--aug-splits', 2, '--split-bn')
    assert run_command(command.main, *flags) == 0
    checkpoint = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)
    means = [name for name in checkpoint['state_dict'] if name.endswith('bn1.running_mean')]
    auxiliary = [name for name in checkpoint['state_dict'] if name.endswith('bn1.aux_bn.0.running_mean')]
    assert len(means) == len(auxiliary) > 0
    assert not torch.equal(checkpoint['state_dict'][means[0]], checkpoint['state_dict'][auxiliary[0]])
    assert run_command(command.main, *flags, '--epochs', 2, '--resume', 'auto') == 0
    capsys.readouterr()
    assert run_command(validate, '--checkpoint', tmp_path / 'a' / 'last.pth.tar', '-j', 0, '--num-samples', 20) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['count'] == 20
