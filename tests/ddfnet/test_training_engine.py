"""The loop itself: accumulation, clipping, what is reported, and steps that are suppressed."""

import dataclasses
import itertools

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask
from torch.utils._python_dispatch import TorchDispatchMode

from ddfnet.config import OptimizerConfig
from ddfnet.errors import UserError
from ddfnet.training import engine
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.gradients import GradientClipper
from tests.ddfnet.engine_parts import CPU, batches, network, parts, state

SYNCHRONISING = {'aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::item', 'aten::equal', 'aten::nonzero'}


class Calls(TorchDispatchMode):
    """Lists the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.name().split('.')[0])
        return function(*args, **(kwargs or {}))

    @property
    def synchronising(self) -> int:
        """Of them, those for which an accelerator would have to be waited for."""
        return sum(name in SYNCHRONISING for name in self.names)


def device_decides(monkeypatch) -> None:
    """Has the loop do on the CPU what it does on an accelerator."""
    build = engine._step_guard

    def guard(components, processes):
        built = build(components, processes)
        built.host_decides = False
        return built

    monkeypatch.setattr(engine, '_step_guard', guard)


def poisoned(given, *indices):
    return [(images * (float('nan') if i in indices else 1), labels) for i, (images, labels) in enumerate(given)]


def assert_equal_states(found, expected):
    for tensor, other in zip(found, expected, strict=True):
        assert torch.equal(tensor, other)


def test_accumulated_batches_equal_one_large_batch():
    small = batches(4, 4)
    large = [(torch.cat([small[i][0], small[i + 1][0]]), torch.cat([small[i][1], small[i + 1][1]])) for i in (0, 2)]
    models = [network(batch_norm=False).double() for _ in range(2)]
    accumulated = parts(models[0], small, grad_accum_steps=2, clip_grad=0.1)
    whole = parts(models[1], large, clip_grad=0.1)
    losses = [train_epoch(components, Progress(), CPU) for components in (accumulated, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)
    for tensor, other in zip(state(accumulated), state(whole), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-12, atol=1e-14)


def test_report_says_what_a_step_was():
    reports, given = [], batches(3)
    model = network().double()
    components = parts(model, given, clip_grad=1e-3)
    expected = torch.nn.functional.cross_entropy(model(given[0][0]), given[0][1])
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    progress = Progress()
    loss = train_epoch(components, progress, CPU, reports.append)
    assert [report.step for report in reports] == [1, 2, 3]
    assert reports[0].loss == pytest.approx(expected.item())
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    assert reports[0].grad_norm.item() == pytest.approx(norm.item())  # as it was before clipping
    assert reports[-1].loss.item() == pytest.approx(loss)
    assert (reports[-1].labelled, reports[-1].correct.item()) == (12, progress.correct)
    assert progress.top1 == 100 * progress.correct / 12


def test_norm_of_half_precision_gradients_exceeds_their_range():
    model = torch.nn.Linear(300, 300).half()
    clip = GradientClipper(OptimizerConfig(), ClassificationTask(model, verbose=False))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1000)
    assert clip().item() == pytest.approx(1000 * (300 * 300 + 300) ** 0.5, rel=1e-3)


@pytest.mark.parametrize(('mode', 'limit'), [('norm', 1e-3), ('value', 1e-4), ('agc', 1e-3)])
def test_clipping_limits_what_it_says(mode, limit):
    model = network(batch_norm=False).double()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    train_epoch(parts(model, batches(1), optimizer, clip_grad=limit, clip_mode=mode), Progress(), CPU)
    moved = [old - new.detach() for old, new in zip(before, model.parameters())]  # the gradients, since lr is 1
    if mode == 'norm':
        assert torch.cat([move.flatten() for move in moved]).norm().item() == pytest.approx(limit, rel=1e-3)
    elif mode == 'value':
        assert max(move.abs().max().item() for move in moved) == pytest.approx(limit)
    else:  # all but the classifier, per filter and relative to its weights
        norms = [tensor.flatten(1).norm(dim=1) for tensor in (moved[0], before[0])]
        assert (norms[0] <= limit * norms[1] * (1 + 1e-9)).all()
        assert moved[-1].norm() > limit * before[-1].norm()


@pytest.mark.parametrize('decides', ['host', 'device'])
@pytest.mark.parametrize('optimizer', [None, torch.optim.AdamW])
def test_suppressed_step_changes_nothing(monkeypatch, decides, optimizer):
    if decides == 'device':
        device_decides(monkeypatch)
    given = batches(3)
    runs = []
    for used in (poisoned(given, 1), [given[0]]):
        model = network().double()
        chosen = optimizer(model.parameters(), lr=0.1, weight_decay=0.1) if optimizer else None
        components = parts(model, used[:2], chosen, model_ema=True, model_ema_decay=0.9)
        progress = Progress()
        loss = train_epoch(components, progress, CPU)
        runs.append((state(components), loss, progress))
    (suppressed, loss, progress), (expected, expected_loss, _) = runs
    assert_equal_states(suppressed, expected)
    assert loss == expected_loss
    assert (progress.nonfinite, progress.nonfinite_streak) == (1, 1)
    assert progress.updates == (1 if decides == 'host' else 2)


@pytest.mark.parametrize('decides', ['host', 'device'])
def test_run_goes_on_after_a_suppressed_first_step(monkeypatch, decides):
    if decides == 'device':
        device_decides(monkeypatch)
    given = batches(3)
    suppressed, expected = (parts(network().double(), used) for used in (poisoned(given, 0), given[1:]))
    assert train_epoch(suppressed, Progress(), CPU) == train_epoch(expected, Progress(), CPU)
    assert_equal_states(state(suppressed), state(expected))


class Odd(torch.nn.Module):
    """Keeps an integer, a flag and a complex number of 16 bytes, which change with every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('seen', torch.zeros((), dtype=torch.uint8))
        self.register_buffer('odd', torch.zeros(3, dtype=torch.bool))
        self.register_buffer('phase', torch.ones(2, dtype=torch.complex128))

    def forward(self, images):
        self.seen += 1
        self.odd.logical_not_()
        self.phase *= images.detach().mean()
        return images


