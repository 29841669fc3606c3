"""Learning rates: every schedule of timm per epoch and per update, resumed, scaled from a base, and by layer."""

import math
import warnings

import pytest
import torch
from timm import scheduler as timm_schedulers
from timm.scheduler.wsd_lr import WSDLRScheduler

from ddfnet.config import TrainConfig, replace_values
from ddfnet.errors import UserError
from ddfnet.models.build import build_model
from ddfnet.training.checkpoint import Best, restore_run, save_run
from ddfnet.training.command import _advance_schedule
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.optimization import create_optimizer, create_scheduler, first_learning_rate, learning_rate
from ddfnet.training.run_directory import RunDirectory
from tests.ddfnet.engine_parts import CPU, batches, network, parts

EPOCHS, STEPS = 6, 2
METRICS = [50.0, 60.0, 55.0, 54.0, 53.0, 52.0, 51.0, 50.0]
COMMON = {
    'lr': 0.4, 'warmup_lr': 0.01, 'warmup_epochs': 2, 'epochs': EPOCHS, 'min_lr': 0.001, 'cooldown_epochs': 1,
    'weight_decay': 0.001, 'momentum': 0.5,
}  # fmt: skip
SETTINGS = {
    'cosine': {'lr_k_decay': 1.5, 'lr_noise': (0.5,), 'lr_noise_pct': 0.2, 'lr_noise_std': 0.1},
    'tanh': {'warmup_prefix': True},
    'step': {'decay_epochs': 2.0, 'decay_rate': 0.3},
    'multistep': {'decay_milestones': (3, 5), 'decay_rate': 0.3},
    'poly': {'decay_rate': 0.9, 'lr_cycle_limit': 2, 'lr_cycle_decay': 0.5},
    'plateau': {'decay_rate': 0.3, 'patience_epochs': 1},
    'wsd': {'decay_epochs': 0.5},
    'rsqrt': {'decay_epochs': 2.0},
    'constant': {},
}
CASES = [(name, clock) for name in SETTINGS for clock in (False, True) if (name, clock) != ('plateau', True)]


def by_hand(name, optimizer, unit):
    """timm's scheduler with its arguments written out; an epoch is `unit` steps of its clock."""
    prefix = {'warmup_prefix': name == 'tanh'}
    clock = {'t_in_epochs': unit == 1, 'warmup_lr_init': 0.01, 'warmup_t': 2 * unit}
    cyclic = {'t_initial': EPOCHS * unit, 'lr_min': 0.001, **clock, **prefix}
    if name == 'cosine':
        noise = {'noise_range_t': 3 * unit, 'noise_pct': 0.2, 'noise_std': 0.1, 'noise_seed': 42}
        return timm_schedulers.CosineLRScheduler(optimizer, k_decay=1.5, **noise, **cyclic)
    if name == 'tanh':
        return timm_schedulers.TanhLRScheduler(optimizer, **cyclic)
    if name == 'step':
        return timm_schedulers.StepLRScheduler(optimizer, decay_t=2 * unit, decay_rate=0.3, **clock, **prefix)
    if name == 'multistep':
        return timm_schedulers.MultiStepLRScheduler(
            optimizer, decay_t=[3 * unit, 5 * unit], decay_rate=0.3, **clock, **prefix
        )
    if name == 'poly':
        return timm_schedulers.PolyLRScheduler(optimizer, power=0.9, cycle_limit=2, cycle_decay=0.5, **cyclic)
    if name in ('wsd', 'rsqrt'):
        shape = {'stable_fn': 'constant', 'decay_fn': '1-sqrt'} if name == 'wsd' else {
            'stable_fn': 'rsqrt', 'decay_fn': 'linear',
        }  # fmt: skip
        return WSDLRScheduler(optimizer, t_initial=4 * unit, decay_t=2 * unit, lr_min=0.001, **shape, **clock)
    if name == 'constant':
        return timm_schedulers.StepLRScheduler(optimizer, decay_t=1, decay_rate=1.0, **clock, **prefix)
    return timm_schedulers.PlateauLRScheduler(
        optimizer, decay_rate=0.3, patience_t=1, warmup_t=2, warmup_lr_init=0.01, lr_min=0.001
    )


def components_of(name, per_update):
    values = {**COMMON, **SETTINGS.get(name, {}), 'sched': name, 'sched_on_updates': per_update}
    model = network()
    config = replace_values(TrainConfig(), values)
    optimizer = create_optimizer(config, model)
    with warnings.catch_warnings(action='ignore'):
        scheduler, num_epochs = create_scheduler(config, optimizer, STEPS)
    components = parts(model, batches(STEPS, dtype=torch.float32), optimizer, scheduler=scheduler, **values)
    components.num_epochs = num_epochs
    return components


