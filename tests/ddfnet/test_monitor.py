"""What a run reports: lines, summary.csv, curves.png and TensorBoard events read back."""

import csv
import io
import logging
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ddf import DDFPack
from ddfnet.training import command, engine
from ddfnet.training.curves import draw_curves
from ddfnet.training.pictures import filters_shown, inputs_shown
from ddfnet.training.status_line import StatusLine
from ddfnet.training.summary import COLUMNS
from tests.ddfnet.conftest import TINY_RUN


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of 3 epochs of 6 steps, validated after the second and the third."""
    folder = tmp_path_factory.mktemp('runs')
    with pytest.MonkeyPatch.context() as patch:
        flags = ['--val-interval', '2', '--log-interval', '4', '--save-images', '--model-ema', '--experiment', 'a']
        patch.setattr('sys.argv', ['train.py', *TINY_RUN, *flags, '--output', str(folder)])
        assert command.main() == 0
    return folder / 'a'


@pytest.fixture(scope='module')
def events(run):
    return EventAccumulator(str(run), size_guidance={'scalars': 0, 'images': 0}).Reload()


def steps(events, name: str) -> list[int]:
    return [event.step for event in events.Scalars(name)]


def test_events_hold_scalars_of_epochs_and_of_logging_steps(run, events):
    assert steps(events, 'train/loss') == steps(events, 'train/top1') == [6, 12, 18]
    assert steps(events, 'validation/top1') == steps(events, 'ema/top1') == [12, 18]
    for name in ('loss', 'top1', 'samples_per_s', 'waiting_for_data_percent', 'lr', 'grad_norm', 'memory_gb'):
        assert steps(events, f'step/{name}') == [4, 6, 10, 12, 16, 18]
    assert all(event.value > 0 for event in events.Scalars('step/grad_norm'))
    with open(run / 'summary.csv', newline='') as file:
        last = list(csv.DictReader(file))[-1]
    assert events.Scalars('train/loss')[-1].value == pytest.approx(float(last['train/loss']))
    for name in ('loss', 'top1'):  # of the images since the last line, so that lines of 4 and 2 steps make the epoch
        first, second = (event.value for event in events.Scalars(f'step/{name}')[-2:])
        assert (4 * first + 2 * second) / 6 == pytest.approx(float(last[f'train/{name}']))


def test_events_hold_pictures(events):
    names = events.Tags()['images']
    assert 'inputs' in names
    filters = [name for name in names if name.startswith('spatial filters/')]
    assert [name.split('/')[1].split('.')[0] for name in filters] == ['layer1', 'layer3', 'layer4']
    assert [event.step for event in events.Images(filters[0])] == [12, 18]
    picture = Image.open(io.BytesIO(events.Images('inputs')[0].encoded_image_string))
    assert picture.size == (4 * 34 + 2, 4 * 34 + 2)


def test_events_hold_settings_in_one_run(run, events):
    assert [path.name for path in run.iterdir() if path.is_dir()] == []
    assert len(list(run.glob('events.*'))) == 1
    plugin = events.SummaryMetadata('_hparams_/session_start_info').plugin_data
    assert plugin.plugin_name == 'hparams'
    assert b'weight_decay' in plugin.content
    assert '_hparams_/session_end_info' in events.summary_metadata


def test_summary_has_every_column_in_every_row(run):
    lines = (run / 'summary.csv').read_text().splitlines()
    assert lines[0] == ','.join(COLUMNS)
    assert [line.count(',') for line in lines] == [len(COLUMNS) - 1] * 4


def test_summary_keeps_its_columns_when_the_average_is_switched_on(run_command, tmp_path):
    flags = [*TINY_RUN, '--output', tmp_path, '--experiment', 'a', '--train-num-samples', '32', '--warmup-epochs', '0']
    assert run_command(command.main, *flags, '--epochs', '1') == 0
    before = (tmp_path / 'a' / 'summary.csv').read_text().splitlines()
    assert run_command(command.main, *flags, '--epochs', '2', '--resume', 'auto', '--model-ema') == 0
    after = (tmp_path / 'a' / 'summary.csv').read_text().splitlines()
    assert after[:2] == before
    assert len(after) == 3


def test_resumed_events_continue_without_repetition(run_command, tmp_path):
    flags = [*TINY_RUN, '--output', tmp_path, '--experiment', 'a', '--warmup-epochs', '0', '--log-interval', '3']
    for epochs in ('1', '2'):
        time.sleep(1)  # files of events are read in the order of the seconds in their names
        assert run_command(command.main, *flags, '--epochs', epochs, '--resume', 'auto') == 0
    events = EventAccumulator(str(tmp_path / 'a')).Reload()
    assert steps(events, 'train/loss') == [6, 12]
    assert steps(events, 'step/loss') == [3, 6, 9, 12]


def test_log_has_a_line_per_logging_step(run_command, tmp_path, capsys, caplog):
    flags = [*TINY_RUN, '--output', tmp_path, '--epochs', '1', '--warmup-epochs', '0', '--log-interval', '4']
    with caplog.at_level(logging.INFO, logger='ddfnet'):
        assert run_command(command.main, *flags) == 0
    lines = [record.message for record in caplog.records if ' samples/s ' in record.message]
    assert [line.split(']')[0] for line in lines] == ['epoch   0/1 [   4/6', 'epoch   0/1 [   6/6']
    for part in ('loss ', 'top-1 ', 'data ', 'lr 0.02', ' GB', ' left'):
        assert part in lines[0]
    assert lines[0].index(' left') < 80


def test_device_is_read_at_logging_steps_alone(run_command, tmp_path, monkeypatch):
    reads = []
    item = torch.Tensor.item
    inside = False

    def counted(tensor):
        if inside:
            reads.append(tensor)
        return item(tensor)

    backward = engine._backward

    def watched(*arguments, **more):
        nonlocal inside
        inside = True
        return backward(*arguments, **more)

    monkeypatch.setattr(engine, '_backward', watched)
    monkeypatch.setattr(torch.Tensor, 'item', counted)
    monkeypatch.setattr(command.Monitor, 'end_epoch', lambda *_: None)
    flags = ['--output', tmp_path, '--epochs', '1', '--warmup-epochs', '0', '--val-interval', '5']
    monkeypatch.setattr(command, '_validate', lambda *_: {})
    assert run_command(command.main, *TINY_RUN, *flags, '--log-interval', '6') == 0
    few = len(reads)
    reads.clear()
    inside = False
    assert run_command(command.main, *TINY_RUN, *flags, '--log-interval', '1', '--experiment', 'b') == 0
    assert few <= 8  # some of the only logging step, and the epoch's sums
    assert len(reads) - few == 5 * 2  # loss and gradient norm


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_status_line_makes_way_for_messages(monkeypatch):
    terminal = _Terminal()
    monkeypatch.setattr('sys.stdout', terminal)
    monkeypatch.setenv('COLUMNS', '20')
    line = StatusLine()
    logger = logging.getLogger('test_status_line')
    logger.addHandler(logging.StreamHandler(terminal))
    logger.addFilter(line)
    assert line.due()
    line.show('step 1 of a run that goes on')
    assert not line.due()
    logger.warning('a message')
    assert terminal.getvalue() == '\r\x1b[Kstep 1 of a run tha\r\x1b[Ka message\n'


@pytest.mark.parametrize(
    ('columns', 'shown'),
    [
        (80, '[2/6] loss 2.2831  top-1 9.38 %  0:01:02 left'),
        (46, '[2/6] loss 2.2831  top-1 9.38 %  0:01:02 left'),
        (45, '[2/6] loss 2.2831  top-1 9.38 %'),
        (31, '[2/6] loss 2.2831'),
        (10, '[2/6] los'),
    ],
)
def test_narrow_terminal_shows_whole_parts(monkeypatch, columns, shown):
    terminal = _Terminal()
    monkeypatch.setattr('sys.stdout', terminal)
    monkeypatch.setenv('COLUMNS', str(columns))
    StatusLine().show('[2/6] loss 2.2831  top-1 9.38 %  0:01:02 left')
    assert terminal.getvalue() == f'\r\x1b[K{shown}'


def test_without_a_terminal_there_is_no_status_line(monkeypatch):
    monkeypatch.setattr('sys.stdout', io.StringIO())
    line = StatusLine()
    line.show('step 1')
    assert not line.due()
    assert line.on_terminal is False


@pytest.mark.parametrize('epochs', [1, 5, 300])
def test_curves_are_drawn_for_any_number_of_epochs(tmp_path, epochs):
    rows = [
        {'epoch': str(n), 'train/loss': f'{1 / (n + 1)}', 'validation/top1': '' if n % 2 else '50'}
        for n in range(epochs)
    ]
    draw_curves(rows, tmp_path / 'curves.png')
    assert Image.open(tmp_path / 'curves.png').size == (1430, 396)


def test_inputs_are_shown_as_they_were_before_normalisation():
    model = torch.nn.Identity()
    images = torch.rand(2, 1, 8, 8)
    pictures = {}
    with inputs_shown(model, [0.3], [0.2], pictures.__setitem__):
        model((images - 0.3) / 0.2)
        model(torch.zeros(2, 1, 8, 8))  # only the first are shown
    torch.testing.assert_close(pictures['inputs'][:, 2:10, 2:10], images[0].expand(3, -1, -1))
    model(images)
    assert list(pictures) == ['inputs']


def test_filters_are_those_of_the_pass():
    torch.manual_seed(0)
    model = torch.nn.Sequential(DDFPack(4), DDFPack(4, stride=2)).eval()
    pictures = {}
    with filters_shown(model, [0.0] * 4, [1.0] * 4, pictures.__setitem__):
        pass
    assert pictures == {}
    stem = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), model).eval()
    with torch.inference_mode(), filters_shown(stem, [0.5] * 3, [0.5] * 3, pictures.__setitem__):
        stem(torch.randn(2, 3, 56, 56))
    assert list(pictures) == ['spatial filters/1.0', 'spatial filters/1.1']
    assert pictures['spatial filters/1.0'].shape == (3, 2 * 58 + 2, 11 * 58 + 2)


def test_what_draws_is_imported_when_it_draws():
    code = "import sys, ddfnet.training.command; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
