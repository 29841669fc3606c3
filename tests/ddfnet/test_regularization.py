"""Losses, averages, dropped paths and blocks, recomputed activations: what they compute, and that they are reached."""

import csv

import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from torch import nn

from ddfnet.checkpoints import load_weights, read_checkpoint
from ddfnet.config import ModelConfig, TrainConfig, replace_values
from ddfnet.evaluation import evaluate
from ddfnet.precision import Precision
from ddfnet.training import command
from ddfnet.training.components import build_components
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.network import build_network
from ddfnet.training.task import create_task
from tests.ddfnet.conftest import TINY_RUN
from tests.ddfnet.engine_parts import CPU, batches, network, parts, state

TINY = {'model': 'ddf_mul_resnet26', 'model_kwargs': {'channels': (8, 8, 16, 16)}}
LABELS = torch.tensor([0, 2, 1, 1])


def task_loss(targets=LABELS, **values) -> tuple[float, torch.Tensor]:
    """The loss of a linear model by configuration, and its outputs (4, 3)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    config = replace_values(TrainConfig(), values)
    task = create_task(config, model, Precision(config.precision, CPU.device))
    images = batches(1)[0][0]
    return task(images, targets)['loss'].item(), model(images).detach()


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy_is_smoothed(smoothing):
    found, output = task_loss(smoothing=smoothing)
    log = output.log_softmax(1)
    expected = -(1 - smoothing) * log.gather(1, LABELS[:, None]).mean() - smoothing * log.mean()
    assert found == pytest.approx(expected.item())


def test_soft_targets_are_those_of_mixup():
    targets = torch.tensor([[0.7, 0.2, 0.1]] * 4, dtype=torch.float64)
    found, output = task_loss(targets, mixup=0.2)
    assert found == pytest.approx(-(targets * output.log_softmax(1)).sum(1).mean().item())


@pytest.mark.parametrize(
    'settings',
    [
        {'smoothing': 0.0},
        {'smoothing': 0.1},
        {'smoothing': 0.3, 'bce_target_thresh': 0.2},
        {'smoothing': 0.0, 'bce_sum': True},
        {'smoothing': 0.0, 'bce_pos_weight': 2.5},
    ],
)
def test_binary_cross_entropy(settings):
    found, output = task_loss(bce_loss=True, **settings)
    off = settings['smoothing'] / 3
    targets = torch.full((4, 3), off, dtype=torch.float64).scatter(1, LABELS[:, None], 1 - settings['smoothing'] + off)
    if 'bce_target_thresh' in settings:
        targets = (targets > settings['bce_target_thresh']).double()
    positive = settings.get('bce_pos_weight', 1.0) * targets * F.logsigmoid(output)
    each = -(positive + (1 - targets) * F.logsigmoid(-output))
    expected = each.sum(1).mean() if settings.get('bce_sum') else each.mean()
    assert found == pytest.approx(expected.item())


@pytest.mark.parametrize('warm_up', [False, True])
def test_average_moves_by_its_decay(warm_up):
    """The first step sets it. Warmed up, the share that stays is 1 - (1 + steps before)**(-2/3) up to the limit."""
    model = network().double()
    components = parts(model, batches(5), model_ema=True, model_ema_decay=0.7, model_ema_warmup=warm_up)
    average = {name: value.clone() for name, value in model.state_dict().items()}

    def follow(report):
        decay = 0.7 if report.step > 1 else 0.0
        if warm_up:
            decay = min(decay, 1 - report.step ** (-2 / 3))
        for name, value in model.state_dict().items():
            moved = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            average[name] = moved

    train_epoch(components, Progress(), CPU, follow)
    found = components.ema_model.state_dict()
    assert found.keys() == average.keys()
    for name, value in average.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    assert not torch.equal(found['0.weight'], model.state_dict()['0.weight'])


def test_average_is_validated_beside_the_model(run_command, tmp_path):
    flags = ('--epochs', '1', '--warmup-epochs', '0', '--model-ema', '--model-ema-decay', '0.9', '--experiment', 'a')
    assert run_command(command.main, *TINY_RUN, '--output', tmp_path, *flags) == 0
    with open(tmp_path / 'a' / 'summary.csv', newline='') as file:
        row = next(csv.DictReader(file))
    config = replace_values(TrainConfig(), {'dataset': 'digits', **TINY, 'in_chans': 1, 'img_size': 32, 'workers': 0})
    values = {'batch_size': 16, 'train_num_samples': 96, 'val_num_samples': 50, 'lr': 0.02}
    components = build_components(replace_values(config, values), CPU)
    checkpoint = read_checkpoint(tmp_path / 'a' / 'last.pth.tar')
    losses = {}
    for name, use_ema in (('validation', False), ('ema', True)):
        load_weights(components.model, checkpoint, tmp_path, use_ema)
        losses[name] = evaluate(components.model, components.validation_loader, components.precision, CPU)['loss']
        assert float(row[f'{name}/loss']) == pytest.approx(losses[name], rel=1e-5)
    assert losses['validation'] != losses['ema']
    assert checkpoint['metric'] == float(row['ema/top1'])


@pytest.mark.parametrize(('values', 'device'), [({}, None), ({'model_ema_force_cpu': True}, torch.device('cpu'))])
def test_average_lies_beside_the_model_or_on_the_cpu(monkeypatch, values, device):
    asked = {}
    monkeypatch.setattr('timm.task.task.TrainingTask.setup_ema', lambda task, **settings: asked.update(settings))
    config = replace_values(TrainConfig(), {'model_ema': True, 'model_ema_decay': 0.9, **values})
    create_task(config, nn.Linear(2, 2), Precision(config.precision, CPU.device))
    assert asked == {'decay': 0.9, 'use_warmup': False, 'device': device}


@pytest.mark.parametrize('name', ['ddf_mul_resnet26', 'test_vit'])
def test_recomputed_activations_give_equal_gradients(name):
    def build(checkpointing):
        torch.manual_seed(0)
        kwargs = TINY['model_kwargs'] if name == TINY['model'] else {}
        settings = ModelConfig(model=name, model_kwargs=kwargs, grad_checkpointing=checkpointing)
        return build_network(settings, 10, 3).double()

    images = torch.randn(2, 3, 160, 160, dtype=torch.float64)
    found = []
    for checkpointing in (False, True):
        model, forwards = build(checkpointing), []
        assert model.grad_checkpointing is checkpointing
        model.get_submodule('layer2.0' if name == TINY['model'] else 'blocks.0').register_forward_pre_hook(
            lambda *_, forwards=forwards: forwards.append(1)
        )
        gradients = torch.autograd.grad(model(images).square().mean(), list(model.parameters()))
        found.append(gradients)
        assert len(forwards) == 1 + checkpointing  # once more in the backward pass
    for gradient, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, gradient, rtol=1e-10, atol=1e-14)


def test_drop_rates_reach_the_model():
    model = build_network(ModelConfig(**TINY, drop=0.3, drop_path=0.2, drop_block=0.1), 10, 1)
    assert model.drop_rate == 0.3
    paths = [module.drop_prob for module in model.modules() if isinstance(module, DropPath)]
    assert paths == pytest.approx([0.2 * index / 7 for index in range(1, 8)])  # the first block's rate is 0
    blocks = {path: module for path, module in model.named_modules() if isinstance(module, DropBlock2d)}
    assert {module.drop_prob for module in blocks.values()} == {0.1}
    assert {path.split('.')[0] for path in blocks} == {'layer3', 'layer4'}
    images = torch.randn(2, 1, 32, 32)
    model.train()
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert not [
        module for module in build_network(ModelConfig(**TINY), 10, 1).modules() if isinstance(module, DropPath)
    ]


def test_batches_that_fill_no_step_are_left_out():
    """An epoch of five batches, two per step, is one of four."""
    runs = []
    for count in (5, 4):
        components, progress, reports = (
            parts(network().double(), batches(5)[:count], grad_accum_steps=2),
            Progress(),
            [],
        )
        loss = train_epoch(components, progress, CPU, reports.append)
        assert (progress.updates, [report.step for report in reports]) == (2, [1, 2])
        assert all(parameter.grad is None for parameter in components.model.parameters())
        runs.append((loss, state(components)))
    assert runs[0][0] == runs[1][0]
    for tensor, other in zip(runs[0][1], runs[1][1], strict=True):
        assert torch.equal(tensor, other)