def run(components, progress, until):
    """Trains up to an epoch, as train.py does. Returns the rate of every step."""
    rates = []
    while progress.epoch < until:
        train_epoch(components, progress, CPU, lambda report: rates.append(report.lr))
        metric = METRICS[progress.epoch % len(METRICS)]
        progress.start_epoch(progress.epoch + 1)
        _advance_schedule(components, progress, metric)
    return rates


@pytest.mark.parametrize(('name', 'per_update'), CASES)
def test_rates_are_those_of_timms_schedule(name, per_update):
    components = components_of(name, per_update)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.4)
    with warnings.catch_warnings(action='ignore'):
        scheduler = by_hand(name, optimizer, STEPS if per_update else 1)
    expected = []
    for epoch in range(components.num_epochs):
        for update in range(STEPS):
            expected.append(learning_rate(optimizer))
            scheduler.step_update(epoch * STEPS + update + 1)
        scheduler.step(epoch + 1, METRICS[epoch % len(METRICS)])
    assert run(components, Progress(), components.num_epochs) == expected
    assert len(set(expected)) > 2
    ending = {'cosine': 7, 'tanh': 9, 'poly': 13, 'wsd': 7, 'rsqrt': 7}  # with cool-down, prefixed warm-up, two cycles
    assert components.num_epochs == ending.get(name, EPOCHS)


def test_cosine_is_half_a_wave_after_the_warm_up():
    values = {**COMMON, 'sched': 'cosine', 'epochs': 100, 'warmup_epochs': 5, 'cooldown_epochs': 10}
    config = replace_values(TrainConfig(), values)
    optimizer = create_optimizer(config, network())
    scheduler, num_epochs = create_scheduler(config, optimizer, STEPS)
    assert num_epochs == 110
    for epoch in (0, 3, 5, 50, 99, 100, 105):
        scheduler.step(epoch)
        wave = 0.001 + (0.4 - 0.001) * (1 + math.cos(math.pi * min(epoch, 100) / 100)) / 2
        assert learning_rate(optimizer) == pytest.approx(0.01 + epoch * (0.4 - 0.01) / 5 if epoch < 5 else wave)


def test_no_schedule_leaves_the_rate():
    components = components_of('none', False)
    assert components.scheduler is None
    assert set(run(components, Progress(), 3)) == {0.4}


@pytest.mark.parametrize(('name', 'per_update'), [*CASES, ('none', False)])
def test_resumed_run_has_the_same_rates(tmp_path, name, per_update):
    whole = components_of(name, per_update)
    end = whole.num_epochs
    expected = run(whole, Progress(), end)
    for cut in (1, 4):
        first, progress, directory = components_of(name, per_update), Progress(), RunDirectory(tmp_path)
        rates = run(first, progress, cut)
        save_run(first, progress, Best(), directory)
        second = components_of(name, per_update)
        progress, _ = restore_run(second, directory.last, CPU)
        _advance_schedule(second, progress, metric=None)
        assert rates + run(second, progress, end) == expected


def test_plateau_with_noise_goes_on_from_the_rate_without_it(tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, 'plateau', {**SETTINGS['plateau'], 'lr_noise': (0.1,), 'lr_noise_pct': 0.3})
    expected = run(components_of('plateau', False), Progress(), EPOCHS)
    first, progress, directory = components_of('plateau', False), Progress(), RunDirectory(tmp_path)
    rates = run(first, progress, 5)
    save_run(first, progress, Best(), directory)
    second = components_of('plateau', False)
    progress, _ = restore_run(second, directory.last, CPU)
    _advance_schedule(second, progress, metric=None)
    assert rates + run(second, progress, EPOCHS) == expected


def test_plateau_warms_up_in_epochs_without_a_validation():
    components, progress, rates = components_of('plateau', False), Progress(), []
    for epoch in range(3):
        rates.append(learning_rate(components.optimizer))
        progress.start_epoch(epoch + 1)
        _advance_schedule(components, progress, metric=None)
    assert rates == pytest.approx([0.01, 0.205, 0.4])


def test_settings_of_a_resumed_run_are_those_given_now(tmp_path, monkeypatch):
    for name in ('constant', 'none'):
        first, progress, directory = components_of(name, False), Progress(), RunDirectory(tmp_path)
        run(first, progress, 3)
        save_run(first, progress, Best(), directory)
        with monkeypatch.context() as changed:
            changed.setitem(COMMON, 'lr', 0.2)
            changed.setitem(COMMON, 'momentum', 0.7)
            changed.setitem(COMMON, 'weight_decay', 0.01)
            second = components_of(name, False)
        progress, _ = restore_run(second, directory.last, CPU)
        _advance_schedule(second, progress, metric=None)
        assert learning_rate(second.optimizer) == 0.2
        assert {group['momentum'] for group in second.optimizer.param_groups} == {0.7}
        assert [group['weight_decay'] for group in second.optimizer.param_groups] == [0.0, 0.01]
        assert second.optimizer.state


