"""One line at the bottom of a terminal that is written anew, and that other messages do not run into."""

import logging
import shutil
import sys
import time

_SECONDS = 0.5  # between two writings


class StatusLine(logging.Filter):
    """The line. As a filter of a logger it makes way for that logger's messages. Without a terminal it does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.on_terminal = sys.stdout.isatty()
        self._shown = False
        self._last = 0.0

    def due(self) -> bool:
        """Whether the line is old enough to be written again."""
        return self.on_terminal and time.perf_counter() - self._last >= _SECONDS

    def show(self, text: str) -> None:
        """Writes `text` in place of the line, as many of its parts, with two blanks between, as fit."""
        if self.on_terminal:
            width = shutil.get_terminal_size().columns - 1
            whole = text if len(text) <= width else text[: width + 2].rpartition('  ')[0] or text
            sys.stdout.write(f'\r\x1b[K{whole[:width]}')
            sys.stdout.flush()
            self._shown, self._last = True, time.perf_counter()

    def clear(self) -> None:
        if self._shown:
            sys.stdout.write('\r\x1b[K')
            sys.stdout.flush()
            self._shown = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Clears the line and lets the message pass."""
        self.clear()
        return True
