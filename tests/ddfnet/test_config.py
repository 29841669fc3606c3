import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ddfnet.config import (
    ScheduleConfig,
    TrainConfig,
    ValidateConfig,
    check,
    load_train_config,
    load_validate_config,
    to_flat_dict,
)
from ddfnet.config.schema import entries
from ddfnet.config.values import field_type
from ddfnet.errors import UserError


def train(words: str = '', data: str = 'DATA') -> TrainConfig:
    return load_train_config([*([data] if data else []), *words.split()])


def write(folder: Path, text: str) -> str:
    path = folder / 'recipe.yaml'
    path.write_text(text)
    return str(path)


def message(*argv: str) -> str:
    with pytest.raises(UserError) as raised:
        load_train_config(list(argv))
    assert '\n' not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize('config_type', [TrainConfig, ValidateConfig])
def test_names_are_unique_and_every_field_has_a_supported_type(config_type: type) -> None:
    names = entries(config_type)
    sections = {field.name: field.default_factory for field in dataclasses.fields(config_type)}
    assert len(names) == sum(len(dataclasses.fields(section())) for section in sections.values())
    assert [name for name, entry in names.items() if field_type(entry.hint) is None] == []


def test_defaults_are_valid_but_for_the_missing_data() -> None:
    with pytest.raises(UserError, match='DATA_DIR'):
        check(TrainConfig())
    with pytest.raises(UserError, match='DATA_DIR'):
        check(ValidateConfig())
    assert to_flat_dict(train('')) == {**to_flat_dict(TrainConfig()), 'data_dir': 'DATA'}


def test_flags_reach_their_fields() -> None:
    config = train(
        '-d digits -b 64 -vb 32 -j6 --dr 0.5 --val_split test --train-split=training --amp --no-tensorboard '
        '--mean 0.5 0.4 0.3 --scale 0.5 1 --opt-betas 0.9 0.99 --model ddf_add_resnet50 --lr-noise 0.4 0.9'
    )
    assert (config.data.data_dir, config.data.dataset, config.data.workers) == ('DATA', 'digits', 6)
    assert (config.batch.batch_size, config.batch.validation_batch_size) == (64, 32)
    assert (config.data.train_split, config.data.val_split) == ('training', 'test')
    assert config.schedule.decay_rate == 0.5
    assert config.precision.amp
    assert not config.run.tensorboard
    assert config.model.mean == (0.5, 0.4, 0.3)
    assert config.augmentation.scale == (0.5, 1.0)
    assert config.optimizer.opt_betas == (0.9, 0.99)
    assert config.model.model == 'ddf_add_resnet50'
    assert config.schedule.lr_noise == (0.4, 0.9)


def test_data_dir_stands_alone_or_has_its_flag() -> None:
    assert train('--data-dir A', data='').data.data_dir == 'A'
    assert train('--amp --model x A', data='').data.data_dir == 'A'
    assert train('--data_dir A', data='A').data.data_dir == 'A'
    assert 'keep one' in message('A', '--data-dir', 'B')
    assert "'B'" in message('A', 'B')
    assert 'DATA_DIR' in message('')


@pytest.mark.parametrize('words', ['--local_rank 1', '--local-rank=1', '--local_rank=1', '--local-rank 1'])
def test_launchers_local_rank_is_ignored(words: str) -> None:
    assert train(words) == train('')


def test_keyword_arguments_are_literals_where_they_can_be() -> None:
    given = ['A', '--model-kwargs', 'a=1', 'b=(1,2)', 'c=text', 'd=None', 'e=x=y', '--opt-kwargs', 'eps=1e-3']
    config = load_train_config(given)
    assert config.model.model_kwargs == {'a': 1, 'b': [1, 2], 'c': 'text', 'd': None, 'e': 'x=y'}
    assert config.optimizer.opt_kwargs == {'eps': 1e-3}


def test_command_line_overrides_file_overrides_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, 'epochs: 50\nlr: 0.2\namp: true\nimg-size: 192\ndata_dir: FILE\nno_aug: true\n')
    config = train(f'-c {path} --lr 0.3 --no-amp --img-size none --aug')
    assert (config.schedule.epochs, config.schedule.lr, config.schedule.warmup_epochs) == (50, 0.3, 5)
    assert (config.precision.amp, config.model.img_size, config.augmentation.no_aug) == (False, None, False)
    assert config.data.data_dir == 'DATA'
    assert train(f'--config={path}', data='').data.data_dir == 'FILE'


