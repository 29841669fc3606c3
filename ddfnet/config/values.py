"""What a field's type says about its values, checked in one place for YAML, the command line and Python alike.

A field of a configuration is a bool, int, float, str, a Literal of strings, a tuple of one of these, any of them or
None, or a dict of keyword arguments. `Annotated[..., Bounds(...)]` limits its numbers.
"""

import ast
import dataclasses
import difflib
import math
import re
import types
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

ANY_LENGTH = -1
_SINGULAR: dict[type, str] = {
    bool: 'true or false',
    int: 'an integer',
    float: 'a number',
    str: 'text',
    dict: 'a mapping of names to values',
}
_PLURAL: dict[type, str] = {int: 'integers', float: 'numbers', str: 'texts'}
_METAVAR: dict[type, str] = {int: 'INT', float: 'FLOAT', str: 'TEXT', dict: '[KEY=VALUE ...]'}
_SYNONYMS = {'learning-rate': 'lr'}
_EXPONENT_NUMBER = re.compile(r'[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+')


class Tokens(tuple[str, ...]):
    """The words that followed a flag on the command line, not yet converted."""


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Limits of a number; an open limit is not itself allowed."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def hold(self, value: float) -> bool:
        """Whether the value is inside."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f'above {self.low}' if self.low_open else f'of at least {self.low}'
        if self.high == math.inf:
            return low
        return f'{low} and {"below" if self.high_open else "at most"} {self.high}'


Count = Annotated[int, Bounds(1)]
Whole = Annotated[int, Bounds(0)]
Positive = Annotated[float, Bounds(0, low_open=True)]
NonNegative = Annotated[float, Bounds(0)]
Probability = Annotated[float, Bounds(0, 1)]
BelowOne = Annotated[float, Bounds(0, 1, high_open=True)]
UpToOne = Annotated[float, Bounds(0, 1, low_open=True)]


@dataclasses.dataclass(frozen=True)
class FieldType:
    """A type annotation, taken apart. `length` is None for a single value, ANY_LENGTH or a number for a list."""

    item: type
    choices: tuple[str, ...] = ()
    bounds: Bounds | None = None
    optional: bool = False
    length: int | None = None

    def __str__(self) -> str:
        limits = f' {self.bounds}' if self.bounds else ''
        if self.choices:
            text = 'one of ' + ', '.join(choice or "''" for choice in self.choices)
        elif self.length is None:
            text = _SINGULAR[self.item] + limits
        else:
            count = '' if self.length == ANY_LENGTH else f'{self.length} '
            text = f'a list of {count}{_PLURAL[self.item]}{limits}'
        return text + (' or none' if self.optional else '')

    @property
    def metavar(self) -> str:
        """Placeholder of the value in the help."""
        if self.choices:
            return '{' + ','.join(choice or "''" for choice in self.choices) + '}'
        word = _METAVAR[self.item]
        if self.length == ANY_LENGTH:
            return f'{word} [{word} ...]'
        return ' '.join([word] * (self.length or 1))

    @property
    def nargs(self) -> int | Literal['*']:
        """Number of words that the flag takes."""
        return '*' if self.item is dict or self.length == ANY_LENGTH else self.length or 1


def field_type(hint: Any) -> FieldType | None:
    """Takes an annotation apart; None where no field of a configuration may have it."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in (bool, int, float, str):
        return FieldType(hint)
    if origin is dict:
        return FieldType(dict)
    if origin is Literal:
        return FieldType(str, choices=args)
    if origin is Annotated:
        inner = field_type(args[0])
        bounds = next((extra for extra in args[1:] if isinstance(extra, Bounds)), None)
        return dataclasses.replace(inner, bounds=bounds or inner.bounds) if inner else None
    if origin is tuple:
        inner = field_type(args[0])
        length = ANY_LENGTH if args[-1] is Ellipsis else len(args)
        return dataclasses.replace(inner, length=length) if inner else None
    if origin in (Union, types.UnionType):
        inner = field_type(next(arg for arg in args if arg is not types.NoneType))
        return dataclasses.replace(inner, optional=types.NoneType in args) if inner else None
    return None


