"""What is going on, on stderr: one line that changes on a terminal, else a line now and then."""

import contextlib
import os
import sys
import time

_SECONDS = 10  # between lines that stay
_USUAL_WIDTH = 80


class Progress:
    """Writes to stderr, so that stdout holds nothing but results.

    Args:
        tables: How many tables there will be.
    """

    def __init__(self, tables: int = 1) -> None:
        self._changes = sys.stderr.isatty() and os.environ.get('TERM') != 'dumb'
        self._tables = tables
        self._started = 0
        self._title = ''
        self._last = 0.0

    def start(self, title: str, rows: int) -> None:
        """A table starts: a line of its own where none can be replaced."""
        self._started += 1
        self._title = title
        if not self._changes:
            self._write(f'{rows} row' if rows == 1 else f'{rows} rows')

    def show(self, text: str) -> None:
        """Replaces the line on a terminal, as much of it as fits; elsewhere a line if the last one is old."""
        if self._changes:
            print(f'\r\x1b[2K{self._line(text)[: _width() - 1]}', end='', file=sys.stderr, flush=True)
        elif time.monotonic() - self._last >= _SECONDS:
            self._write(text)

    def clear(self) -> None:
        """Takes the changing line away, before results are printed."""
        if self._changes:
            print('\r\x1b[2K', end='', file=sys.stderr, flush=True)

    def _write(self, text: str) -> None:
        print(self._line(text), file=sys.stderr, flush=True)
        self._last = time.monotonic()

    def _line(self, text: str) -> str:
        """What changes comes first, so that a narrow terminal shows it."""
        number = f'[{self._started}/{self._tables}] ' if self._tables > 1 else ''
        return f'{number}{text}: {self._title}'


def _width() -> int:
    """Columns of the terminal that stderr is: stdout may be another, or a file."""
    with contextlib.suppress(OSError, ValueError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or _USUAL_WIDTH
    return _USUAL_WIDTH