@pytest.mark.parametrize(
    ('values', 'world_size', 'expected'),
    [
        ({'batch_size': 128}, 8, 0.1 * 1024 / 256),
        ({'batch_size': 128, 'grad_accum_steps': 2}, 1, 0.1),
        ({'batch_size': 64, 'opt': 'adamw', 'lr_base': 1e-3}, 1, 1e-3 * 0.5),
        ({'batch_size': 64, 'opt': 'lamb', 'lr_base': 1e-3}, 4, 1e-3),
        ({'batch_size': 64, 'opt': 'adamw', 'lr_base': 1e-3, 'lr_base_scale': 'linear'}, 1, 1e-3 * 0.25),
        ({'batch_size': 128, 'lr_base_scale': 'sqrt', 'lr_base_size': 512}, 1, 0.1 * 0.5),
        ({'batch_size': 128, 'lr': 0.3, 'lr_base': 0.7}, 8, 0.3),
    ],
)
def test_rate_follows_the_images_of_a_step(values, world_size, expected):
    assert first_learning_rate(replace_values(TrainConfig(), values), world_size) == pytest.approx(expected)


def ddf_model():
    config = replace_values(TrainConfig(), {'model_kwargs': {'channels': [8, 8, 16, 16]}})
    return build_model(config.model, 'ddf_mul_resnet26', 10, 1)


def test_layer_decay_reaches_every_group_through_the_schedule():
    values = {'layer_decay': 0.5, 'lr': 0.4, 'sched': 'cosine', 'epochs': 10, 'warmup_epochs': 0, 'min_lr': 0.0}
    config, model = replace_values(TrainConfig(), values), ddf_model()
    optimizer = create_optimizer(config, model)
    scheduler, _ = create_scheduler(config, optimizer, STEPS)
    group_of = {id(parameter): group for group in optimizer.param_groups for parameter in group['params']}
    named = {name: group_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(named) == len(group_of)  # none left out
    layers = [
        'fc.',
        'layer4.1.',
        'layer4.0.',
        'layer3.1.',
        'layer3.0.',
        'layer2.1.',
        'layer2.0.',
        'layer1.1.',
        'layer1.0.',
    ]
    for depth, prefix in enumerate(layers):
        scales = {group['lr_scale'] for name, group in named.items() if name.startswith(prefix)}
        assert scales == {0.5**depth}
        assert any('conv2.channel_branch.4.std' in name for name in named if name.startswith(prefix)) or prefix == 'fc.'
    assert named['conv1.weight']['lr_scale'] == 0.5**9
    assert learning_rate(optimizer) == pytest.approx(0.4)
    scheduler.step(5)
    assert learning_rate(optimizer) == pytest.approx(0.2)
    for group in optimizer.param_groups:
        assert group['lr'] == pytest.approx(0.2 * group['lr_scale'])


def test_layer_decay_needs_layers(monkeypatch):
    config = replace_values(TrainConfig(), {'layer_decay': 0.5, 'lr': 0.4})
    with pytest.raises(UserError, match='does not say which layers it has: leave --layer-decay out'):
        create_optimizer(config, network())


@pytest.mark.parametrize('layer_decay', [None, 0.7])
def test_weights_of_one_dimension_are_spared_weight_decay(layer_decay):
    config = replace_values(TrainConfig(), {'lr': 0.4, 'weight_decay': 0.03, 'layer_decay': layer_decay})
    model = ddf_model()
    optimizer = create_optimizer(config, model)
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    spared = {name for name, value in found.items() if value == 0}
    assert {found[name] for name in found.keys() - spared} == {0.03}
    assert spared == {
        name for name in found if name.endswith(('.bias', '.std')) or 'bn' in name or 'downsample.1' in name
    }
    assert 'layer1.0.conv2.channel_branch.4.std' in spared  # of FilterNorm


def test_model_says_itself_what_else_is_spared():
    config = replace_values(TrainConfig(), {'lr': 0.4, 'weight_decay': 0.03})
    model = build_model(config.model, 'test_vit', 10, 3)
    optimizer = create_optimizer(config, model)
    spared = {id(p) for group in optimizer.param_groups if group['weight_decay'] == 0 for p in group['params']}
    assert id(model.pos_embed) in spared
    assert id(model.patch_embed.proj.weight) not in spared