def test_device_takes_back_buffers_of_every_kind(monkeypatch):
    device_decides(monkeypatch)
    given, found = batches(2), []
    for used in (given[:1], poisoned(given, 1)):
        components = parts(torch.nn.Sequential(Odd(), *network()).double(), used)
        components.model.to(memory_format=torch.channels_last)
        train_epoch(components, Progress(), CPU)
        found.append(state(components))
    assert_equal_states(*found)


def test_device_takes_back_weights_that_two_modules_share(monkeypatch):
    device_decides(monkeypatch)
    given, found = batches(2), []
    for used in (given[:1], poisoned(given, 1)):
        model = network().double()
        first, second = (torch.nn.Conv2d(1, 1, 1, bias=False).double() for _ in range(2))
        second.weight = torch.nn.init.ones_(first.weight)
        components = parts(torch.nn.Sequential(first, second, *model), used)
        train_epoch(components, Progress(), CPU)
        found.append(state(components))
    assert_equal_states(*found)


def test_taking_back_launches_no_kernels_for_each_tensor(monkeypatch):
    device_decides(monkeypatch)
    counts = []
    for layers in (1, 20):
        model = torch.nn.Sequential(*(torch.nn.BatchNorm2d(1) for _ in range(layers)), *network()).double()
        components = parts(model, batches(2))
        train_epoch(components, Progress(), CPU)  # makes the optimiser's state
        guard = engine._step_guard(components, CPU)
        guard.save()
        with Calls() as calls:
            guard.restore_unless(torch.tensor(False))
        counts.append(len([name for name in calls.names if name not in ('aten::view', 'aten::detach')]))
    assert counts[0] == counts[1] < 20


def test_scaler_skips_advance_neither_average_nor_schedule():
    model = network(batch_norm=False)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)  # the first scaled gradients overflow
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    given = [(images * 1000, labels) for images, labels in batches(1, dtype=torch.float32)]
    scheduler = CosineLRScheduler(optimizer, t_initial=10, t_in_epochs=False)
    components = parts(model, given * 32, optimizer, scaler, scheduler, model_ema=True, max_nonfinite=32)
    rates, progress = [], Progress()
    train_epoch(components, progress, CPU, lambda report: rates.append(report.lr))
    assert 0 < progress.nonfinite < 32
    assert progress.updates == 32 - progress.nonfinite
    assert rates[: progress.nonfinite + 1] == [1e-9] * (progress.nonfinite + 1)
    assert rates[-1] < 1e-9
    assert scaler.get_scale() < 2.0**127


def test_steps_in_a_row_that_are_no_numbers_stop_the_run():
    given = batches(8)
    components = parts(network().double(), poisoned(given, 1, 3, 4, 5), max_nonfinite=4)
    progress = Progress()
    train_epoch(components, progress, CPU)
    assert (progress.nonfinite, progress.nonfinite_streak) == (4, 0)
    stopped = parts(network().double(), poisoned(given, 1, 3, 4, 5, 6), max_nonfinite=4, log_interval=3)
    with pytest.raises(UserError, match=r'4 optimiser steps in a row .* step 8 of epoch 0'):
        train_epoch(stopped, Progress(), CPU)
    assert all(tensor.isfinite().all() for tensor in state(stopped))


def test_suppressed_steps_in_a_row_are_counted_across_epochs():
    components = parts(network().double(), poisoned(batches(3), 0, 1, 2), max_nonfinite=5)
    progress = Progress()
    assert not train_epoch(components, progress, CPU) > 0  # no number
    progress.start_epoch(1)
    assert (progress.nonfinite, progress.nonfinite_streak) == (0, 3)
    with pytest.raises(UserError, match='6 optimiser steps in a row'):
        train_epoch(components, progress, CPU)


@pytest.mark.parametrize(
    'values', [{}, {'clip_grad': 1.0}, {'clip_grad': 0.1, 'clip_mode': 'agc'}, {'model_ema': True}]
)
@pytest.mark.parametrize('scaled', [False, True])
def test_loop_waits_for_the_device_at_logging_steps_alone(monkeypatch, values, scaled):
    """A gradient scaler has to ask once a step whether the gradients are finite; else nothing asks."""
    if not scaled:
        device_decides(monkeypatch)
    model = network()
    scaler = torch.amp.GradScaler('cpu', enabled=scaled, init_scale=2.0)
    components = parts(model, batches(6, dtype=torch.float32), None, scaler, log_interval=6, **values)
    counts = []
    with Calls() as calls:
        train_epoch(components, Progress(), CPU, lambda report: counts.append(calls.synchronising))
    # the first step makes the optimiser's state, the last is logged
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps == [1 if scaled else 0] * 5


def test_components_are_what_the_loop_needs():
    """The stand-ins of this file have the fields of the real parts."""
    components = parts(network(), batches(1))
    assert {field.name for field in dataclasses.fields(components)} == set(vars(components))
