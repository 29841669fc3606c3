"""Number formats of a run: amp by torch and by a stand-in for apex, and weights in half precision."""

import json
import sys

import pytest
import torch
from timm import create_model

import ddf
from ddfnet.config import (
    TrainConfig,
    load_inference_config,
    load_train_config,
    load_validate_config,
    replace_values,
)
from ddfnet.errors import UserError
from ddfnet.precision import Precision
from ddfnet.training import command
from ddfnet.training.engine import Progress, train_epoch
from ddfnet.training.preflight import check_before_start
from ddfnet.training.scaling import ApexScaler, import_apex
from ddfnet.training.task import create_task
from ddfnet.validation import main as validate
from tests.ddfnet import apex_stand_in
from tests.ddfnet.conftest import TINY_RUN
from tests.ddfnet.engine_parts import CPU, batches, network, parts, state

APEX = ('--amp', '--amp-impl', 'apex', '--device', 'auto')  # which is the CPU here
SHORT = ('--epochs', '1', '--warmup-epochs', '0', '--train-num-samples', '32')


@pytest.fixture
def apex(monkeypatch):
    installed = apex_stand_in.install(monkeypatch)
    with installed.casts:
        yield installed


def apex_parts(given, **values):
    """Parts of a run whose scaler is the stand-in's."""
    model = network(batch_norm=False)
    components = parts(model, given, **values)
    amp = import_apex(replace_values(TrainConfig(), {'amp': True, 'amp_impl': 'apex'}).precision, CPU.device)
    components.scaler = ApexScaler(amp, model, components.optimizer)
    return components


def test_old_spellings_are_the_new_ones(tmp_path):
    plain = load_train_config(['DATA', *APEX])
    assert (plain.precision.amp, plain.precision.amp_impl) == (True, 'apex')
    assert load_train_config(['DATA', '--apex-amp']) == plain
    assert load_train_config(['DATA', '--native-amp']) == load_train_config(['DATA', '--amp'])
    path = tmp_path / 'old.yaml'
    path.write_text('amp: true\napex_amp: true\nnative_amp: false\n')
    assert load_train_config(['DATA', '-c', str(path)]) == plain


@pytest.mark.parametrize('source', [None, '', 'import torch\ntorch.nn.backends.thnn'])
def test_apex_absent_is_one_line_before_anything_starts(run_command, tmp_path, monkeypatch, capsys, source):
    """No apex, one of after 25.07 that has no amp, and one that was made for another torch."""
    monkeypatch.setattr('ddfnet.training.scaling._APEX_DEVICES', ('cpu',))
    if source is not None:
        (tmp_path / 'apex').mkdir()
        (tmp_path / 'apex' / '__init__.py').write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
    flags = (*TINY_RUN, *APEX)
    with pytest.raises(UserError, match=r"--amp-impl apex needs NVIDIA's apex from before 25\.07"):
        check_before_start(load_train_config(list(flags)), world_size=2)
    assert run_command(command.main, *flags, '--output', tmp_path / 'out') == 2
    assert "error: --amp-impl apex needs NVIDIA's apex" in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    sys.modules.pop('apex', None)


def test_apex_is_for_cuda():
    config = load_train_config([*TINY_RUN, *APEX])
    with pytest.raises(UserError, match='works on CUDA only, not on cpu'):
        import_apex(config.precision, torch.device('cpu'))


def test_apex_that_does_not_work_here_is_one_line(run_command, apex, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr('apex.amp.initialize', lambda *arguments, **settings: torch.nn.no_longer_there)
    assert run_command(command.main, *TINY_RUN, *SHORT, *APEX, '--output', tmp_path / 'out') == 2
    assert 'error: apex.amp does not work here: ' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_apex_runs_scale_and_go_on(run_command, apex, tmp_path):
    flags = (*TINY_RUN, *SHORT, '--output', tmp_path, '--experiment', 'a', '--grad-accum-steps', '2', '-b', '8', *APEX)
    assert run_command(command.main, *flags) == 0
    ((model, optimizer, opt_level),) = apex.initialized
    assert opt_level == 'O1'
    assert {id(p) for p in model.parameters()} == {id(p) for g in optimizer.param_groups for p in g['params']}
    assert apex.registered == [ddf.ddf]
    assert apex.delayed == [True, False] * 2
    checkpoint = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)
    assert checkpoint['amp'] == {'loss_scaler0': {'loss_scale': apex_stand_in.FIRST_SCALE, 'unskipped': 2}}
    assert {value.dtype for value in checkpoint['state_dict'].values()} == {torch.float32, torch.int64}
    apex.casts.close()
    apex.unskipped = 0
    assert run_command(command.main, *flags, '--epochs', '2', '--resume', 'auto') == 0
    assert apex.unskipped == 4


