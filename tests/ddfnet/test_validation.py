"""What validate.py can measure and how: views, some classes, reassessed labels, class scores, batches that fit."""

import csv
import json

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from torch import nn

from ddfnet import validation
from ddfnet.config import load_train_config, load_validate_config
from ddfnet.errors import UserError
from ddfnet.predictions import SomeClasses, Views, read_classes
from ddfnet.scores import ClassScores, RealLabels
from ddfnet.training import command as train
from ddfnet.training.network import build_network
from tests.ddfnet.conftest import TINY_MODEL, TINY_RUN
from tests.ddfnet.engine_parts import CPU

DIGITS = [*TINY_MODEL, '--dataset', 'digits', '--device', 'cpu', '-j', '0', '-b', '16', '--num-samples', '40']


@pytest.fixture
def validate(run_command, capsys):
    """Runs validate.py on digits; returns its result, or its error."""

    def run(*words):
        status = run_command(validation.main, *DIGITS, *words)
        out, err = capsys.readouterr()
        return json.loads(out.splitlines()[-1]) if status == 0 else err.strip().splitlines()[-1]

    return run


class Taken(nn.Module):
    """A classifier whose outputs are the pixels of the first row."""

    def forward(self, images):
        return images[:, 0, 0]


@pytest.mark.parametrize('average', ['micro', 'macro', 'weighted'])
def test_class_scores_are_scikit_learns(average):
    generator = torch.Generator().manual_seed(0)
    output = torch.rand(300, 9, generator=generator)
    targets = torch.randint(0, 7, (300,), generator=generator)  # two classes never occur
    output[:, 8] = 0  # and one of them is never predicted
    scores = ClassScores(average, 9, CPU.device)
    for part in range(0, 300, 64):
        scores.update(output[part : part + 64], targets[part : part + 64], torch.arange(0))
    expected = precision_recall_fscore_support(targets, output.argmax(1), average=average, zero_division=0)[:3]
    names = [f'{average}_{name}' for name in ('precision', 'recall', 'f1_score')]
    assert scores.compute(CPU) == pytest.approx(dict(zip(names, [100 * value for value in expected], strict=True)))


def test_class_scores_are_reported(validate):
    result = validate('--metrics-avg', 'micro')
    assert result['micro_recall'] == result['micro_precision'] == result['micro_f1_score'] == result['top1']


class Named:
    """40 images with names of ImageNet's."""

    def name(self, index: int) -> str:
        return f'/val/n01/ILSVRC2012_val_{40 - index:08d}.JPEG'

    def __len__(self) -> int:
        return 40


def test_real_labels_go_by_name(tmp_path):
    path = tmp_path / 'real.json'
    path.write_text(json.dumps([[], *[[number % 7, 6] for number in range(2, 41)]]))
    scores = RealLabels(str(path), Named(), num_classes=7)
    output = torch.zeros(40, 7)
    output[torch.arange(40), [(40 - index) % 7 for index in range(40)]] = 2
    output[:5] = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1, 0.1, 0.5])  # numbers 40 to 36: labels 5, 4, 3, 2, 1, always 6
    for part in torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(16):
        scores.update(output[part], torch.zeros(len(part)), part)
    result = scores.compute(CPU)
    assert result['real_count'] == 39  # one has no right class
    assert result['top1'] == pytest.approx(100 * 34 / 39)
    assert result['top5'] == 100


def test_bundled_real_labels():
    scores = RealLabels('imagenet', Named(), num_classes=1000)
    output = torch.zeros(40, 1000)
    for index in range(40):
        output[index, scores.labels.real_labels[f'ILSVRC2012_val_{40 - index:08d}.JPEG'][:1]] = 1
    scores.update(output, torch.zeros(40), torch.arange(40))
    assert scores.compute(CPU)['top1'] == 100


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('[[1], [2]]', 'the data has image number 0'),
        ('{}', 'a list of lists'),
        ('[', 'cannot read'),
        (None, 'cannot read'),
    ],
)
def test_real_labels_that_do_not_fit(validate, tmp_path, content, message):
    path = tmp_path / 'real.json'
    if content is not None:
        path.write_text(content)
    assert message in validate('--real-labels', path)