def test_flat_dict_gives_an_equal_configuration_again(tmp_path: Path) -> None:
    config = train(
        '--mean 0.5 --std 0.25 --lr 1e-3 --min-lr 1e-8 --experiment 1e-3 --aa none --decay-milestones 3 6 --dist-bn= '
        '--cutmix-minmax 0.2 0.8 --seed 7 --model-kwargs block_args={"head":2} layers=(1,2) x=1e-7 --no-prefetcher'
    )
    path = write(tmp_path, yaml.safe_dump(to_flat_dict(config)))
    assert load_train_config(['-c', path]) == config
    assert config.run.experiment == '1e-3'
    assert config.augmentation.aa is None


@pytest.mark.parametrize(
    ('text', 'name', 'value'),
    [
        ('lr: 1e-3', 'lr', 1e-3),
        ('lr: 1', 'lr', 1.0),
        ("lr: '0.5'", 'lr', 0.5),
        ('scale: [0.5, 1]', 'scale', [0.5, 1.0]),
        ('img_size: null', 'img_size', None),
        ('img_size: None', 'img_size', None),
        ('opt_kwargs: {eps: 1e-3, fused: true}', 'opt_kwargs', {'eps': 1e-3, 'fused': True}),
        ('val-split: test', 'val_split', 'test'),
        ('epochs: 010', 'epochs', 10),  # 8 in YAML 1.1
        ('experiment: 010', 'experiment', '010'),
        ('experiment: 1:30', 'experiment', '1:30'),  # 90 in YAML 1.1
        ('', 'epochs', 120),
    ],
)
def test_yaml_values_take_the_fields_types(tmp_path: Path, text: str, name: str, value: Any) -> None:
    found = to_flat_dict(train(f'-c {write(tmp_path, text)}'))[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ('text', 'parts'),
    [
        ('epoch: 3', ['epoch', 'did you mean epochs?']),
        ('learning_rate: 3', ['learning_rate', 'did you mean lr?']),
        ('3: 3', ['3', 'name of a flag']),
        ('config: x.yaml', ['config', 'command line']),
        ('epochs: many', ['epochs', 'expected an integer', "'many'"]),
        ('epochs: 2.5', ['epochs', 'expected an integer', '2.5']),
        ('epochs: 1:30', ['epochs', 'expected an integer', "'1:30'"]),
        ('lr: 1:30.5', ['lr', 'expected a number', "'1:30.5'"]),
        ('epochs: true', ['epochs', 'expected an integer', 'True']),
        ('lr: true', ['lr', 'expected a number', 'True']),
        ('lr: .nan', ['lr', 'expected a number', 'nan']),
        ('lr: [0.1]', ['lr', 'expected a number', '[0.1]']),
        ('epochs: null', ['epochs', 'expected an integer', 'None']),
        ('amp: 1', ['amp', 'true or false', '1']),
        ("amp: 'true'", ['amp', 'true or false', "'true'"]),
        ('model: 50', ['model', 'expected text', '50', 'quotes']),
        ('sched: cosin', ['sched', 'one of cosine', "'cosin'", 'did you mean cosine?']),
        ('scale: 0.5', ['scale', 'list of 2 numbers', '0.5']),
        ('scale: [0.5]', ['scale', 'list of 2 numbers', '[0.5]']),
        ('mean: []', ['mean', 'list of numbers', '[]']),
        ('mean: [a]', ['mean', 'list of numbers', "['a']"]),
        ('model_kwargs: a=1', ['model_kwargs', 'mapping', "'a=1'"]),
        ('model_kwargs: {1: 2}', ['model_kwargs', 'keyword', '1']),
        ('model_kwargs: {a: 2026-01-01}', ['model_kwargs', 'expected text', 'date']),
        ('lr: 1\nlr: 2', ['line 2', "'lr'", 'line 1']),
        ('val-split: a\nval_split: b', ['line 2', "'val_split'"]),
        ('model_kwargs: {a: 1, a: 2}', ["'a'", 'line 1']),
        ('lr: [0.1', ['line', 'column']),
        ('lr 0.1', ['mapping', "'lr 0.1'"]),
        ('- lr: 0.1', ['mapping']),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path, text)
    error = message('DATA', '-c', path)
    assert error.startswith(path)
    assert [part for part in parts if part not in error] == []


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    assert 'no such file' in message('DATA', '-c', str(tmp_path / 'absent.yaml'))
    assert str(tmp_path) in message('DATA', '-c', str(tmp_path))
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    assert 'binary.yaml' in message('DATA', '-c', str(tmp_path / 'binary.yaml'))


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        ('--lrr 0.1', ['--lrr', 'did you mean --lr?']),
        ('--warmup_epoch 3', ['--warmup_epoch', 'did you mean --warmup-epochs?']),
        ('--batch 3 --no-apm', ['did you mean --batch-size?', 'did you mean --no-amp?']),
        ('--confg x', ['did you mean --config?']),
        ('--zzzz', ['--zzzz', '--help']),
        ('--epochs many', ['--epochs', 'expected an integer', "'many'"]),
        ('--lr fast', ['--lr', 'expected a number', "'fast'"]),
        ('--sched cosin', ['--sched', 'did you mean cosine?']),
        ('--mean 0.5 x', ['--mean', 'list of numbers', "'0.5 x'"]),
        ('--mean', ['--mean', 'list of numbers']),
        ('--model-kwargs a=1 b', ['--model-kwargs', 'key=value', "'b'"]),
        ('--model-kwargs a-b=1', ['--model-kwargs', "'a-b'"]),
        ('--amp False', ["'False'", 'switch']),
        ('--amp=True', ["'True'", 'switch']),
    ],
)
def test_mistakes_on_the_command_line_are_named(words: str, parts: list[str]) -> None:
    error = message('DATA', *words.split())
    assert [part for part in parts if part not in error] == []


