"""How a command ends."""

import contextlib
import importlib
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest

from ddfnet.errors import UserError, command

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def ctrl_c_raises():
    """Also where the tests run in the background: shells have such jobs ignore it."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ('number', 'status', 'message'), [('SIGINT', 130, 'interrupted\n'), ('SIGTERM', 143, 'terminated\n')]
)
@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals')
def test_signals_end_a_command_after_its_work_is_saved(capsys, number, status, message):
    saved = []

    @command
    def main(argv: list[str]) -> None:
        try:
            os.kill(os.getpid(), getattr(signal, number))
            time.sleep(60)
        except KeyboardInterrupt:
            saved.append('work')
            raise

    before = signal.getsignal(signal.SIGTERM)
    assert main() == status
    assert saved == ['work']
    assert capsys.readouterr().err == message
    assert signal.getsignal(signal.SIGTERM) == before


def test_mistake_is_a_line_and_status_2(capsys):
    @command
    def main(argv: list[str]) -> None:
        raise UserError('expected a cat, got a dog')

    assert main() == 2
    assert capsys.readouterr().err == 'error: expected a cat, got a dog\n'


@pytest.mark.parametrize(
    ('script', 'module'),
    [
        ('train.py', 'ddfnet.training.command'),
        ('validate.py', 'ddfnet.validation'),
        ('inference_time.py', 'ddfnet.inference_time'),
    ],
)
@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals')
def test_ctrl_c_while_a_script_imports(monkeypatch, script, module):
    """It counts although imports swallow exceptions now and then, as this finder does."""
    statuses = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == module:
                with contextlib.suppress(KeyboardInterrupt):
                    os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, 'meta_path', [Finder, *sys.meta_path])
    parent, _, name = module.rpartition('.')
    # the script imports it anew; afterwards the package holds the one that other tests know
    monkeypatch.setattr(importlib.import_module(parent), name, importlib.import_module(module))
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(os, '_exit', statuses.append)
    monkeypatch.setattr(sys, 'argv', [script, '--help'])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / script), run_name='__main__')
    assert statuses == [130]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
