"""inference_time.py: its tables and files, what it refuses, and how it stops."""

import csv
import json

import pytest
import torch

from ddfnet import inference_time
from ddfnet.benchmarking import session
from ddfnet.benchmarking.processes import WorkerFailure
from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Worker
from ddfnet.config import BenchmarkConfig, load_inference_config
from ddfnet.errors import UserError
from tests.ddfnet.benchmarking.stand_ins import StandIn, interrupted_at_second_call

QUICK = ['--device', 'cpu', '--min-time', '0.001', '--num-threads', '1']
SMALL_NETS = [*QUICK, '--img-size', '32', '--model-kwargs', 'channels=(8,8,16,16)', '--model']


@pytest.fixture
def stand_ins(monkeypatch):
    """Puts stand-ins in the place of workers, with a script."""

    def put(script=None) -> None:
        monkeypatch.setattr(session, 'WorkerProcess', StandIn.fresh(script))

    return put


@pytest.mark.parametrize('train', [[], ['--train']], ids=['forward', 'train'])
def test_operations(run_command, capsys, tmp_path, train):
    names = ['conv', 'depthwise', 'module', 'ddf', 'unfold', 'shifted']
    maps = ['--channels', '8', '-b', '2', '--sizes', '7', '1x4x5x6']
    target = tmp_path / 'x.csv'
    assert run_command(inference_time.main, *QUICK, '--op', *names, *maps, *train, '--csv', target) == 0
    output = capsys.readouterr().out
    assert output.index('1 x 4 x 5 x 6, kernel 3') < output.index('2 x 8 x 7 x 7, kernel 3')
    with open(target, newline='') as file:
        records = list(csv.DictReader(file))
    assert [record['name'] for record in records] == names * 2
    for record in records:
        assert int(record['passes']) >= 3
        assert float(record['ratio']) > 0
        assert (record['error'] != '') == (record['name'] in ('ddf', 'unfold', 'shifted'))


@pytest.mark.parametrize('flags', [[], ['--train', '--amp', '--channels-last']], ids=' '.join)
def test_models(run_command, capsys, tmp_path, flags):
    files = ['--json', tmp_path / 'x.json', '--plot', tmp_path / 'x.png']
    names = ['ddf_mul_resnet26', 'resnet26']
    assert run_command(inference_time.main, *SMALL_NETS, *names, '-b', '2', '3', *flags, *files) == 0
    stored = json.loads((tmp_path / 'x.json').read_text())
    assert stored['complete'] is True
    assert stored['settings']['batch_size'] == [2, 3]
    assert stored['environment']['threads']['intra_op'] == 1
    assert [[row['name'] for row in table['rows']] for table in stored['tables']] == [names, names]
    assert [table['rows'][0]['ratio'] for table in stored['tables']] == [1, 1]
    assert stored['tables'][1]['rows'][1]['batch_size'] == 3
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')
    assert 'batch 3' in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_operation(run_command, capsys):
    flags = ['--op', 'ddf', 'compiled', '--channels', '8', '-b', '2', '--sizes', '7']
    assert run_command(inference_time.main, *QUICK, *flags) == 0
    assert capsys.readouterr().out.count('1.000\n') == 1


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        (['--model', 'ddf_mul_resnet2'], "unknown model 'ddf_mul_resnet2': did you mean ddf_mul_resnet26"),
        (['--model', 'ddff_*'], "no model matches 'ddff_*': timm.list_models() lists them"),
        (['--kernel-size', '2'], '--kernel-size: expected an odd number of at least 3, got 2'),
        (['resnet18'], "unexpected 'resnet18': expected a flag\n"),
        (['--num-threads', '9999'], '--num-threads: expected at most '),
        (['--device', 'meta'], "device 'meta' cannot be used here (it computes nothing)"),
        (['--device', 'abacus'], "device 'abacus' cannot be used here"),
        (['--op', 'ddf', '--model', 'resnet18'], '--op times the operation and --model times models: give one'),
        (['--op', 'dff'], '--op: expected one of all, conv, depthwise, module, ddf, unfold, shifted, compiled'),
        (['--sizes', '7', '8x0'], "--sizes: expected a side, HxW or BxCxHxW, such as 56 or 2x256x200x300, got '8x0'"),
        (['--sizes', '2x256x200'], "got '2x256x200'"),
        (['--sizes', '7', '--model', 'resnet18'], '--sizes is for maps, and --model times models'),
        (['--img-size', '7'], '--img-size is for models, and none is given with --model'),
        (['--torchcompile', 'inducto'], "got 'inducto' (did you mean inductor?)"),
        (['--torchcompile-mode', 'default'], '--torchcompile-mode needs --torchcompile'),
        (['--json', '/nonexistent/x.json'], '--json: cannot write /nonexistent/x.json: No such file or directory'),
        (['--plot', 'x.txt'], "--plot: expected a name that ends with one of .png .pdf .svg, got 'x.txt'"),
        (['--model', 'resnet18', '--accuracy-file', 'x.csv'], '--accuracy-file is for --plot, which is not given'),
        (
            ['--model', 'resnet18', '--plot', 'x.png', '--accuracy-file', 'no.csv'],
            '--accuracy-file: cannot read no.csv',
        ),
        ([*SMALL_NETS, 'resnet26', '-b', '0'], '--batch-size: expected a list of integers of at least 1'),
    ],
)
def test_mistakes(run_command, capsys, stand_ins, flags, message):
    stand_ins({('', ''): None})
    assert run_command(inference_time.main, *flags) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count('\n') == 1
    assert captured.out == ''


