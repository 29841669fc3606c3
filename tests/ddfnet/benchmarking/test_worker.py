"""The process of a row: memory that does not suffice, and how the parent learns what happened to it."""

import os
import signal
import sys

import pytest
import torch

from ddfnet.benchmarking import processes
from ddfnet.benchmarking import worker as worker_module
from ddfnet.benchmarking.processes import WorkerFailure, WorkerProcess
from ddfnet.benchmarking.subjects import Job
from ddfnet.benchmarking.worker import Worker
from ddfnet.config import BenchmarkConfig, InferenceConfig
from ddfnet.errors import UserError
from ddfnet.memory import OutOfMemory

CPU = torch.device('cpu')
CONFIG = InferenceConfig(benchmark=BenchmarkConfig(min_time=0.001, num_threads=torch.get_num_threads()))
MAP = Job('conv', 8, (8, 4, 6, 5))


@pytest.fixture
def worker():
    built = Worker(CONFIG, CPU)
    built.build(MAP)
    return built


@pytest.fixture
def process():
    started = WorkerProcess(CONFIG, CPU)
    yield started
    started.close()


def test_a_pass_is_measured(worker):
    prepared = worker.prepare(MAP, 8, may_halve=False)
    assert (prepared.batch_size, prepared.error, prepared.graph) == (8, None, False)
    assert prepared.seconds > 0
    assert worker.time(0.001)


def test_what_was_dropped_is_built_again(worker):
    worker.drop()
    assert worker.prepare(MAP, 8, may_halve=False).batch_size == 8


def test_batch_is_halved_until_it_fits(worker, monkeypatch):
    needed = worker._needed_memory(2)
    monkeypatch.setattr(worker_module, 'free_memory', lambda device: needed)
    if needed is None:
        pytest.skip('memory cannot be measured here')
    monkeypatch.setattr(worker, '_needed_memory', lambda batch_size: needed * batch_size // 2)
    assert worker.prepare(MAP, 8, may_halve=True).batch_size == 2
    with pytest.raises(OutOfMemory, match=r'does not fit into memory: about .* GB needed, .* GB free'):
        worker.prepare(MAP, 8, may_halve=False)


def test_a_refusing_allocator_halves_the_batch_too(worker, monkeypatch):
    work = worker._subject.work

    def refuse(batch_size, compiled):
        if batch_size > 1:
            torch.empty(2**60, dtype=torch.uint8)
        return work(batch_size, compiled)

    monkeypatch.setattr(worker._subject, 'work', refuse)
    assert worker.prepare(MAP, 8, may_halve=True).batch_size == 1


def test_not_even_one_image(worker, monkeypatch):
    monkeypatch.setattr(worker, '_needed_memory', lambda batch_size: 2**60)
    with pytest.raises(OutOfMemory):
        worker.prepare(MAP, 8, may_halve=True)


def test_weights_are_not_scaled_with_the_batch():
    worker = Worker(CONFIG, CPU)
    built = worker.build(Job('test_resnet', 64))
    if built.needed is None:
        pytest.skip('memory cannot be measured here')
    trial, peak = worker._trial
    assert built.needed - built.params * 4 == pytest.approx((peak - built.params * 4) * 64 / trial, abs=1)


@pytest.mark.parametrize(
    ('change', 'captured'),
    [({}, True), ({'cuda_graphs': False}, False), ({'train': True}, False)],
)
def test_graphs_are_for_forward_passes_on_cuda(worker, monkeypatch, change, captured):
    monkeypatch.setattr(worker_module, 'capture', lambda run: ('graph of', run))
    monkeypatch.setattr(worker, '_config', BenchmarkConfig(**change))
    assert worker._captured('pass') == ('pass', '')
    monkeypatch.setattr(worker, '_device', torch.device('cuda'))
    assert worker._captured('pass') == (('graph of', 'pass') if captured else 'pass', '')


def test_a_pass_that_cannot_be_captured_runs_as_it_is(worker, monkeypatch):
    def fail(run):
        raise RuntimeError('operation not permitted when stream is capturing\nmore')

    monkeypatch.setattr(worker_module, 'capture', fail)
    monkeypatch.setattr(worker, '_device', torch.device('cuda'))
    note = 'timed without a CUDA graph: operation not permitted when stream is capturing'
    assert worker._captured('pass') == ('pass', note)


def test_process_says_what_it_runs_on(process):
    environment = process.call('environment')
    assert environment['torch'] == torch.__version__
    assert environment['threads']['intra_op'] == torch.get_num_threads()
    if sys.platform.startswith('linux'):
        assert environment['allocator']['MALLOC_TRIM_THRESHOLD_'] == str(2**40)
    assert 'MALLOC_TRIM_THRESHOLD_' not in os.environ


def test_process_survives_what_it_cannot_do(process):
    with pytest.raises(WorkerFailure, match='AssertionError') as failure:
        process.call('time', 1.0)
    assert 'Traceback' in failure.value.details
    with pytest.raises(UserError, match="unknown model 'resnet5'"):
        process.call('build', Job('resnet5', 4))
    assert process.is_alive
    assert process.call('build', MAP).params == 4 * 4 * 9


@pytest.mark.skipif(not hasattr(signal, 'SIGKILL'), reason='no signals to kill with')
@pytest.mark.parametrize(
    ('number', 'kills', 'error', 'message'),
    [
        ('SIGKILL', [3, 4], OutOfMemory, r'the system killed the process \(signal 9\), out of memory'),
        ('SIGKILL', [3, 3], WorkerFailure, r'killed \(signal 9\), and not by the system for its memory'),
        ('SIGKILL', [None, None], OutOfMemory, r'killed \(signal 9\), probably out of memory'),
        ('SIGABRT', [3, 4], WorkerFailure, r'the process died \(SIGABRT\)'),
    ],
)
def test_death_of_a_process(process, monkeypatch, number, kills, error, message):
    counts = iter(kills)
    monkeypatch.setattr(processes, 'memory_kills', lambda: next(counts))
    process.call('environment')
    os.kill(process._process.pid, getattr(signal, number))
    with pytest.raises(error, match=message):
        process.call('environment')
    assert not process.is_alive


def test_ctrl_c_leaves_workers_alone(process):
    process.call('environment')
    os.kill(process._process.pid, signal.SIGINT)
    assert process.call('environment')
