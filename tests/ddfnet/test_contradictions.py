"""What is said of flags that contradict each other, or that do nothing, before anything starts."""

from pathlib import Path

import pytest
import torch

from ddfnet.config import load_train_config, load_validate_config
from ddfnet.config.unused import remark_on_average, remarks
from ddfnet.errors import UserError
from ddfnet.training import command
from ddfnet.training.preflight import check_before_start
from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.yaml'))


def mistake(words: str) -> str:
    with pytest.raises(UserError) as raised:
        load_train_config(['DATA', *words.split()])
    assert '\n' not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(
    ('words', 'needed'),
    [
        ('--bce-sum', '--bce-loss'),
        ('--bce-target-thresh 0.2', '--bce-loss'),
        ('--bce-pos-weight 2', '--bce-loss'),
        ('--kd-checkpoint a.pth', '--kd-model-name NAME'),
        ('--kd-distill-type feature', '--kd-model-name NAME'),
        ('--kd-temperature 2', '--kd-model-name NAME'),
        ('--distill-loss-weight 0.5', '--kd-model-name NAME'),
        ('--task-loss-weight 0.5', '--kd-model-name NAME'),
        ('--clip-mode agc', '--clip-grad LIMIT'),
        ('--model-ema-decay 0.999', '--model-ema'),
        ('--model-ema-warmup', '--model-ema'),
        ('--model-ema-force-cpu', '--model-ema'),
        ('--mixup-prob 0.5', '--mixup or --cutmix'),
        ('--mixup-switch-prob 0.2', '--mixup or --cutmix'),
        ('--mixup-mode elem', '--mixup or --cutmix'),
        ('--mixup-off-epoch 10', '--mixup or --cutmix'),
        ('--lr-noise-pct 0.5', '--lr-noise'),
        ('--lr-noise-std 0.5', '--lr-noise'),
        ('--amp-dtype bfloat16', '--amp'),
        ('--amp-impl apex', '--amp'),
        ('--torchcompile-mode default', '--torchcompile inductor'),
        ('--no-resume-opt', '--resume'),
    ],
)
def test_flag_without_the_one_it_needs(words, needed):
    name = words.split()[0]
    assert mistake(words) == f'{name} has no effect without {needed}: add that, or leave {name} out'


@pytest.mark.parametrize(
    ('words', 'part'),
    [
        ('--sync-bn --split-bn --aug-splits 3', '--split-bn and --sync-bn change the same layers'),
        ('--split-bn', '--split-bn normalises the splits apart'),
        ('--mixup 0.2 --aug-splits 3', '--aug-splits cannot be used with mixup or cutmix'),
        ('--cutmix-minmax 0.2 0.8 --aug-splits 3', '--aug-splits cannot be used with mixup or cutmix'),
        ('--aug-repeats 3 --aug-splits 3', '--aug-splits and --aug-repeats both repeat images'),
        ('--no-aug --aug-splits 3', '--aug-splits varies images, --no-aug does not'),
        ('--no-prefetcher --aug-splits 3', '--aug-splits needs the prefetcher'),
        ('--aug-splits 1', '--aug-splits: expected 0 (off) or at least 2'),
        ('--jsd-loss', '--jsd-loss compares versions of each image'),
        ('--jsd-loss --bce-loss --aug-splits 3', '--jsd-loss and --bce-loss are two losses'),
        ('--resplit --reprob 0', '--reprob 0 erases nothing'),
        ('-d wds/x --aug-repeats 3', '--aug-repeats needs images in any order'),
        ('-d tfds/x --strict-data', '--strict-data needs images in any order'),
        ('--epochs 5', '--warmup-epochs: expected fewer than --epochs (5)'),
        ('--sched plateau --sched-on-updates', '--sched plateau follows the validation metric'),
        ('--layer-decay 0.7 --sched none', '--layer-decay acts through the schedule'),
        ('--torchcompile aot_eager --torchcompile-mode default', '--torchcompile-mode is for --torchcompile inductor'),
        ('--save-images --no-tensorboard', '--save-images shows its images in TensorBoard'),
        ('--start-epoch 200', '--start-epoch: expected fewer'),
        ('--checkpoint-interval 10s', '--checkpoint-interval: expected a number of optimiser steps'),
        ('--amp --model-dtype float16', '--amp keeps weights in float32'),
    ],
)
def test_contradictions(words, part):
    assert part in mistake(words)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--torchcompile', 'inductr'], '--torchcompile: expected one of cudagraphs, inductor, '),
        (['--torchcompile', 'inductr'], "got 'inductr' (did you mean inductor?)"),
        (['--opt-betas', '0.9', '0.99'], "--opt-betas has no effect, since optimiser 'sgd' does not take it"),
        (['--sync-bn'], '--sync-bn works on accelerators only, not on the CPU'),
        (['--opt-eps', '1e-6'], "--opt-eps has no effect, since optimiser 'sgd' does not take it"),
        (['--opt', 'adamw', '--momentum', '0.8'], "--momentum has no effect, since optimiser 'adamw' does not take it"),
    ],
)
def test_mistakes_that_need_torch_or_timm_to_be_seen(run_command, tmp_path, capsys, flags, message):
    with pytest.raises(UserError) as raised:
        check_before_start(load_train_config([*TINY_RUN, *flags]), world_size=2)
    assert message in str(raised.value)
    assert run_command(command.main, *TINY_RUN, *flags, '--output', tmp_path / 'out') == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('script', 'part'),
    [(None, '/compiler'), ('echo broken for good >&2; exit 1', '(broken for good)'), ('exit 1', '/compiler')],
)
def test_compiler_that_is_missing_or_fails_is_named(run_command, capsys, tmp_path, script, part):
    compiler = tmp_path / 'compiler'
    if script:
        compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit\n{script}\n')
        compiler.chmod(0o755)
    with torch._inductor.config.patch({'cpp.cxx': (str(compiler),)}):
        assert run_command(command.main, *TINY_RUN, '--device', 'cpu', '--torchcompile', '--dry-run') == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith('error: --torchcompile inductor needs a C++ compiler that works on a CPU (')
    assert part in error