def test_apex_steps_as_torch_does(apex):
    """The scale is a power of 2, so that scaling loses nothing."""
    given = batches(4, dtype=torch.float32)
    scaled = apex_parts(given, grad_accum_steps=2, clip_grad=0.1)
    apex.casts.close()  # float32, as the other
    plain = parts(network(batch_norm=False), given, grad_accum_steps=2, clip_grad=0.1)
    losses = [train_epoch(components, Progress(), CPU) for components in (scaled, plain)]
    assert losses[0] == losses[1]
    for tensor, other in zip(state(scaled), state(plain), strict=True):
        assert torch.equal(tensor, other)


def test_step_that_apex_skips_is_suppressed_and_the_next_one_is_taken(apex):
    given = batches(3, dtype=torch.float32)
    components = apex_parts(
        [given[0], (given[1][0] * float('inf'), given[1][1]), given[2]], model_ema=True, model_ema_decay=0.5
    )
    expected = apex_parts([given[0], given[2]], model_ema=True, model_ema_decay=0.5)
    progress = Progress()
    train_epoch(components, progress, CPU)
    assert (progress.updates, progress.nonfinite, apex.skipped) == (2, 1, 1)
    assert apex.scale == apex_stand_in.FIRST_SCALE / 2
    train_epoch(expected, Progress(), CPU)
    for tensor, other in zip(state(components), state(expected), strict=True):
        assert torch.equal(tensor, other)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_weights_in_half_precision(run_command, tmp_path, capsys, dtype):
    flags = (*TINY_RUN, *SHORT, '--output', tmp_path, '--experiment', 'a', '--model-dtype', dtype, '--save-images')
    assert run_command(command.main, *flags, '--model-ema', '--mixup', '0.2', '--clip-grad', '1') == 0
    checkpoint = torch.load(tmp_path / 'a' / 'last.pth.tar', weights_only=True)
    for key in ('state_dict', 'state_dict_ema'):
        assert {value.dtype for value in checkpoint[key].values()} == {getattr(torch, dtype), torch.int64}
    flags = ('--checkpoint', tmp_path / 'a' / 'last.pth.tar', '-j', 0, '--num-samples', 50)
    found = []
    for more in (('--model-dtype', dtype), ()):
        capsys.readouterr()
        assert run_command(validate, *flags, *more) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])['loss'])
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert found[0] != found[1]


@pytest.mark.parametrize('kind', ['logit', 'feature'])
def test_teacher_in_half_precision(tmp_path, kind):
    torch.save(create_model('test_resnet', num_classes=3).state_dict(), tmp_path / 'teacher.pth')
    values = {
        'kd_model_name': 'test_resnet', 'kd_checkpoint': str(tmp_path / 'teacher.pth'), 'kd_distill_type': kind,
        'model_dtype': 'bfloat16', 'in_chans': 3, 'mean': (0.5,) * 3, 'std': (0.5,) * 3,
    }  # fmt: skip
    config = replace_values(TrainConfig(), values)
    precision = Precision(config.precision, CPU.device)
    student = precision.place(create_model('ddf_mul_resnet26', num_classes=3, channels=(8, 8, 16, 16)))
    task = create_task(config, student, precision)
    task(precision.lay_out(torch.randn(2, 3, 64, 64)), torch.tensor([0, 2]))['loss'].backward()
    trained = list(task.trainable_module.parameters())
    assert len(trained) == len(list(student.parameters())) + 2 * (kind == 'feature')  # its projection
    assert {parameter.grad.dtype for parameter in trained} == {torch.bfloat16}


def test_dry_run_in_half_precision(run_command, tmp_path, capsys):
    flags = (*TINY_RUN, *SHORT, '--output', tmp_path / 'out', '--model-dtype', 'bfloat16', '--dry-run')
    assert run_command(command.main, *flags) == 0
    assert 'one step: loss' in capsys.readouterr().out


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--amp-impl apex', '--amp-impl has no effect without --amp'),
        ('--apex-amp --amp-dtype bfloat16', '--amp-impl apex knows float16 alone'),
        ('--apex-amp --torchcompile inductor', '--torchcompile then cannot trace'),
        ('--apex-amp --device cpu', '--amp-impl apex works on CUDA only, not on cpu: leave it out'),
        ('--amp --model-dtype bfloat16', '--amp keeps weights in float32, --model-dtype bfloat16 does not'),
    ],
)
def test_contradictory_formats(words, message):
    with pytest.raises(UserError, match=message):
        load_train_config(['DATA', *words.split()])
    load_train_config(['DATA', '--amp', '--model-dtype', 'float32', '--amp-dtype', 'bfloat16'])


@pytest.mark.parametrize('load', [load_validate_config, load_inference_config])
def test_contradictory_formats_of_the_other_commands(load):
    for words in (['--amp-dtype', 'bfloat16'], ['--amp', '--model-dtype', 'float16']):
        with pytest.raises(UserError, match='amp'):
            load(['-d', 'digits', *words] if load is load_validate_config else words)
