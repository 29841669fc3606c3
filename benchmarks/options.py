"""The command line that the benchmarks share."""

import argparse
import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

from benchmarks.requirements import Row
from ddfnet.benchmarking.report import check_targets
from ddfnet.config.values import did_you_mean
from ddfnet.errors import UserError


class Parser(argparse.ArgumentParser):
    """Mistakes become a UserError, so that they leave the command as everywhere else."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def make_parser(description: str | None, rows: Sequence[Row], seconds: float, rounds: int, visits: int = 1) -> Parser:
    """With the flags that every benchmark takes; `seconds`, `rounds` and `visits` are defaults."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    names = ' '.join(row.key for row in rows)
    parser.add_argument('--rows', nargs='+', default=None, metavar='ROW', help=f'rows to measure, of: {names}')
    parser.add_argument('--quick', action='store_true', help='the first case of each row, in at most 3 rounds')
    parser.add_argument('--num-threads', type=count, default=2, metavar='N', help='threads of torch (default: 2)')
    parser.add_argument(
        '--seconds',
        type=positive,
        default=seconds,
        metavar='S',
        help=f'time for each subject in one visit to a case (default: {seconds:g})',
    )
    parser.add_argument(
        '--rounds', type=count, default=rounds, metavar='N', help=f'turns it is divided into (default: {rounds})'
    )
    parser.add_argument(
        '--visits',
        type=count,
        default=visits,
        metavar='N',
        help=f'times that all cases are measured, one after the other (default: {visits})',
    )
    parser.add_argument('--markdown', action='store_true', help='print the tables for a README instead of text')
    parser.add_argument('--json', default='', metavar='FILE', help='file for everything measured')
    return parser


def parse(parser: Parser, argv: list[str], rows: Sequence[Row]) -> Any:
    """The options, with the rows to measure in the place of their names. Raises UserError."""
    options = parser.parse_args(argv)
    by_key = {row.key: row for row in rows}
    for name in options.rows or ():
        if name not in by_key:
            hint = did_you_mean(name, by_key) or f': expected some of {" ".join(by_key)}'
            raise UserError(f'--rows: unknown row {name!r}{hint}')
    options.rows = [by_key[name] for name in options.rows or by_key]
    if options.quick:
        options.rows = [dataclasses.replace(row, cases=row.cases[:1]) for row in options.rows]
        options.rounds = min(options.rounds, 3)
        options.visits = 1
    check_targets({'--json': options.json}, {})
    return options


def count(text: str) -> int:
    """An integer of at least 1, for argparse."""
    with contextlib.suppress(ValueError):
        if (number := int(text)) >= 1:
            return number
    raise argparse.ArgumentTypeError(f'expected an integer of at least 1, got {text!r}')


def positive(text: str) -> float:
    """A finite number above 0, for argparse."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < float('inf'):
            return number
    raise argparse.ArgumentTypeError(f'expected a number of seconds above 0, got {text!r}')
