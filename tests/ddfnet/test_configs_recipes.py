from pathlib import Path

import pytest

from ddfnet.config import load_train_config, to_flat_dict
from ddfnet.training import command

CONFIGS = Path(__file__).parents[2] / 'configs'
PUBLISHED_MODELS = sorted(path.stem for path in CONFIGS.glob('ddf_*_resnet*[0-9].yaml'))
PUBLISHED = '--lr 0.4 --warmup-epochs 5 --epochs 120 --sched cosine -b 128 -j 6 --amp --dist-bn reduce'


def test_there_is_a_recipe_for_every_published_depth_and_combination() -> None:
    assert set(PUBLISHED_MODELS) == {
        f'ddf_{combine}_resnet{depth}' for combine in ('mul', 'add') for depth in (50, 101, 152)
    }


@pytest.mark.parametrize('model', PUBLISHED_MODELS)
def test_imagenet_recipes_are_the_published_command(model: str) -> None:
    recipe = load_train_config(['DATA', '-c', str(CONFIGS / f'{model}.yaml')])
    assert recipe == load_train_config(['DATA', '--model', model, *PUBLISHED.split()])


def test_published_command_has_the_published_settings() -> None:
    flat = to_flat_dict(load_train_config(['DATA', '--model', 'ddf_mul_resnet50', *PUBLISHED.split()]))
    published = {
        'opt': 'sgd',
        'momentum': 0.9,
        'weight_decay': 1e-4,
        'warmup_lr': 1e-4,
        'warmup_prefix': False,
        'min_lr': 1e-5,
        'cooldown_epochs': 10,
        'aa': 'rand-m7-mstd0.5-inc1',
        'reprob': 0.4,
        'remode': 'pixel',
        'recount': 3,
        'smoothing': 0.1,
        'train_interpolation': 'random',
        'mixup': 0.0,
        'cutmix': 0.0,
        'model_ema': False,
    }
    assert {name: flat[name] for name in published} == published


def test_digits_recipe() -> None:
    config = load_train_config(['-c', str(CONFIGS / 'digits.yaml'), '--epochs', '1'])
    assert (config.data.dataset, config.model.in_chans, config.model.num_classes) == ('digits', 1, 10)
    assert (config.augmentation.hflip, config.schedule.epochs) == (0.0, 1)


def test_modern_recipe_changes_the_published_one_and_says_that_it_has_not_been_run() -> None:
    path = CONFIGS / 'ddf_mul_resnet50_modern.yaml'
    assert 'NOT YET RUN ON IMAGENET' in path.read_text()
    modern = load_train_config(['DATA', '-c', str(path)])
    published = load_train_config(['DATA', '-c', str(CONFIGS / 'ddf_mul_resnet50.yaml')])
    assert modern.model.model == published.model.model
    assert modern.loss.bce_loss
    assert modern.augmentation.mixes
    assert modern.ema.model_ema
    assert modern.schedule.epochs > published.schedule.epochs


def test_modern_recipe_trains(run_command, image_tree, tmp_path: Path) -> None:
    schedule = ['--epochs', 1, '--warmup-epochs', 0, '--cooldown-epochs', 0]
    small = ['--img-size', 32, '-b', 4, '-j', 0, '--device', 'cpu', *schedule]
    narrow = ['--model-kwargs', 'channels=(8,8,16,16)', '--output', tmp_path, '--experiment', 'a']
    assert run_command(command.main, image_tree(), '-c', CONFIGS / 'ddf_mul_resnet50_modern.yaml', *small, *narrow) == 0


def test_fashion_mnist_recipe() -> None:
    config = load_train_config(['DATA', '-c', str(CONFIGS / 'fashion_mnist.yaml')])
    assert config.data.dataset == 'torch/fashion_mnist'
    assert (config.model.in_chans, config.model.num_classes, config.model.img_size) == (1, 10, 28)


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.yaml')), ids=lambda path: path.stem)
def test_recipes_say_their_command_result_and_time(path: Path) -> None:
    head = path.read_text().split('\n\n')[0]
    assert f'-c configs/{path.name}' in head
    assert 'Expected:' in head
    assert 'Time:' in head
