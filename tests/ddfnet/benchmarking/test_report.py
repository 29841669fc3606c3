"""Tables as text, CSV, JSON and pictures."""

import csv
import json

import pytest
from matplotlib.figure import Figure

from ddfnet.benchmarking.plot import draw_models, draw_operations, read_accuracies
from ddfnet.benchmarking.report import check_targets, table_text, write_csv, write_json
from ddfnet.benchmarking.results import Row, Table
from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Built, Prepared
from ddfnet.errors import UserError


def row(
    name: str, seconds: float, error: float | None = None, shape=None, batch_size: int = 4, position: int = 0
) -> Row:
    built = Built((3, 8, 8), params=12_345, gmacs=2.2668, seconds=0.1, setup_seconds=0.0, needed=None, free=None)
    prepared = Prepared(batch_size, 0.1, peak_memory=3_000_000, error=error, tolerance=1e-4, graph=False)
    job = Job(name, 4, shape)
    return Row(job, f'the {name}', position, built, prepared, times=[seconds, seconds, 2 * seconds], in_turns=True)


def unmeasured(name: str) -> Row:
    return Row(Job(name, 4), f'the {name}', 0, problem='does not fit')


def test_text():
    table = Table('batch 4', [row('a', 0.01), row('b', 0.02, error=1e-6), unmeasured('c')])
    title, header, *lines = table_text(table).splitlines()
    assert title == 'batch 4'
    assert ' '.join(header.split()) == 'input median ms p10 p90 p99 passes samples/s peak MB GMACs params ratio'
    cells = ['3x8x8', '10.000', '10.000', '18.000', '19.800', '3', '400.0', '3.0', '2.267', '12,345', '1.000']
    assert lines[0].split() == ['the', 'a', *cells]
    assert lines[1].split()[-1] == '2.000'
    assert lines[2].split() == ['the', 'c', *'-----------']
    assert lines[3] == '  the c: does not fit'


def test_narrow_terminal():
    table = Table('batch 4', [row('a', 0.01), row('b', 0.02)])
    wide, narrow = table_text(table, 200), table_text(table, 40)
    assert wide == table_text(table)
    assert max(map(len, narrow.splitlines())) <= 40
    blocks = narrow.split('\n', 1)[1].split('\n\n')
    assert [line.split()[:2] for block in blocks for line in block.splitlines()[1:]] == [
        ['the', 'a'],
        ['the', 'b'],
    ] * len(blocks)
    assert sorted(narrow.split()) == sorted([*wide.split(), *['the', 'a', 'the', 'b'] * (len(blocks) - 1)])


def test_no_ratio_of_wrong_results():
    table = Table('t', [row('a', 0.01), row('b', 0.02, error=0.3), row('c', 0.02, error=float('nan'))])
    assert [table.ratio(each) for each in table.rows] == [1, None, None]
    assert table.rows[1].failed
    assert 'the b: its results differ from the definition by 3.0e-01 (at most 1e-04): no ratio' in table_text(table)
    table = Table('t', [row('a', 0.01, error=0.3), row('b', 0.02)])
    assert [table.ratio(each) for each in table.rows] == [None, None]


def test_ratio_is_per_image():
    table = Table('t', [row('a', 0.01), row('b', 0.01, batch_size=2)])
    assert table.ratio(table.rows[1]) == 2
    assert '  the b: out of memory at batch 4: timed at 2' in table_text(table)


def test_ratio_is_to_the_first_that_was_timed():
    table = Table('t', [unmeasured('a'), row('b', 0.01), row('c', 0.02)])
    assert [table.ratio(each) for each in table.rows] == [None, 1, 2]
    assert table_text(table).splitlines()[-1] == '  ratios are to the b: the a was not timed'
    assert [record['ratio_to'] for record in table.records()] == ['the b'] * 3


def test_left_out_table_is_one_line():
    table = Table('big', [row('a', 1)], left_out='left out: too long')
    assert table_text(table) == 'big: left out: too long'


