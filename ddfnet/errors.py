"""The one way in which a user's mistake leaves a command: a line on stderr and exit status 2."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake the user can mend. The message says what was expected, what came, and how to mend it."""


def command(run: Callable[[list[str]], None]) -> Callable[[], int]:
    """Turns `run(argv)` into an entry point that returns an exit status: 0 done, 2 user's mistake, 130 interrupted.

    Any other exception is a failure of ours and keeps its traceback (exit status 1).
    """

    @functools.wraps(run)
    def entry_point() -> int:
        try:
            run(sys.argv[1:])
        except UserError as error:
            print(f'error: {_message(error)}', file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print('interrupted', file=sys.stderr)
            return 130
        return 0

    return entry_point


def _message(error: UserError) -> str:
    """The message alone: a DataLoader's worker wraps it in the text of its traceback."""
    text = str(error)
    return text.rsplit('UserError: ', 1)[-1].strip() if text.startswith('Caught UserError in DataLoader') else text


def first_line(error: Exception) -> str:
    """An exception in one line: the first of its message, or its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
