"""What is going on, on stderr: one line that changes on a terminal; elsewhere a line per table."""

import shutil
import sys


class Progress:
    """Writes to stderr, so that stdout holds nothing but results."""

    def __init__(self) -> None:
        self._changes = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Replaces the line on a terminal."""
        if self._changes:
            width = shutil.get_terminal_size().columns - 1
            print(f'\r\x1b[2K{text[:width]}', end='', file=sys.stderr, flush=True)

    def stage(self, text: str) -> None:
        """A line where none can be replaced: the start of something longer."""
        if not self._changes:
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the changing line away, before results are printed."""
        if self._changes:
            print('\r\x1b[2K', end='', file=sys.stderr, flush=True)