def test_files(tmp_path):
    tables = [Table('one', [row('a', 0.01), unmeasured('b')]), Table('two', [row('c', 0.02)])]
    write_csv(tmp_path / 'x.csv', tables)
    with open(tmp_path / 'x.csv', newline='') as file:
        records = list(csv.DictReader(file))
    assert [(record['table'], record['name'], record['median_s']) for record in records] == [
        ('one', 'a', '0.01'),
        ('one', 'b', ''),
        ('two', 'c', '0.02'),
    ]
    assert records[1]['notes'] == 'does not fit'
    write_json(tmp_path / 'x.json', tables, complete=True)
    stored = json.loads((tmp_path / 'x.json').read_text())
    assert stored['complete'] is True
    assert stored['tables'][0]['rows'][0]['peak_memory_bytes'] == 3_000_000
    assert stored['tables'][1]['rows'][0]['samples_per_s'] == pytest.approx(200)


def test_targets(tmp_path):
    kept = tmp_path / 'kept.json'
    kept.write_text('content')
    good = {'--json': str(kept), '--plot': str(tmp_path / 'x.PNG'), '--csv': ''}
    check_targets(good, {'--plot': ('.png',)})
    assert kept.read_text() == 'content'
    assert [path.name for path in tmp_path.iterdir()] == ['kept.json']
    with pytest.raises(UserError, match=r'--csv: cannot write .*missing/x.csv: No such file or directory'):
        check_targets({'--csv': str(tmp_path / 'missing' / 'x.csv')}, {})
    with pytest.raises(UserError, match=r'--json: cannot write .*: Is a directory'):
        check_targets({'--json': str(tmp_path)}, {})
    with pytest.raises(UserError, match=r"--plot: expected a name that ends with one of .png, got 'x.jpeg'"):
        check_targets({'--plot': 'x.jpeg'}, {'--plot': ('.png',)})
    with pytest.raises(UserError, match='--json and --csv: expected different files'):
        check_targets({'--json': str(kept), '--csv': str(kept)}, {})


def test_pictures_show_what_was_measured(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, 'savefig', lambda figure, path, dpi: figures.append(figure))
    shapes = [(4, 8, 7, 7), (4, 8, 14, 14), (2, 8, 20, 30)]
    tables = [Table('t', [row('a', 0.01, shape=shape), row('b', 0.02, shape=shape, position=1)]) for shape in shapes]
    draw_operations(tables, tmp_path / 'x.png')
    first, second = figures[-1].axes
    assert [line.get_label() for line in first.lines] == ['the a', 'the b']
    assert first.lines[1].get_xydata().tolist() == [[7, 20], [14, 20]]
    assert second.get_title() == 'batch 2, 8 channels'
    assert [bar.get_width() for bar in second.patches] == [10, 20]
    models = [Table('t', [row('a', 0.01), row('b', 0.02), unmeasured('c')]), Table('u', [row('a', 0.02, batch_size=9)])]
    draw_models(models, tmp_path / 'x.png', {'a': 77.0, 'b': 79.0})
    assert figures[-1].axes[0].get_ylabel() == 'top-1 on ImageNet (%)'
    assert [text.get_text() for text in figures[-1].axes[0].texts] == ['a', 'b']
    assert figures[-1].axes[0].get_legend_handles_labels()[1] == ['batch 4', 'batch 9']
    draw_models(models, tmp_path / 'x.png', {'a': 77.0})
    assert figures[-1].axes[0].get_ylabel() == 'GMACs per image'


def test_accuracies(tmp_path):
    path = tmp_path / 'results.csv'
    path.write_text('model,top1,top5\nresnet50,80.5,95\n')
    assert read_accuracies(str(path)) == {'resnet50': 80.5}
    path.write_text('name,top1\nresnet50,80.5\n')
    with pytest.raises(UserError, match='expected a CSV file with columns model and top1'):
        read_accuracies(str(path))
    with pytest.raises(UserError, match='cannot read'):
        read_accuracies(str(tmp_path / 'missing.csv'))
