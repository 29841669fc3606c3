"""What is said meanwhile: a line that changes on a terminal, lines now and then elsewhere."""

import os
import select

import pytest

from ddfnet.benchmarking import progress as progress_module
from ddfnet.benchmarking.progress import Progress

pty = pytest.importorskip('pty', reason='no terminals here')


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal of so many columns; returns what gives everything written there."""
    opened = []

    def make(columns: int):
        termios = pytest.importorskip('termios')
        main, other = pty.openpty()
        termios.tcsetwinsize(other, (24, columns)) if hasattr(termios, 'tcsetwinsize') else None
        file = open(other, 'w')  # noqa: SIM115
        opened.extend([main, file])
        monkeypatch.setattr('sys.stderr', file)
        monkeypatch.setenv('TERM', 'xterm')
        return lambda: written_to(main)

    yield make
    for each in opened:
        os.close(each) if isinstance(each, int) else each.close()


def written_to(terminal: int) -> str:
    """All of it: the system may hand it on piece by piece."""
    pieces = []
    while select.select([terminal], [], [], 0.3)[0]:
        pieces.append(os.read(terminal, 10_000))
    return b''.join(pieces).decode()


def test_one_line_that_changes_on_a_terminal(terminal):
    written = terminal(100)
    progress = Progress(tables=2)
    progress.start('batch 8', rows=3)
    progress.show('building a (1 of 3)')
    progress.show('building b (2 of 3)')
    progress.clear()
    lines = ['[1/2] building a (1 of 3): batch 8', '[1/2] building b (2 of 3): batch 8', '']
    assert written() == ''.join(f'\r\x1b[2K{line}' for line in lines)


def test_the_line_fits_and_begins_with_what_changes(terminal, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    monkeypatch.setattr(progress_module.os, 'get_terminal_size', lambda descriptor: os.terminal_size((20, 24)))
    written = terminal(20)
    progress = Progress(tables=7)
    progress.start('32 x 256 x 7 x 7, kernel 3', rows=3)
    progress.show('building convolution (1 of 3)')
    assert written() == '\r\x1b[2K[1/7] building conv'


def test_a_terminal_that_does_not_know_its_width(terminal, monkeypatch):
    monkeypatch.setattr(progress_module.os, 'get_terminal_size', lambda descriptor: os.terminal_size((0, 0)))
    written = terminal(0)
    Progress().show('x' * 200)
    assert written() == '\r\x1b[2K' + 'x' * 79


def test_a_terminal_without_control_codes_gets_lines(terminal, monkeypatch):
    written = terminal(80)
    monkeypatch.setenv('TERM', 'dumb')
    Progress().start('batch 8', rows=1)
    assert written() == '1 row: batch 8\r\n'


def test_lines_now_and_then_in_a_log(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress_module.time, 'monotonic', lambda: now[0])
    progress = Progress(tables=2)
    for title in ('batch 1', 'batch 2'):
        progress.start(title, rows=2)
        for second in range(25):
            now[0] += 1
            progress.show(f'after {second + 1} s')
    progress.clear()
    assert capsys.readouterr().err.splitlines() == [
        f'[{number}/2] {text}: batch {number}' for number in (1, 2) for text in ('2 rows', 'after 10 s', 'after 20 s')
    ]