@pytest.mark.parametrize(
    'policy', ['rand-zz', 'rand-m', 'rand-m7-w0', 'rand-n0', 'rand-mstdinf', 'rand-tnothing', 'rand-p2', 'random-m7',
               'v1', 'original-m9', 'augmix-d-1', 'augmix-n3', 'rand-', '3a-mstd']
)  # fmt: skip
def test_policies_that_timm_would_skip_in_part_are_refused(policy):
    with pytest.raises(UserError, match=f'--aa: expected rand-mX-nY-mstdZ-incW .*; got {policy!r}'):
        load_train_config(['DATA', '--aa', policy])


@pytest.mark.parametrize(
    'policy', ['rand', 'rand-m9-n3-mstd0.5-inc1', 'rand-mstd1-tweights-p0.5-mmax15', 'rand-m6-t3aw', 'original-mstd0.5',
               'originalr', 'v0', 'v0r', '3a', 'augmix', 'augmix-m5-w4-d2-a0.5-b1-mstd1', 'none']
)  # fmt: skip
def test_policies_of_timm_are_taken(policy):
    assert load_train_config(['DATA', '--aa', policy]).augmentation.aa == (None if policy == 'none' else policy)


def test_average_that_cannot_forget_its_start_is_remarked():
    short = load_train_config(['DATA', '--model-ema'])
    assert remark_on_average(short, 100) == (
        '--model-ema-decay 0.9998 leaves 98 % of the first weights in the average after the 100 optimiser steps of the '
        'run: lower it, or add --model-ema-warmup'
    )
    assert remark_on_average(short, 20_000) is None
    assert remark_on_average(load_train_config(['DATA', '--model-ema', '--model-ema-warmup']), 100) is None
    assert remark_on_average(load_train_config(['DATA', '--model-ema', '--model-ema-decay', '0.9']), 100) is None
    assert remark_on_average(load_train_config(['DATA']), 100) is None


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (
            ['--model', 'test_vit', '--drop-block', '0.1'],
            "model 'test_vit' has no drop_block_rate",
        ),
        (
            ['--lr-base', '1e-6', '--lr', 'none'],
            '--min-lr: expected at most the rate of --lr or --lr-base (6.25e-08), got 1e-05',
        ),
    ],
)
def test_mistakes_that_need_the_model_to_be_seen(run_command, tmp_path, capsys, flags, message):
    assert run_command(command.main, *TINY_RUN, *flags, '--output', tmp_path / 'out') == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('--sched cosine --decay-epochs 10', '--decay-epochs has no effect with --sched cosine'),
        ('--sched step --decay-milestones 20 40', '--decay-milestones has no effect with --sched step'),
        ('--decay-rate 0.5', '--decay-rate has no effect with --sched cosine'),
        ('--sched step --patience-epochs 3', '--patience-epochs has no effect with --sched step'),
        ('--sched step --lr-cycle-mul 2', '--lr-cycle-mul has no effect with --sched step'),
        ('--sched wsd --lr-cycle-decay 0.1', '--lr-cycle-decay has no effect with --sched wsd'),
        ('--sched constant --lr-cycle-limit 2', '--lr-cycle-limit has no effect with --sched constant'),
        ('--sched tanh --lr-k-decay 2', '--lr-k-decay has no effect with --sched tanh'),
        ('--sched step --cooldown-epochs 5', '--cooldown-epochs has no effect with --sched step'),
        ('--sched step --min-lr 1e-6', '--min-lr has no effect with --sched step'),
        ('--sched none --warmup-lr 1e-6', '--warmup-lr has no effect with --sched none'),
        ('--sched none --lr-noise 0.5', '--lr-noise has no effect with --sched none'),
        ('--sched plateau --warmup-prefix', '--warmup-prefix has no effect with --sched plateau'),
        ('--warmup-epochs 0 --warmup-lr 1e-6', '--warmup-lr has no effect with --warmup-epochs 0'),
        ('--sched step --decay-epochs 120', 'the rate never decays: --decay-epochs 120 of --epochs 120'),
        ('--sched multistep', '--decay-milestones 180 270 come after the last epoch'),
        ('--lr 5e-5', 'the rate falls in the warm-up: --warmup-lr 0.0001 is above the rate, 5e-05'),
        ('--lr 0.1 --lr-base 0.2', '--lr-base has no effect beside --lr'),
        ('--no-aug --hflip 0.2', '--hflip has no effect with --no-aug'),
        ('--no-aug --scale 0.5 1', '--scale has no effect with --no-aug'),
        ('--color-jitter 0.2', '--color-jitter has no effect where --aa is on'),
        ('--reprob 0 --recount 2', '--recount has no effect with --reprob 0'),
        ('--mixup 0.2 --mixup-switch-prob 0.1', '--mixup-switch-prob has no effect where only one'),
        ('--cutmix 0.5 --cutmix-minmax 0.2 0.8', '--cutmix has no effect with --cutmix-minmax'),
        ('--mixup 0.2 --mixup-off-epoch 200', '--mixup-off-epoch has no effect after the last epoch'),
        (
            '--kd-model-name x --kd-distill-type feature --kd-temperature 2',
            '--kd-temperature has no effect with --kd-distill-type feature',
        ),
        ('--kd-model-name x --distill-loss-weight 0', '--kd-model-name has no effect with --distill-loss-weight 0'),
        ('--kd-model-name x --task-loss-weight 0 --smoothing 0.2', '--smoothing has no effect with --task-loss-weight'),
        ('--layer-decay 1', '--layer-decay has no effect where it is 1'),
        ('--pretrained --initial-checkpoint a.pth', '--pretrained has no effect with --initial-checkpoint'),
        ('--initial-checkpoint a.pth --resume b.pth', '--initial-checkpoint has no effect with --resume'),
        ('--pretrained --resume b.pth', '--pretrained has no effect with --resume'),
        ('-d digits', '--data-dir has no effect with --dataset digits'),
        ('--dataset-download', '--dataset-download has no effect on a folder'),
        ('--tf32 --device cpu', '--tf32 has no effect on the CPU'),
        ('--pin-mem --device cpu', '--pin-mem has no effect on the CPU'),
        ('--synchronize-step --device cpu', '--synchronize-step has no effect on the CPU'),
        ('--model-ema --model-ema-force-cpu --device cpu', '--model-ema-force-cpu has no effect on the CPU'),
        ('--pretrained-path a.pth --resume b.pth', '--pretrained-path has no effect with --resume'),
        ('--val-split train', "training and validation both read the split 'train'"),
        ('--model-dtype float16', '--model-dtype float16 scales no loss'),
        ('--model-dtype bfloat16 --model-ema', '--model-ema keeps its average in bfloat16 too'),
    ],
)
def test_remarks(words, expected):
    found = list(remarks(load_train_config(['DATA', *words.split()])))
    assert len(found) == 1
    assert found[0].startswith(expected)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_recipes_deserve_no_remark(path):
    assert list(remarks(load_train_config(['-c', str(path), *(['data'] if path.stem != 'digits' else [])]))) == []