def test_a_switch_with_a_value_does_not_become_the_data_folder() -> None:
    assert 'switch' in message('--amp', 'False')


@pytest.mark.parametrize('words', ['--model', '--scale 1', '-c', '--epochs --amp'])
def test_a_flag_without_its_value_exits_with_2(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        train(words)
    assert raised.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        ('--epochs 0', ['--epochs', 'at least 1']),
        ('-b 0', ['--batch-size', 'at least 1']),
        ('-vb 0', ['--validation-batch-size', 'at least 1']),
        ('--grad-accum-steps 0', ['--grad-accum-steps', 'at least 1']),
        ('--workers -1', ['--workers', 'at least 0']),
        ('--lr 0', ['--lr', 'above 0']),
        ('--lr nan', ['--lr', 'expected a number']),
        ('--lr 1e-6', ['--min-lr', '--lr']),
        ('--hflip 1.5', ['--hflip', 'at most 1']),
        ('--reprob -0.1', ['--reprob', 'at least 0']),
        ('--smoothing 1', ['--smoothing', 'below 1']),
        ('--model-ema-decay 1', ['--model-ema-decay', 'below 1']),
        ('--model-ema-decay 0', ['--model-ema-decay', 'above 0']),
        ('--crop-pct 87.5', ['--crop-pct', 'at most 1']),
        ('--scale 1 0.5', ['--scale', 'lesser value first']),
        ('--ratio 2 1', ['--ratio', 'lesser value first']),
        ('--cutmix-minmax 0.8 0.2', ['--cutmix-minmax', 'lesser value first']),
        ('--remode zero', ['--remode', 'const']),
        ('--mixup-mode all', ['--mixup-mode', 'elem']),
        ('--clip-mode max', ['--clip-mode', 'agc']),
        ('--eval-metric top2', ['--eval-metric', 'one of top1, top5, loss']),
        ('--epochs 5', ['--warmup-epochs', '--epochs (5)', '--warmup-prefix']),
        ('--mixup 0.2 -b 127', ['even', '--batch-size', '127']),
        ('--cutmix-minmax 0.2 0.8 -b 127', ['even']),
        ('--sched plateau --sched-on-updates', ['plateau', '--sched-on-updates']),
        ('--sched wsd --epochs 20', ['--decay-epochs', '15 epochs']),
        ('--decay-milestones 60 30', ['--decay-milestones', 'rising']),
        ('--lr-noise 0.9 0.1', ['--lr-noise', 'rising']),
    ],
)
def test_values_out_of_range_or_in_contradiction_are_named(words: str, parts: list[str]) -> None:
    error = message('DATA', *words.split())
    assert [part for part in parts if part not in error] == []