def test_only_valid_labels_compete(validate, tmp_path):
    path = tmp_path / 'valid.txt'
    path.write_text('\n'.join(map(str, (3, 5, 4, 6, 7, 8, 9, 0, 1, 2))))
    everything, reordered = validate(), validate('--valid-labels', path)
    assert reordered['loss'] != everything['loss']
    images = torch.rand(4, 1, 2, 5)
    assert torch.equal(SomeClasses(Taken(), [4, 0])(images), images[:, 0, 0][:, [4, 0]])
    path.write_text('1\n2')
    assert 'the data has 10 classes, more than the 2 of --valid-labels' in validate('--valid-labels', path)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('1\n10', 'got 10'),
        ('1\n1', 'got one of them twice'),
        ('', 'got none'),
        ('a', 'cannot read'),
        (None, 'cannot read'),
    ],
)
def test_valid_labels_that_are_none(validate, tmp_path, content, message):
    path = tmp_path / 'valid.txt'
    if content is not None:
        path.write_text(content)
    assert message in validate('--valid-labels', path)


@pytest.mark.parametrize('name', ['imagenet_a', 'imagenet_r'])
def test_bundled_valid_labels(name):
    classes = read_classes(name, 1000)
    assert len(classes) == 200
    assert classes == sorted(classes)


@pytest.mark.parametrize('views', [2, 5, 10])
def test_probabilities_are_averaged_over_views_of_the_same_image(views):
    images = torch.randn(3, 1, 7, 9)
    size = (7, 9) if views == 2 else (5, 5)
    corners = [(0, 0), (0, 4), (2, 0), (2, 4), (1, 2)] if views > 2 else [(0, 0)]
    crops = [images[..., top : top + size[0], left : left + size[1]] for top, left in corners]
    crops += [crop.flip(-1) for crop in crops] if views != 5 else []
    expected = torch.stack([crop[:, 0, 0].softmax(1) for crop in crops]).mean(0)
    torch.testing.assert_close(Views(Taken(), views, size)(images).exp(), expected)


def test_views_are_validated(validate):
    plain, mirrored = validate(), validate('--tta', '2')
    assert plain['loss'] != mirrored['loss']
    five = validate('--tta', '5', '--crop-pct', '0.8')
    assert (five['count'], five['img_size'], five['crop_pct']) == (40, 32, 0.8)
    assert validate('--tta', '5', '--crop-pct', '1').startswith('error: --tta 5 takes its views from what crop_pct')


def test_crops_are_of_what_the_plain_image_is_the_centre_of(monkeypatch, validate):
    seen = []

    def centre(self, images):
        seen.append(images)
        return self.model(images[..., 4:36, 4:36])

    monkeypatch.setattr(Views, 'forward', centre)
    with_corners = validate('--tta', '10', '--crop-pct', '0.8')
    assert seen[0].shape == (16, 1, 40, 40)
    assert with_corners['loss'] == validate('--crop-pct', '0.8')['loss']


def test_batches_are_halved_until_they_fit(monkeypatch, validate, caplog):
    sizes = []
    whole = validate()
    forward = validation.SomeClasses.forward

    def limited(self, images):
        sizes.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\nmore')
        return forward(self, images)

    monkeypatch.setattr(validation, '_measure', with_all_classes(validation._measure))
    monkeypatch.setattr(validation.SomeClasses, 'forward', limited)
    error = validate()
    assert error.startswith('error: out of memory with a batch of 16 (CUDA out of memory. Tried to allocate 2.00 GiB.)')
    sizes.clear()
    result = validate('--retry', '--metrics-avg', 'micro')
    assert sizes[:2] == [16, 8]
    assert sizes[2:] == [4] * 10
    assert 'out of memory with a batch of 16' in caplog.text
    assert 'starting again with 4' in caplog.text
    assert [result[key] for key in ('top1', 'count')] == [whole[key] for key in ('top1', 'count')]
    assert result['micro_recall'] == result['top1']


def with_all_classes(measure):
    """Has a model go through SomeClasses, where the test looks at its batches."""
    return lambda config, model, number, _, *more: measure(config, model, number, list(range(10)), *more)