def test_model_that_does_not_take_the_image(run_command, capsys, tmp_path):
    """The model that was fine is timed all the same, and the status tells of the other."""
    target = tmp_path / 'x.json'
    flags = [*QUICK, '--model', 'test_resnet', 'test_vit', '--img-size', '33', '-b', '1', '--json', target]
    assert run_command(inference_time.main, *flags) == 2
    captured = capsys.readouterr()
    assert 'error: test_vit: model VisionTransformer does not take a batch of 1 images of 3 x 33 x 33' in captured.err
    fine, other = json.loads(target.read_text())['tables'][0]['rows']
    assert fine['passes'] >= 3
    assert other['passes'] == 0
    assert other['notes'].startswith('model VisionTransformer does not take')


def test_arguments_that_no_model_takes(run_command, capsys, stand_ins):
    stand_ins()
    flags = ['--model', 'test_resnet', 'test_vit', '--model-kwargs']
    assert run_command(inference_time.main, *flags, 'chanels=3') == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: --model-kwargs: cannot build model 'test_resnet': ResNet.__init__() got")
    assert captured.err.endswith("'chanels'; expected arguments that the model takes\n")
    assert captured.out == ''
    assert run_command(inference_time.main, *flags, 'embed_dim=32') == 0  # one of them takes it


@pytest.fixture
def no_compiler():
    with torch._inductor.config.patch({'cpp.cxx': ('/no/such/compiler',)}):
        yield


@pytest.mark.usefixtures('no_compiler', 'stand_ins')
def test_missing_compiler(run_command, capsys):
    for flags in (['--torchcompile'], ['--op', 'ddf', 'compiled']):
        assert run_command(inference_time.main, '--device', 'cpu', *flags) == 2
        captured = capsys.readouterr()
        wanted = 'error: --op compiled' if '--op' in flags else 'error: --torchcompile inductor'
        assert captured.err.startswith(f'{wanted} needs a C++ compiler that works on a CPU (')
        assert captured.out == ''
    with pytest.raises(UserError, match=r'^the compiled shifted sum needs a C\+\+ compiler'):
        Worker(load_inference_config([]), torch.device('cpu')).build(Job('compiled', 1, (1, 4, 5, 5)))
    assert inference_time.operation_tables(BenchmarkConfig(op=('all',)))[0].rows[-1].dispensable


def test_flags_that_may_stand_alone():
    benchmark = load_inference_config(['--op', '-b', '4', '8', '--torchcompile']).benchmark
    assert (benchmark.op, benchmark.batch_size, benchmark.torchcompile) == (('all',), (4, 8), 'inductor')
    benchmark = load_inference_config(['--torchcompile', 'eager', '--op', 'ddf', 'conv']).benchmark
    assert (benchmark.op, benchmark.torchcompile) == (('ddf', 'conv'), 'eager')


def test_default_tables_are_those_of_the_paper():
    tables = inference_time.operation_tables(BenchmarkConfig())
    assert [table.title for table in tables] == [
        '32 x 256 x 7 x 7, kernel 3',
        '32 x 256 x 14 x 14, kernel 3',
        '32 x 256 x 28 x 28, kernel 3',
        '32 x 256 x 56 x 56, kernel 3',
        '2 x 256 x 200 x 300, kernel 3',
        '32 x 256 x 112 x 112, kernel 3',
        '32 x 256 x 224 x 224, kernel 3',
    ]
    names = [row.job.name for row in tables[0].rows]
    assert names == ['conv', 'depthwise', 'module', 'ddf', 'unfold', 'shifted']
    everything = inference_time.operation_tables(BenchmarkConfig(op=('all',)))
    assert [row.job.name for row in everything[0].rows] == [*names, 'compiled']