@pytest.mark.parametrize(
    'words',
    [
        '--epochs 5 --warmup-prefix',
        '--epochs 1 --warmup-epochs 0',
        '--epochs 5 --sched none',
        '--mixup 0.2 --bce-loss --smoothing 0',
        '--lr 1e-6 --min-lr 0',
        '--in-chans 1 --mean 0.5 --std 0.2',
        '--sched wsd --epochs 20 --decay-epochs 0.2',
    ],
)
def test_unusual_but_sound_values_pass(words: str) -> None:
    train(words)


def test_check_serves_configurations_made_in_python() -> None:
    config = dataclasses.replace(train(''), schedule=ScheduleConfig(lr=-1.0))
    with pytest.raises(UserError, match=r'--lr: expected a number above 0 or none, got -1\.0'):
        check(config)


def test_validate_flags() -> None:
    words = 'A -m x --checkpoint c.pth -b 8 -j 2 -d digits --no-amp --split test'
    config = load_validate_config(words.split())
    assert (config.model.model, config.model.checkpoint, config.evaluation.batch_size) == ('x', 'c.pth', 8)
    assert (config.data.data_dir, config.data.split, config.data.workers) == ('A', 'test', 2)
    defaults = load_validate_config(['A'])
    assert (defaults.model.model, defaults.evaluation.batch_size, defaults.evaluation.log_freq) == (None, 256, 10)
    assert load_validate_config(['--checkpoint', 'c.pth']).data.data_dir is None
    with pytest.raises(UserError, match='did you mean --checkpoint'):
        load_validate_config(['A', '--chekpoint', 'c.pth'])


@pytest.mark.parametrize('load', [load_train_config, load_validate_config])
def test_help_names_every_flag_within_80_columns(load: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit) as raised:
        load(['--help'])
    text = capsys.readouterr().out
    assert raised.value.code == 0
    config_type = TrainConfig if load is load_train_config else ValidateConfig
    assert [name for name in entries(config_type) if f'--{name.replace("_", "-")}' not in text] == []
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize('name', ['no_prefetcher', 'no_aug', 'no_resume_opt'])
def test_switches_with_negative_names_are_turned_back_by_the_positive_one(
    tmp_path: Path, name: str, capsys: Any
) -> None:
    path, negative = write(tmp_path, f'resume: a.pth\n{name}: true'), '--' + name.replace('_', '-')
    positive = negative.replace('--no-', '--')
    section = entries(TrainConfig)[name].section
    for words, expected in (('', False), (negative, True), (f'-c {path}', True), (f'-c {path} {positive}', False)):
        assert getattr(getattr(train(f'--resume a.pth {words}'), section), name) is expected
    with pytest.raises(SystemExit):
        train(f'-c {path} --help')
    text = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert f'{positive}, {negative}' in text
    assert '--no-no' not in text
    assert f'did you mean {positive}?' in message('DATA', positive[:-1])


def test_help_shows_the_files_values_as_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train(f'-c {write(tmp_path, "experiment: from-the-file")} --help')
    assert '(default: from-the-file)' in ' '.join(capsys.readouterr().out.replace('│', ' ').split())


def test_configurations_need_neither_torch_nor_timm() -> None:
    # ddfnet/__init__.py itself imports both, so the package is entered past it.
    code = (
        'import sys, types; package = types.ModuleType("ddfnet"); package.__path__ = ["ddfnet"]; '
        'sys.modules["ddfnet"] = package; import ddfnet.config; ddfnet.config.load_train_config(["DATA"]); '
        'sys.exit(bool({"torch", "timm"} & set(sys.modules)))'
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, '-c', code], cwd=root, check=False).returncode == 0
