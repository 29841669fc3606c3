"""Augmentation splits, repeats, erasing and the policies, as the flags name them."""

import pytest
import torch
from PIL import Image
from timm.loss import JsdCrossEntropy

from ddfnet.config import load_train_config
from ddfnet.data.augmentation import posterize
from ddfnet.data.keyed import KeyedSampler
from ddfnet.errors import UserError
from ddfnet.training.components import build_components
from ddfnet.training.engine import Progress, train_epoch
from tests.ddfnet.conftest import TINY_RUN
from tests.ddfnet.test_data import CPU, train_loader


def test_splits_do_not_depend_on_workers_and_start_clean():
    flags = ('--aug-splits', '3', '--aa', 'augmix-m5-w4-d2', '--resplit', '--reprob', '1', '-b', '16')
    alone, parallel = (list(train_loader('-j', workers, *flags).epoch(1)) for workers in ('0', '2'))
    assert len(alone) == 8
    for (images, labels), (images_2, labels_2) in zip(alone, parallel, strict=True):
        assert images.shape == (48, 1, 16, 16)
        assert torch.equal(images, images_2)
        assert torch.equal(labels, labels_2)
        assert torch.equal(labels[:16], labels[16:32])
    first, second = images[:16], images[16:32]
    plain = next(iter(train_loader('-j', '0', '--aa', 'none', '--reprob', '0', *flags[:2], '-b', '16').epoch(1)))[0]
    assert torch.equal(alone[0][0][:16], plain[:16])
    assert not torch.equal(first, second)


def test_repeats_fill_the_same_epoch_with_fewer_images():
    keys = list(KeyedSampler(90, 9, seed=1, repeats=3))
    assert [position for _, position, _ in keys] == list(range(90))
    indices = [index for _, _, index in keys]
    assert indices[0::3] == indices[1::3] == indices[2::3]
    assert len(set(indices)) == 30
    ranks = [list(KeyedSampler(90, 9, seed=1, rank=rank, world_size=3, repeats=3)) for rank in range(3)]
    assert all(len({key[2] for key in same}) == 1 for same in zip(*ranks, strict=True))


def test_repeats_are_varied_each_time():
    images, _ = next(train_loader('-j', '0', '--aug-repeats', '2').epoch(0))
    assert not torch.equal(images[0], images[1])


def test_jsd_loss_of_a_step_is_timms():
    flags = ['--aug-splits', '3', '--jsd-loss', '--smoothing', '0.2', '--aa', 'augmix-m5-w4-d2', '-b', '8']
    components = build_components(load_train_config([*TINY_RUN, *flags, '--train-num-samples', '8']), CPU)
    outputs = []
    components.task.trainable_module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    losses = []
    train_epoch(components, Progress(), CPU, lambda report: losses.append(report.loss))
    _, labels = next(components.train_loader.epoch(0))
    assert outputs[0].shape == (24, 10)
    expected = JsdCrossEntropy(num_splits=3, smoothing=0.2)(outputs[0], labels)
    assert len(losses) == len(outputs) == 1
    torch.testing.assert_close(losses[0], expected.detach())


@pytest.mark.parametrize('bits', [0, 1, 4, 8])
def test_posterize_keeps_a_bit(bits):
    assert posterize(Image.new('L', (2, 2), 255), bits).getpixel((0, 0)) >= 128


@pytest.mark.parametrize(
    'flags',
    [
        '--aa rand-m10-n4-inc1',
        '--aa v0',
        '--aa original',
        '--aa augmix-m5-w4-d2',
        '--train-crop-mode rkrc',
        '--train-crop-mode rkrr --train-interpolation bicubic',
        '--mixup 0.2 --cutmix 1 --mixup-mode elem',
        '--mixup 0.2 --cutmix 1 --mixup-mode pair',
        '--cutmix-minmax 0.2 0.8 --no-prefetcher',
        '--remode rand --vflip 0.5 --gaussian-blur-prob 0.5',
        '--grayscale-prob 1 --aa 3a',
        '--no-aug',
        '--resplit',
    ],
)
def test_every_switch_gives_an_epoch(flags):
    batches = list(train_loader('-j', '0', *flags.split()).epoch(0))
    assert len(batches) == 4
    assert all(images.shape == (32, 1, 16, 16) and images.isfinite().all() for images, _ in batches)


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--aug-splits 1', 'expected 0 .* or at least 2'),
        ('--aug-splits 3 --mixup 0.2', '--aug-splits cannot be used with mixup'),
        ('--aug-splits 3 --aug-repeats 3', 'both repeat images'),
        ('--aug-splits 3 --no-aug', '--no-aug does not'),
        ('--aug-splits 3 --no-prefetcher', 'needs the prefetcher'),
        ('--jsd-loss', 'give --aug-splits 3'),
        ('--jsd-loss --aug-splits 3 --bce-loss', 'are two losses'),
        ('--resplit --reprob 0', '--reprob 0 erases nothing'),
        ('--dataset wds/x --strict-data', '--strict-data needs images in any order'),
        ('--dataset wds/x --aug-repeats 2', '--aug-repeats needs images in any order'),
    ],
)
def test_contradictions(flags, message):
    with pytest.raises(UserError, match=message):
        load_train_config(['data', *flags.split()])