def test_patterns_of_model_names(run_command, capsys, stand_ins):
    names = [row.label for row in inference_time.model_tables(BenchmarkConfig(model=('resnet50', 'ddf_mul_*')))[0].rows]
    assert names == ['resnet50', *(f'ddf_mul_resnet{depth}' for depth in (26, 50, 101, 152))]
    stand_ins({('ddf_mul_resnet26', 'build'): UserError('it does not take such images')})
    assert run_command(inference_time.main, '--model', 'ddf_mul_*') == 0
    assert '  ddf_mul_resnet26: it does not take such images' in capsys.readouterr().out
    assert run_command(inference_time.main, '--model', 'ddf_mul_*', 'ddf_mul_resnet26') == 2


def test_models_of_a_file(run_command, capsys, tmp_path):
    path = tmp_path / 'models.txt'
    path.write_text('# plain\nresnet50\n\n  ddf_mul_resnet?0  # also by pattern\nresnet18\n', encoding='utf-8-sig')
    for given in (str(path), f'@{path}'):
        rows = inference_time.model_tables(BenchmarkConfig(model=('resnet18', given)))[0].rows
        assert [(row.label, row.dispensable) for row in rows] == [
            ('resnet18', False),
            ('resnet50', False),
            ('ddf_mul_resnet50', True),
        ]
    for text, message in {
        'resnet18\nresnett50\n': f"{path}, line 2: unknown model 'resnett50': did you mean resnet",
        '# none\n': f'--model: {path} names no model: expected one on each line',
        'other.txt\n': f"{path}, line 1: expected a model, got another list, 'other.txt'",
    }.items():
        path.write_text(text)
        assert run_command(inference_time.main, '--model', path) == 2
        assert capsys.readouterr().err.startswith(f'error: {message}')
    assert run_command(inference_time.main, '--model', '@missing') == 2
    assert capsys.readouterr().err == 'error: --model: cannot read missing: No such file or directory\n'
    path.write_bytes(b'\xff\xfe')
    assert run_command(inference_time.main, '--model', path) == 2
    assert capsys.readouterr().err == f'error: --model: expected a text file of names, {path} is none\n'


def test_budget_leaves_out_what_is_larger(run_command, capsys, stand_ins):
    stand_ins()
    flags = ['--op', 'conv', '--sizes', '9', '7', '8', '--min-time', '50', '--budget', '10']
    assert run_command(inference_time.main, *flags) == 0
    blocks = capsys.readouterr().out.split('\n\n')
    assert blocks[1].startswith('32 x 256 x 7 x 7, kernel 3\n')
    left_out = [block.partition(': ') for block in blocks[2:4]]
    assert [title for title, *_ in left_out] == ['32 x 256 x 8 x 8, kernel 3', '32 x 256 x 9 x 9, kernel 3']
    assert {text for *_, text in left_out} == {'left out: it would take about 51 s, more than the budget allows'}
    assert 'for what was left out: --budget 140 (seconds), or the maps alone by --sizes' in blocks[4]


def test_interruption_reports_what_was_measured(run_command, capsys, tmp_path, stand_ins):
    stand_ins({('resnet26', 'time'): interrupted_at_second_call()})
    flags = ['--model', 'resnet18', 'resnet26', '-b', '1', '2', '--json', tmp_path / 'x.json']
    assert run_command(inference_time.main, *flags) == 130
    captured = capsys.readouterr()
    assert captured.err.splitlines() == ['[1/2] 2 rows: batch 1', 'interrupted']
    assert [line.split()[:3] for line in captured.out.splitlines()[-2:]] == [
        ['resnet18', '3x8x8', '100.000'],
        ['resnet26', '3x8x8', '100.000'],
    ]
    stored = json.loads((tmp_path / 'x.json').read_text())
    assert stored['complete'] is False
    assert [row['passes'] for row in stored['tables'][0]['rows']] == [2, 1]


def test_failed_row_is_reported_after_the_others(run_command, capsys, stand_ins):
    stand_ins({('resnet18', 'prepare'): WorkerFailure('KeyError: nothing there', 'Traceback of it')})
    assert run_command(inference_time.main, '--model', 'resnet18', 'resnet26') == 1
    captured = capsys.readouterr()
    assert '  resnet18: KeyError: nothing there' in captured.out
    assert '100.000' in captured.out
    assert captured.err.splitlines() == ['2 rows: batch 32', 'resnet18: Traceback of it']


def test_threads_of_the_caller_stay(run_command, stand_ins, monkeypatch):
    stand_ins()
    threads = torch.get_num_threads()
    monkeypatch.setattr(inference_time, 'usable_cores', lambda: threads + 1)
    assert run_command(inference_time.main, '--model', 'resnet18', '--num-threads', threads + 1) == 0
    assert torch.get_num_threads() == threads
