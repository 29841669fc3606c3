"""The ways in which a command ends early: a user's mistake, with a line on stderr and status 2, and signals."""

import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class UserError(Exception):
    """A mistake the user can mend. The message says what was expected, what came, and how to mend it."""


class Terminated(KeyboardInterrupt):
    """A signal came, SIGTERM unless said otherwise: whatever saves its work on Ctrl-C does so for it too."""

    def __init__(self, number: int = signal.SIGTERM) -> None:
        super().__init__()
        self.number = number


def command(run: Callable[[list[str]], None]) -> Callable[[], int]:
    """Turns `run(argv)` into an entry point that returns an exit status: 0 done, 2 user's mistake, 128 + the
    number of the signal that stopped it (130 Ctrl-C, 143 SIGTERM).

    Any other exception is a failure of ours and keeps its traceback (exit status 1).
    """

    @functools.wraps(run)
    def entry_point() -> int:
        try:
            with _sigterm_raises():
                run(sys.argv[1:])
        except UserError as error:
            print(f'error: {_message(error)}', file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Terminated) else signal.SIGINT
            print('interrupted' if number == signal.SIGINT else 'terminated', file=sys.stderr)
            return 128 + number
        return 0

    return entry_point


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises Terminated meanwhile, where nobody else handles it."""
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(*_: object) -> NoReturn:
    raise Terminated


def _message(error: UserError) -> str:
    """The message alone: a DataLoader's worker wraps it in the text of its traceback."""
    text, name = str(error), type(error).__name__
    return text.rsplit(f'{name}: ', 1)[-1].strip() if text.startswith(f'Caught {name} in DataLoader') else text


def first_line(error: Exception) -> str:
    """An exception in one line: the first of its message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
