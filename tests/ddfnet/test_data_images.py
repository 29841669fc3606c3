"""Single images: pixel formats, stray files, damaged files in training and in validation."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from ddfnet.checkpoints import read_checkpoint
from ddfnet.config import load_train_config
from ddfnet.data import class_names, open_dataset
from ddfnet.data.images import Images, to_mode
from ddfnet.distributed import Processes
from ddfnet.errors import UserError
from ddfnet.training.command import main as train_main
from ddfnet.validation import main as validate_main
from tests.ddfnet.conftest import TINY_MODEL
from tests.ddfnet.test_data import opened, train_loader

CPU = Processes(torch.device('cpu'))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / 'grey.png')
    with Image.open(tmp_path / 'grey.png') as image:
        assert image.mode == 'I;16'
        assert np.asarray(to_mode(image, 'L')).tolist() == [[0, 1, 128, 255]]
        assert np.asarray(to_mode(image, 'RGB'))[0, 2].tolist() == [128] * 3


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK'])
def test_any_pixel_format_is_read(tmp_path, mode):
    colour = Image.new('RGB', (6, 4), (250, 120, 10)).convert('RGB' if mode == 'LA' else mode)
    colour = colour.convert('L').convert('LA') if mode == 'LA' else colour
    path = tmp_path / ('image.jpg' if mode == 'CMYK' else 'image.png')
    colour.save(path, **({'transparency': bytes([0, 9])} if mode == 'P' else {}))
    for wanted in ('L', 'RGB'):
        with Image.open(path) as image:
            found = to_mode(image, wanted)
        assert (found.mode, found.size) == (wanted, (6, 4))


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', (8, 4)).save(tmp_path / 'turned.jpg', exif=exif)
    with Image.open(tmp_path / 'turned.jpg') as image:
        assert to_mode(image, 'RGB').size == (8, 4)


def test_strays_become_no_classes(image_tree, caplog):
    root = image_tree(classes=2, per_class=3)
    image = next((root / 'train' / 'digit0').iterdir()).read_bytes()
    for stray in ('photo.jpg', '.DS_Store', 'notes.txt', 'digit0/._0.jpg', '.trash/0.jpg', '__MACOSX/digit0/1.jpg'):
        path = root / 'train' / stray
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (root / 'train' / 'aardvark').mkdir()
    (root / 'train' / 'lost+found').mkdir()
    with caplog.at_level(logging.INFO, 'ddfnet'):
        train = opened(root, in_chans=3)
    assert class_names(train) == ['digit0', 'digit1']
    assert [train[index][1] for index in range(len(train))] == [0, 0, 0, 1, 1, 1]
    assert 'left out 4 images' in caplog.text
    assert 'left out folders without images: aardvark, lost+found' in caplog.text


def test_a_passing_error_is_tried_again(image_tree, monkeypatch):
    images = opened(image_tree(), in_chans=3)
    fails = iter([True, False])
    read_once = Images._read_once

    def flaky(self, index):
        if next(fails):
            raise OSError(5, 'Input/output error')
        return read_once(self, index)

    monkeypatch.setattr(Images, '_read_once', flaky)
    assert images[0][1] == 0
    assert next(fails, 'used up') == 'used up'


def damaged_tree(image_tree, *, split='train', how='truncate'):
    root = image_tree(classes=2, per_class=8)
    path = sorted((root / split / 'digit1').iterdir())[3]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if how == 'truncate' else b'no image')
    return root, path


@pytest.mark.parametrize('how', ['truncate', 'overwrite'])
def test_a_damaged_training_image_is_replaced_counted_and_named(image_tree, caplog, how):
    root, path = damaged_tree(image_tree, how=how)
    config = load_train_config([str(root)])
    images = open_dataset(config.data, 'train', in_chans=1)
    epochs = []
    for workers in ('0', '2'):
        loader = train_loader('-j', workers, '-b', '8', dataset=images)
        caplog.clear()
        epochs.append(list(loader.epoch(0)))
        assert loader.count_replaced(CPU) == 1
        assert loader.count_replaced(CPU) == 0
        assert f'images that could not be read: 1, replaced by others: {path}' in caplog.text
    for (images_0, labels_0), (images_2, labels_2) in zip(*epochs, strict=True):
        assert torch.equal(images_0, images_2)
        assert torch.equal(labels_0, labels_2)


def test_strict_data_stops_at_a_damaged_image(image_tree, run_command, tmp_path, capsys):
    root, path = damaged_tree(image_tree)
    flags = [
        root, *TINY_MODEL, '--device', 'cpu', '-b', '8', '--epochs', '1', '--warmup-epochs', '0', '--cooldown-epochs',
        '0', '--output', tmp_path / 'out', '--experiment', 'run', '--no-tensorboard',
    ]  # fmt: skip
    assert run_command(train_main, *flags, '-j', '1', '--strict-data') == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f'error: cannot read image {path}')
    assert error.endswith('leave --strict-data out')


def test_a_damaged_validation_image_is_an_error_unless_allowed(image_tree, run_command, capsys):
    root, path = damaged_tree(image_tree, split='val')
    flags = [root, *TINY_MODEL, '--num-classes', '2', '--device', 'cpu', '-b', '5', '-j', '2']
    assert run_command(validate_main, *flags) == 2
    assert f'error: cannot read image {path}' in capsys.readouterr().err
    assert run_command(validate_main, *flags, '--allow-corrupt') == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result['count'], result['corrupt']) == (15, 1)


def test_a_damaged_validation_image_costs_no_training_and_is_left_out_where_allowed(
    image_tree, run_command, tmp_path, capsys, caplog
):
    root, path = damaged_tree(image_tree, split='val')
    flags = [
        root, *TINY_MODEL, '--device', 'cpu', '-b', '8', '-j', '0', '--epochs', '1', '--warmup-epochs', '0',
        '--cooldown-epochs', '0', '--output', tmp_path / 'out', '--no-tensorboard',
    ]  # fmt: skip
    assert run_command(train_main, *flags, '--experiment', 'strict') == 2
    assert f'error: cannot read image {path}' in capsys.readouterr().err
    assert run_command(train_main, *flags, '--experiment', 'lenient', '--allow-corrupt') == 0
    assert f'images that could not be read: 1, left out of the validation: {path}' in caplog.text
    kept, lenient = (tmp_path / 'out' / name / 'last.pth.tar' for name in ('strict', 'lenient'))
    assert run_command(train_main, *flags, '--experiment', 'strict', '--resume', kept, '--allow-corrupt') == 0
    resumed, whole = (read_checkpoint(last) for last in (kept, lenient))
    assert resumed['metric'] == whole['metric']
    assert all(torch.equal(value, whole['state_dict'][name]) for name, value in resumed['state_dict'].items())


def test_a_set_of_damaged_images_is_an_error(image_tree):
    root = image_tree(classes=1, per_class=4)
    for name in os.listdir(root / 'train' / 'digit0'):
        (root / 'train' / 'digit0' / name).write_bytes(b'')
    images = open_dataset(load_train_config([str(root)]).data, 'train', in_chans=1)
    with pytest.raises(UserError, match='10 images drawn in a row are unreadable'):
        next(train_loader('-j', '0', '-b', '4', dataset=images).epoch(0))
