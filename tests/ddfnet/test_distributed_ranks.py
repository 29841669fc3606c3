"""What two real processes over gloo do alike, share and sum, from one launch; tests.ddfnet.rank_checks runs in them."""

import csv
import json
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ddfnet.config import load_train_config
from ddfnet.distributed import Processes
from ddfnet.training import command
from ddfnet.training.stopping import Agreement
from tests.ddfnet.conftest import TINY_RUN, image_folders
from tests.ddfnet.engine_parts import CPU
from tests.ddfnet.rank_checks import SMOOTH_RUN, accumulated, damaged
from tests.ddfnet.test_distributed import torchrun


@pytest.fixture(scope='module')
def damaged_images(tmp_path_factory):
    """16 images for training, of which 5 are damaged, and 16 for validation, of which 2 are."""
    root = image_folders(tmp_path_factory.mktemp('damaged'), classes=2, per_class=8)
    for split, folder, count in (('train', 'digit0', 3), ('train', 'digit1', 2), ('val', 'digit1', 2)):
        for path in sorted((root / split / folder).iterdir())[:count]:
            path.write_bytes(path.read_bytes()[:200])
    (root / 'real.json').write_text(json.dumps([[number % 2] if number % 3 else [] for number in range(16)]))
    return root


@pytest.fixture(scope='module')
def folder(tmp_path_factory, damaged_images):
    folder = tmp_path_factory.mktemp('ranks')
    result = torchrun(2, '-m', 'tests.ddfnet.rank_checks', folder, damaged_images)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.fixture(scope='module')
def ranks(folder):
    return torch.load(folder / 'found.pt', weights_only=True)


def test_the_seed_changes_the_order_and_ranks_share_no_image(ranks):
    orders = [rank['orders'] for rank in ranks]
    for seed in (42, 43):
        assert sorted(orders[0][seed] + orders[1][seed]) == list(range(96))
    assert all(order[42] != order[43] for order in orders)
    assert set(orders[0][42]) != set(orders[0][43])


def test_gradients_are_reduced_once_per_optimiser_step_and_are_those_of_the_whole_batch(ranks):
    alone = accumulated(CPU)
    for rank in ranks:
        assert rank['accumulated']['events'] == 2 * ['forward', 'forward', 'reduce']
        for step, expected in zip(rank['accumulated']['gradients'], alone['gradients'], strict=True):
            for gradient, other in zip(step, expected, strict=True):
                torch.testing.assert_close(gradient, other, rtol=1e-12, atol=1e-15)


def test_damaged_images_of_all_ranks_are_counted_and_named_and_others_scored(ranks, damaged_images):
    alone = damaged(CPU, str(damaged_images), batch_size=8)
    found = [rank['damaged'] for rank in ranks]
    assert alone['replaced'] >= 5
    assert all(rank['met'] for rank in found)
    assert sum(rank['met'] for rank in found) == alone['replaced']
    assert [rank['replaced'] for rank in found] == [alone['replaced']] * 2
    assert found[0]['metrics'] == found[1]['metrics'] == pytest.approx(alone['metrics'])
    assert {name: alone['metrics'][name] for name in ('count', 'corrupt', 'real_count')} == {
        'count': 14, 'corrupt': 2, 'real_count': 9,
    }  # fmt: skip
    assert found[0]['lines'] == alone['lines']
    assert [line for line in alone['lines'] if str(damaged_images) in line] == alone['lines'][-2:]
    assert found[1]['lines'] == []


@pytest.mark.parametrize('mode', ['reduce', 'broadcast'])
def test_running_statistics_are_made_equal(ranks, mode):
    first, second = (rank['statistics'][mode] for rank in ranks)
    assert len(first) == len(second) == 2  # the model and its average
    for (before, after), (other_before, other_after) in zip(first, second, strict=True):
        assert any(not torch.equal(*pair) for pair in zip(before, other_before, strict=True))
        for own, other, result, other_result in zip(before, other_before, after, other_after, strict=True):
            assert torch.equal(result, other_result)
            torch.testing.assert_close(result, (own + other) / 2 if mode == 'reduce' else own)


def test_running_statistics_are_left_where_asked(ranks):
    assert [rank['statistics']['left'] for rank in ranks] == [[], []]


def test_two_processes_learn_as_one_does(folder, run_command, tmp_path):
    assert run_command(command.main, *SMOOTH_RUN, '-b', '16', '--output', tmp_path) == 0
    curves = []
    for output in (folder, tmp_path):
        with open(output / 'smooth' / 'summary.csv', newline='') as file:
            curves.append(list(csv.DictReader(file)))
    assert len(curves[0]) == len(curves[1]) == 3
    for row, expected in zip(*curves):
        for key in ('train/loss', 'validation/loss', 'train/lr', 'validation/top1', 'train/top1'):
            assert float(row[key]) == pytest.approx(float(expected[key]), rel=1e-4), key
    losses = [float(row['validation/loss']) for row in curves[0]]
    assert max(losses) - min(losses) > 0.05  # the weights do move


@pytest.mark.parametrize(
    ('words', 'minutes'), [([], 10), (['--dist-timeout', '2.5'], 2.5), (['--dist-timeout', 'none'], None)]
)
def test_time_out_reaches_every_process_group(monkeypatch, run_command, words, minutes):
    """That of the run, and that of its agreements to stop."""
    expected = None if minutes is None else timedelta(minutes=minutes)
    asked = []

    def record(*_, timeout, **__):
        asked.append(timeout)
        raise ValueError('no other process')

    monkeypatch.setattr(dist, 'init_process_group', record)
    monkeypatch.setattr(dist, 'new_group', lambda **settings: asked.append(settings['timeout']))
    for name, value in {'RANK': '0', 'WORLD_SIZE': '2', 'LOCAL_RANK': '0'}.items():
        monkeypatch.setenv(name, value)
    assert run_command(command.main, *TINY_RUN, *words) == 2
    config = load_train_config([*TINY_RUN, *words])
    Agreement(Processes(torch.device('cpu'), world_size=2), config.distribution.dist_timeout)
    assert asked == [expected, expected]


def test_help_says_the_time_out(monkeypatch, capsys):
    monkeypatch.setenv('COLUMNS', '80')
    with pytest.raises(SystemExit):
        load_train_config(['--help'])
    text = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    assert 'Minutes' in text.partition('--dist-timeout')[2].partition('(default: 10.0)')[0][:100]
