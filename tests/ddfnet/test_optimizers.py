"""Every optimiser of timm through the loop, compiled training, and flags that contradict each other."""

import sys
import types
from importlib.machinery import ModuleSpec

import pytest
import torch
from timm.optim import create_optimizer_v2, list_optimizers

from ddfnet.config import load_train_config
from ddfnet.errors import UserError
from ddfnet.training import command
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.optimization import create_optimizer
from tests.ddfnet.conftest import TINY_RUN
from tests.ddfnet.engine_parts import CPU, batches, network, parts, state

APEX_OPTIMIZERS = """
import torch
for name in ('SGD', 'Adam', 'LAMB', 'NovoGrad'):
    globals()[f'Fused{name}'] = type(f'Fused{name}', (torch.optim.SGD,), {
        '__module__': __name__,
        '__init__': lambda self, params, lr, **_: torch.optim.SGD.__init__(self, params, lr),
    })
"""
OPTIMIZERS = [name for name in list_optimizers() if not name.startswith(('fused', 'bnb'))]


@pytest.mark.parametrize('name', OPTIMIZERS)
def test_optimiser_steps(name):
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = create_optimizer_v2(model, opt=name, lr=0.01, weight_decay=0.01)
    components = parts(model, batches(3, dtype=torch.float32), optimizer)
    train_epoch(components, Progress(), CPU)
    assert all(tensor.isfinite().all() for tensor in state(components) if tensor.is_floating_point())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters()))


@pytest.mark.parametrize('name', [name for name in list_optimizers() if name.startswith('fused')])
def test_fused_optimiser_is_that_of_apex(tmp_path, monkeypatch, name):
    (tmp_path / 'apex').mkdir()
    (tmp_path / 'apex' / '__init__.py').touch()
    (tmp_path / 'apex' / 'optimizers.py').write_text(APEX_OPTIMIZERS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    built = create_optimizer(load_train_config(['DATA', '--opt', name, '--lr', '0.1']), network())
    assert (type(built).__module__, built.param_groups[0]['lr']) == ('apex.optimizers', 0.1)
    monkeypatch.undo()
    for module in ('apex', 'apex.optimizers'):
        del sys.modules[module]


@pytest.mark.parametrize(('name', 'message'), [
    ('fusedsgd', "cannot build optimiser 'fusedsgd': CUDA required"),
    ('bnbadam', "optimiser 'bnbadam' needs bitsandbytes"),
])  # fmt: skip
def test_optimiser_that_cannot_be_had(monkeypatch, name, message):
    monkeypatch.setitem(sys.modules, 'apex', types.SimpleNamespace(__spec__=ModuleSpec('apex', None)))
    with pytest.raises(UserError, match=message):
        create_optimizer(load_train_config(['DATA', '--opt', name, '--lr', '0.1']), network())


def test_compiled_model_is_saved_under_plain_names(run_command, tmp_path, caplog):
    flags = ['--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32', '--output', tmp_path]
    compiled = ['--torchcompile', 'eager', '--model-ema', '--deterministic', '--experiment', 'a']
    assert run_command(command.main, *TINY_RUN, *flags, *compiled) == 0
    assert 'best ema/top1 ' in caplog.text  # the one that checkpoints are ranked by
    checkpoint = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)
    for key in ('state_dict', 'state_dict_ema'):
        assert 'fc.weight' in checkpoint[key]
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_teacher_from_a_checkpoint_is_distilled(run_command, tmp_path, kind):
    short = ['--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32', '--output', tmp_path]
    assert run_command(command.main, *TINY_RUN, *short, '--experiment', 'teacher') == 0
    path = tmp_path / 'teacher' / 'last.pth.tar'
    student = ['--model-kwargs', 'channels=(4,4,8,8)', '--kd-model-name', 'ddf_mul_resnet26', '--kd-checkpoint', path]
    flags = [*student, '--kd-distill-type', kind, '--model-ema', '--experiment', 'student']
    assert run_command(command.main, *TINY_RUN, *short, *flags) == 0
    found = torch.load(tmp_path / 'student' / 'last.pth.tar', weights_only=True)
    assert found['state_dict']['fc.weight'].shape == (10, 32)
    assert ('task_state' in found) == (kind == 'feature')
    assert run_command(command.main, *TINY_RUN, *short, *flags, '--resume', 'auto', '--epochs', '2') == 0


def test_teacher_that_is_the_student_leaves_the_task_loss():
    """With equal outputs the divergence is 0."""
    from timm import create_model
    from timm.task import LogitDistillationTask

    model = create_model('test_resnet', num_classes=3).double().eval()
    task = LogitDistillationTask(model, model, criterion_kwargs={'smoothing': 0.0}, verbose=False)
    result = task(torch.randn(2, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 2]))
    assert result['kd_loss'].item() == pytest.approx(0, abs=1e-12)
    assert result['loss'].item() == pytest.approx(result['task_loss'].item())