def test_other_failures_are_not_tried_again(monkeypatch, run_command):
    def fail(*_):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')

    monkeypatch.setattr(Views, 'forward', fail)
    with pytest.raises(RuntimeError, match='illegal memory access'):
        run_command(validation.main, *DIGITS, '--retry', '--tta', '2')


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        ('--tta 3', '--tta: expected one of 0, 2, 5, 10 views, got 3'),
        ('--real-labels imagenet --valid-labels imagenet_a', 'leave one of them out'),
        ('--input-size 3 32 32 --img-size 24', '--input-size gives 32 where --img-size gives 24'),
        ('--input-size 3 32 32 --in-chans 1', '--input-size gives 3 where --in-chans gives 1'),
        ('--pretrained-path a --checkpoint b', 'both give the weights'),
        ('--pretrained-path a --pretrained', 'leave --pretrained out'),
        ('--torchcompile-mode max-autotune', 'has no effect without --torchcompile inductor'),
        ('--torchcompile eager --torchcompile-mode max-autotune', 'is for --torchcompile inductor, got eager'),
        ('--metrics-avg mean', '--metrics-avg: expected one of micro, macro, weighted'),
    ],
)
def test_contradictions(words, message):
    with pytest.raises(UserError, match=message):
        load_validate_config(['A', *words.split()])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The checkpoint of a run on wide images."""
    folder = tmp_path_factory.mktemp('trained')
    with pytest.MonkeyPatch.context() as patch:
        flags = ['--experiment', 'wide', '--epochs', '1', '--warmup-epochs', '0', '--input-size', '1', '32', '40']
        patch.setattr('sys.argv', ['train.py', *TINY_RUN, *flags, '--no-tensorboard', '--output', str(folder)])
        assert train.main() == 0
    return folder / 'wide' / 'last.pth.tar'


def test_weights_and_wide_input_come_from_a_checkpoint(trained, run_command, capsys):
    with open(trained.parent / 'summary.csv', newline='') as file:
        expected = float(next(csv.DictReader(file))['validation/loss'])
    flags = ['--num-samples', '50', '--device', 'cpu', '-j', '0']
    found = []
    for words in (
        ['--checkpoint', trained],
        ['--pretrained-path', trained],
        ['--checkpoint', trained, '--torchcompile', 'eager'],
        ['--checkpoint', trained, '--img-size', '40'],
        ['--pretrained-path', trained, '--in-chans', '3', '--mean', '0.5', '--std', '0.5'],
    ):
        assert run_command(validation.main, *words, *flags) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    assert [result['img_size'] for result in found] == [40] * 5
    assert [result['loss'] for result in found[:3]] == pytest.approx([expected] * 3, abs=1e-5)
    assert found[3]['loss'] != found[0]['loss']


def test_training_adapts_weights_and_starts_a_new_classifier(trained):
    config = load_train_config(['A', *TINY_MODEL, '--pretrained-path', str(trained)]).model
    state = torch.load(trained, weights_only=True)['state_dict']
    for in_chans in (1, 3):
        torch.manual_seed(0)
        model = build_network(config, 10, in_chans)
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, state[name])}
        assert changed == {'fc.weight', 'fc.bias'} | ({'conv1.weight'} if in_chans == 3 else set())
    torch.testing.assert_close(model.conv1.weight.sum(1, keepdim=True), state['conv1.weight'])


def test_weights_of_another_model_do_not_fit(validate, trained):
    error = validate('--pretrained-path', trained, '--model', 'ddf_mul_resnet50')
    assert error.startswith(f'error: the weights of {trained} do not fit model ddf_mul_resnet50: ')
    assert 'Missing key' in error
    assert 'expected one of ' in validate('--torchcompile', 'inductr')


def test_colour_mode_must_have_the_models_channels(validate):
    assert validate('--input-img-mode', 'RGB') == (
        'error: --input-img-mode RGB gives images of 3 channels, but the model takes 1: leave it out, or give '
        '--in-chans 3'
    )


def test_random_weights_are_pointed_out(validate, trained, caplog):
    validate()
    assert 'the weights are random' in caplog.text
    caplog.clear()
    validate('--checkpoint', trained)
    assert 'random' not in caplog.text


def test_labels_beyond_the_classes_of_the_model(run_command, capsys, monkeypatch):
    monkeypatch.setattr(validation, '_check_classes', lambda *_: None)  # as of a set that does not name its classes
    assert run_command(validation.main, *DIGITS, '--num-classes', '7') == 2
    assert 'the model has 7 classes, but the data has label ' in capsys.readouterr().err


def test_size_of_the_model_is_named_for_test_pool(validate):
    assert 'larger than the 224 pixels of the model, got 48' in validate('--test-pool', '--img-size', '48')
    assert validate('--test-pool', '--img-size', '256', '--num-samples', '3')['crop_pct'] == 1


@pytest.mark.parametrize('load', [load_train_config, load_validate_config])
def test_compilation_alone_is_by_inductor(load):
    assert load(['A', '--torchcompile']).model.torchcompile == 'inductor'
    assert load(['A', '--torchcompile', '--amp']).model.torchcompile == 'inductor'
    assert load(['A', '--torchcompile', 'eager']).model.torchcompile == 'eager'