def test_nothing_is_remarked_of_what_resuming_automatically_needs():
    words = 'DATA --pretrained --experiment a --resume auto'
    assert list(remarks(load_train_config(words.split()))) == []
    assert list(remarks(load_train_config(words.replace('--pretrained', '--initial-checkpoint a.pth').split()))) == []


def test_run_says_its_remarks_first(run_command, tmp_path, capsys):
    flags = ('--output', tmp_path / 'out', '--dry-run', '--decay-rate', '0.5', '--no-aug', '--vflip', '0.1')
    assert run_command(command.main, *TINY_RUN, *flags, '--model-ema') == 0
    said = 'warning: --vflip has no effect with --no-aug\nwarning: --decay-rate has no effect with --sched cosine\n'
    errors = capsys.readouterr().err
    assert said in errors
    assert 'warning: --model-ema-decay 0.9998 leaves 100 % of the first weights in the average after the 18 ' in errors


@pytest.mark.skipif(torch.accelerator.is_available(), reason='--device auto is not the CPU here')
def test_remarks_know_what_the_run_comes_to(run_command, tmp_path, capsys, recwarn):
    """The device that auto is, without torch's own warning of pinned memory, and the rate that lr-base gives."""
    flags = ('--output', tmp_path / 'out', '--dry-run', '--device', 'auto', '--pin-mem', '--lr', 'none')
    assert run_command(command.main, *TINY_RUN, *flags, '--lr-base', '1e-4', '--min-lr', '0') == 0
    said = capsys.readouterr().err
    assert '--pin-mem has no effect on the CPU' in said
    assert 'the rate falls in the warm-up: --warmup-lr 0.0001 is above the rate, ' in said
    assert not [str(warning.message) for warning in recwarn if 'pin_memory' in str(warning.message)]


@pytest.mark.parametrize(
    ('words', 'part'),
    [
        ('-d digits --use-ema', '--use-ema takes the averaged weights of a checkpoint'),
        ('-d digits --results-format csv', '--results-format has no effect without --results-file'),
    ],
)
def test_contradictions_of_a_validation(words, part):
    with pytest.raises(UserError, match=part):
        load_validate_config([*TINY_MODEL, *words.split()])
