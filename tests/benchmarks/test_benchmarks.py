"""benchmarks/: what they count, what they refuse, and what they print. No test asserts a time."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from benchmarks import interleaved, model, network, op, roofline, tables
from benchmarks.operation import Subjects
from benchmarks.requirements import MODEL_ROWS, OPERATION_ROWS, Measurement, Row, Setting, verdict
from ddf import DDFPack, derivatives, fused, fused_training, operators
from ddf.check import Case
from ddfnet.benchmarking.environment import ALLOCATOR, environment

from .conftest import QUICK, a_row

ROOT = Path(__file__).parents[2]
CASE = Case((2, 8, 6, 7), 3)
SMALL_NET = [*QUICK, '--num-threads', '1', '--model', 'ddf_mul_resnet26', '--img-size', '32']


def test_operation(run, capsys):
    strided = Case((1, 4, 7, 9), 5, stride=2, kernel_combine='add', channels_last=True)
    names = ('forward', 'backward', 'memory', 'bfloat16', 'threads_compared')
    rows = [a_row(name, CASE, strided) for name in names] + [a_row('saved', CASE, strided, required=None, aim=None)]
    status, stored = run(op, rows, *QUICK)
    assert status == 0
    assert stored['complete'] is True
    assert [row['key'] for row in stored['rows']] == [*names, 'saved']
    assert [row['verdict'] for row in stored['rows']] == ['aim met'] * 5 + ['met']
    for row in stored['rows']:
        assert [case['label'] for case in row['cases']] == ['2x8x6x7, mul', '1x4x7x9, add, stride 2, channels_last']
        assert all(case['value'] >= 0 for case in row['cases'])
        if row['key'] in ('forward', 'backward', 'bfloat16', 'threads_compared'):
            assert all(len(case['times']) == 2 and case['spread'] for case in row['cases'])
    assert set(stored['rows'][0]['cases'][0]['roofline']) == {'bandwidth', 'peak'}
    channel, spatial = 2 * 8 * 9, 2 * 9 * 6 * 7
    assert stored['rows'][-1]['cases'][0]['value'] == pytest.approx(1 + (channel + spatial) / (2 * 8 * 6 * 7))
    output = capsys.readouterr().out
    assert 'the row forward: required 1000000000.00, aim 1000000000.00\n  2x8x6x7, mul' in output
    assert output.splitlines()[-6].split()[-2:] == ['aim', 'met']


@pytest.mark.parametrize(
    ('module', 'name', 'message'),
    [
        (operators, 'forward', 'output by'),
        (derivatives, 'input_gradient', 'gradient of input by'),
        (derivatives, 'filter_gradients', 'gradient of channel_filter by'),
    ],
    ids=['forward', 'input_gradient', 'filter_gradients'],
)
def test_wrong_kernel_gets_no_ratio(run, capsys, monkeypatch, module, name, message):
    kernel = getattr(module, name)

    def wrong(*arguments):
        results = kernel(*arguments)
        return results * 1.001 if isinstance(results, torch.Tensor) else tuple(result * 1.001 for result in results)

    monkeypatch.setattr(module, name, wrong)
    names = ['forward', 'backward', 'memory', 'bfloat16', 'threads_compared', 'saved']
    status, stored = run(op, [a_row(name, CASE) for name in names], *QUICK)
    assert status == 1
    for row in stored['rows']:
        assert row['verdict'] == 'REFUSED: results differ'
        assert row['cases'][0]['refused']
        assert row['cases'][0]['value'] is None
        assert row['cases'][0]['times'] == {}
        assert message in row['cases'][0]['fault']
    assert 'no ratio, differs from the definition: ' in capsys.readouterr().out


def test_copy_of_the_map_saved_for_backward_is_noticed(run, monkeypatch):
    kernel = operators.forward
    monkeypatch.setattr(operators, 'forward', lambda input, *others: kernel(input * 1, *others))
    status, stored = run(op, [a_row('saved', CASE, required=None, aim=None)], *QUICK)
    assert status == 0
    assert stored['rows'][0]['verdict'] == 'MISSED'
    assert stored['rows'][0]['cases'][0]['fault'] == 'saves 1.00 sizes of x besides input and filters'


def test_depthwise_subject_is_of_the_same_map():
    for case in (CASE, Case((1, 4, 9, 8), 5, dilation=2, channels_last=True), Case((1, 4, 9, 8), 7, stride=2)):
        subjects = Subjects(case)
        for ours, depthwise in zip(subjects.backward()[:2], subjects.depthwise_backward()[:2]):
            assert ours.shape == depthwise.shape
            assert ours.stride() == depthwise.stride()


def test_bytes_and_flops():
    case = Case((2, 6, 5, 8), 3, stride=2, head=2)  # 3 x 4 pixels come out
    elements = 2 * (6 * 5 * 8 + 6 * 9 + 2 * 9 * 3 * 4 + 6 * 3 * 4)
    assert roofline.moved_bytes(case) == 4 * elements
    assert roofline.moved_bytes(case, itemsize=2) == 2 * elements
    assert roofline.flops(case) == 4 * 9 * 2 * 6 * 3 * 4
    source = roofline.copy_pass(4096)()
    assert 2 * source.nbytes == 4096


@pytest.mark.parametrize(
    ('values', 'required', 'aim', 'expected'),
    [
        ([0.4, 0.5], 0.7, 0.5, 'aim met'),
        ([0.4, 0.51], 0.7, 0.5, 'met, not the aim'),
        ([0.4, 0.701], 0.7, 0.5, 'MISSED'),
        ([0.4, 0.7], 0.7, None, 'met'),
        ([0.4, None], 0.7, 0.5, 'aim met'),
        ([None], 0.7, 0.5, '-'),
        ([2.0], None, None, '-'),
    ],
)
def test_verdict_is_that_of_the_worst_case(values, required, aim, expected):
    row = a_row('forward', required=required, aim=aim)
    assert verdict(row, [Measurement('', value) for value in values]) == expected


def test_turns():
    order: list[str] = []
    passes = {name: (lambda name=name: order.append(name)) for name in ('a', 'b')}
    turns = interleaved.take_turns(passes, 1e-9, 2, lambda name: order.append(f'before {name}'))
    starts = [name for name in order if name.startswith('before')]
    assert starts == [f'before {name}' for name in 'ababba']
    assert [len(turns.rounds[name]) for name in 'ab'] == [2, 2]
    turns = interleaved.Turns({'a': [[1.0, 2.0, 3.0], [4.0]], 'b': [[4.0], [2.0, 2.0, 2.0]]})
    assert turns.ratio('a', 'b') == 2.5 / 2
    assert turns.spread('a', 'b') == (0.5, 2.0)


def test_visits_add_the_turns_of_a_case():
    visits = interleaved.Visits(1e-9, 2)
    passes = {'a': lambda: None, 'b': lambda: None}
    rounds = [len(visits.take_turns(case, passes).rounds['a']) for case in ('first', 'second', 'first')]
    assert rounds == [2, 2, 4]


def test_rows_share_no_turns(run, monkeypatch):
    """A case may stand in two rows, and cases that differ in their kernel size have the same label."""
    monkeypatch.setattr(
        interleaved, 'take_turns', lambda passes, *_: interleaved.Turns({name: [[1]] for name in passes})
    )
    rows = [
        Row(key, key, 'forward', None, None, (case,)) for key, case in zip('abc', (CASE, CASE, Case((2, 8, 6, 7), 5)))
    ]
    _, stored = run(op, rows, *QUICK, '--visits', '2')
    assert [[case['times']['ddf']['passes'] for case in row['cases']] for row in stored['rows']] == [[2], [2], [2]]


def test_every_case_is_visited_again_after_all_others(capsys):
    visited: list[str] = []

    def measure(_: Row, case: str) -> Measurement:
        visited.append(case)
        return Measurement(case, float(len(visited)))

    rows = [a_row('forward', 'a', 'b'), a_row('backward', 'c')]
    report = tables.Report(environment(interleaved.CPU), 'method')
    tables.fill(report, argparse.Namespace(rows=rows, visits=2, markdown=False, json=''), measure)
    assert visited == list('abcabc')
    assert [[one.value for one in measurements] for _, measurements in report.results] == [[4.0, 5.0], [6.0]]
    assert 'visit 2 of 2' in capsys.readouterr().out


def test_restart_keeps_the_users_own_settings(monkeypatch):
    called = []
    monkeypatch.setattr(sys, 'platform', 'linux')
    monkeypatch.setattr(os, 'execve', lambda *arguments: called.append(arguments))
    first, second = ALLOCATOR
    monkeypatch.setenv(first, '7')
    monkeypatch.delenv(second, raising=False)
    interleaved.restart_with_warm_allocator()
    ((program, command, variables),) = called
    assert (program, command[1:]) == (sys.executable, sys.orig_argv[1:])
    assert (variables[first], variables[second]) == ('7', ALLOCATOR[second])
    monkeypatch.setenv(second, '8')
    interleaved.restart_with_warm_allocator()
    assert len(called) == 1


@pytest.mark.parametrize(
    ('script', 'flags', 'message'),
    [
        (op, ['--rows', 'forwrd'], "--rows: unknown row 'forwrd' (did you mean forward?)"),
        (op, ['--num-threads', '0'], "--num-threads: expected an integer of at least 1, got '0'"),
        (op, ['--seconds', 'nan'], "--seconds: expected a number of seconds above 0, got 'nan'"),
        (op, ['--json', '/nonexistent/x.json'], '--json: cannot write /nonexistent/x.json'),
        (op, ['--fast'], 'unrecognized arguments: --fast'),
        (model, ['--model', 'resnet50'], "--model: invalid choice: 'resnet50'"),
        (model, ['--rows', 'compiled'], '--rows compiled needs --torchcompile'),
    ],
)
def test_mistakes(monkeypatch, capsys, script, flags, message):
    monkeypatch.setattr('sys.argv', ['command', *flags])
    assert script.main() == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count('\n') == 1
    assert captured.out == ''


def test_markdown(run, capsys):
    rows = [a_row('forward', CASE), a_row('memory', CASE, required=None)]
    status, _ = run(op, rows, *QUICK, '--markdown')
    assert status == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith('`python ')
    assert '--markdown' not in lines[0]
    assert any(torch.__version__ in line for line in lines)
    blocks = '\n'.join(lines).split('\n\n')
    grids = [block.splitlines() for block in blocks if block.startswith('|')]
    assert [len(grid) for grid in grids] == [4, 3, 3]
    for grid in grids:
        assert len({line.count('|') for line in grid}) == 1


def test_interruption_keeps_what_was_measured(run, capsys, monkeypatch):
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return Measurement('first', 0.5)

    monkeypatch.setattr(op.OperationBench, 'measure', interrupted)
    status, stored = run(op, [a_row('forward', CASE, CASE)], *QUICK)
    assert status == 130
    assert stored['complete'] is False
    assert [case['value'] for case in stored['rows'][0]['cases']] == [0.5]
    assert '0.500' in capsys.readouterr().out


def test_models(run, capsys):
    settings = Setting(2), Setting(1, channels_last=True), Setting(2, True, train=True)
    status, stored = run(model, [a_row('network', *settings)], *SMALL_NET)
    assert status == 0
    (row,) = stored['rows']
    assert row['verdict'] == 'aim met'
    assert [case['label'] for case in row['cases']] == list(map(str, settings))
    assert all(set(case['times']) == {'ddf_mul_resnet26', 'resnet26'} for case in row['cases'])
    assert all(re.fullmatch(r'without DDF modules \d\.\d{3}', case['note']) for case in row['cases'])
    assert 'ddf_mul_resnet26 against resnet26, 32 pixels' in capsys.readouterr().out


def test_network_without_its_filters_keeps_every_shape():
    net = timm.create_model('ddf_mul_resnet26', channels=(8, 8, 16, 16)).eval()
    images = torch.randn(2, 3, 64, 64)
    shapes = [stage.shape for stage in net.forward_intermediates(images, intermediates_only=True)]
    network.replace_filters(net)
    assert not any(isinstance(module, DDFPack) for module in net.modules())
    assert [stage.shape for stage in net.forward_intermediates(images, intermediates_only=True)] == shapes


@pytest.mark.parametrize(
    ('setting', 'module', 'name'),
    [(Setting(1), fused, 'dynamic_filter'), (Setting(2, train=True), fused_training, 'dynamic_filter_gradients')],
    ids=['logits', 'gradients'],
)
def test_wrong_kernel_gets_no_ratio_of_models(run, monkeypatch, setting, module, name):
    kernel = getattr(module, name)

    def slightly_wrong(*arguments):
        result = kernel(*arguments)
        return [one * 1.01 for one in result] if isinstance(result, tuple) else result * 1.01

    monkeypatch.setattr(module, name, slightly_wrong)
    status, stored = run(model, [a_row('network', setting)], *SMALL_NET)
    assert status == 1
    (case,) = stored['rows'][0]['cases']
    assert case['refused']
    assert case['value'] is None
    assert case['fault'].startswith('ddf_mul_resnet26: ')
    assert '; resnet26' not in case['fault']


def test_rows_are_those_of_the_requirements():
    """Names of methods and settings fit; a case is in a row once."""
    for row in OPERATION_ROWS:
        assert callable(getattr(op.OperationBench, row.measure))
        assert len(set(row.cases)) == len(row.cases) > 0
    layouts = {row.key: {case.channels_last for case in row.cases} for row in OPERATION_ROWS}
    assert all(layouts[row.key] == {row.key.endswith('-cl')} for row in OPERATION_ROWS if ' dw' in row.title)
    assert {case.compiled for row in MODEL_ROWS for case in row.cases if row.key == 'compiled'} == {True}
    assert all(row.aim < row.required for row in [*OPERATION_ROWS, *MODEL_ROWS] if row.aim)


def test_script_runs_from_anywhere(tmp_path):
    script = ROOT / 'benchmarks' / 'op.py'
    command = [sys.executable, script, '--rows', 'nothing']
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **ALLOCATOR}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: --rows: unknown row 'nothing'")


def test_summary_without_measurements():
    row = a_row('forward', required=0.7, aim=None)
    report = tables.Report(environment(interleaved.CPU), '', results=[(row, [])])
    assert tables.summary_text(report).splitlines()[1].split()[-5:] == ['0.700', '-', '-', '-', '-']