def convert(value: Any, hint: Any) -> Any:
    """The value as the type says it: numbers from their text, tuples from lists, None from 'none' where allowed.

    Raises ValueError with what was expected and what came.
    """
    kind = field_type(hint)
    if kind is None:
        raise TypeError(f'a configuration has no fields of type {hint}')
    shown = ' '.join(value) if isinstance(value, Tokens) else value
    if isinstance(value, Tokens) and kind.item is dict:
        value = _key_values(value)
    elif isinstance(value, Tokens) and (kind.length is None or value in (('none',), ('None',))):
        value = value[0]
    if kind.optional and (value is None or value in ('none', 'None')):
        return None
    if kind.item is dict:
        return _keyword_arguments(value)
    if kind.length is None:
        return _single(value, kind, shown)
    if not isinstance(value, list | tuple) or not value or kind.length not in (ANY_LENGTH, len(value)):
        raise ValueError(f'expected {kind}, got {shown!r}')
    return tuple(_single(item, kind, shown) for item in value)


def interval(text: str) -> tuple[int, float]:
    """Optimiser steps ('300') or seconds (600 for '10m') between two events; (0, 0) is never.

    Raises ValueError for anything else.
    """
    if not re.fullmatch(r'\d+|\d+(\.\d+)?m', text):
        raise ValueError(f'expected a number of optimiser steps such as 300, or minutes such as 10m, got {text!r}')
    return (0, 60 * float(text[:-1])) if text.endswith('m') else (int(text), 0.0)


def flag(name: str) -> str:
    """The command line's spelling of a name."""
    return '--' + name.replace('_', '-')


def to_words(value: Any) -> list[str]:
    """The value as it would be written on the command line, for the help."""
    if isinstance(value, dict):
        return [f'{key}={item}' for key, item in value.items()] or ['none']
    if isinstance(value, tuple):
        return [str(item) for item in value]
    return ['none' if value is None else str(value)]


def did_you_mean(word: str, names: Iterable[str], prefix: str = '') -> str:
    """' (did you mean NAME?)' for the nearest of the names, '' where none is near. The prefix goes before NAME."""
    names = list(names)
    wanted = word.lstrip('-').replace('_', '-')
    spelled = {name.replace('_', '-'): name for name in names}
    longer = sorted((name for name in spelled if len(wanted) > 1 and name.startswith(wanted)), key=len)
    near = longer or difflib.get_close_matches(wanted, spelled, n=1)
    nearest = _SYNONYMS.get(wanted) or next((spelled[name] for name in near), None)
    return f' (did you mean {prefix}{nearest}?)' if nearest in names else ''


def _single(value: Any, kind: FieldType, shown: Any) -> Any:
    problem = f'expected {kind}, got {shown!r}'
    if kind.item is str:
        if not isinstance(value, str):
            raise ValueError(f'{problem}: write text in quotes' if value is not None else problem)
        if kind.choices and value not in kind.choices:
            raise ValueError(problem + did_you_mean(value, filter(None, kind.choices)))
        return value
    accepted: tuple[type, ...] = {int: (int, str), float: (int, float, str)}.get(kind.item, (bool,))
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind.item is not bool):
        raise ValueError(problem)
    try:
        number = kind.item(value)
    except (ValueError, OverflowError):
        raise ValueError(problem) from None
    if not math.isfinite(number) or (kind.bounds and not kind.bounds.hold(number)):
        raise ValueError(problem)
    return number


def _key_values(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words with the meaning of timm's ParseKwargs: a Python literal where it is one, else text."""
    pairs: dict[str, Any] = {}
    for word in filter(None, words):
        key, equals, text = word.partition('=')
        if not equals:
            raise ValueError(f'expected key=value words, got {word!r} (a folder goes before such a flag)')
        try:
            pairs[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError):
            pairs[key] = text
    return pairs


def _keyword_arguments(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f'expected {_SINGULAR[dict]}, got {value!r}')
    for key in value:
        if not isinstance(key, str) or not key.isidentifier():
            raise ValueError(f'expected names of keyword arguments, got {key!r}')
    return {key: _plain(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    """Only what YAML keeps: tuples become lists, and text such as 1e-3, a number but for PyYAML, becomes one."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, str) and _EXPONENT_NUMBER.fullmatch(value):
        return float(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f'expected text, numbers, lists or mappings, got {value!r}')
