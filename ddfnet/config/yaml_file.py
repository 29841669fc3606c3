"""Reading a YAML file of flags, strictly: one flat mapping, no key twice."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from ddfnet.config.schema import Config, entries, replace_values
from ddfnet.config.values import convert, did_you_mean
from ddfnet.errors import UserError

_ONLY_ON_COMMAND_LINE = ('config', 'local_rank')
_OCTAL_OR_SEXAGESIMAL = re.compile(r'[-+]?(0[0-7_]+|[0-9_]+(:[0-9_.]+)+)')


class _StrictLoader(yaml.SafeLoader):
    """A safe loader that takes a repeated key for the mistake it is, and 010 and 1:30 as the command line does.

    YAML 1.1 reads these as 8 and 90.
    """

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and implicit[0] and _OCTAL_OR_SEXAGESIMAL.fullmatch(value):
            return self.DEFAULT_SCALAR_TAG
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            name = key.replace('-', '_') if isinstance(key, str) else repr(key)
            line = key_node.start_mark.line + 1
            if name != '<<' and name in seen:
                problem = f'key {key!r} is already on line {seen[name]}: keep one of them'
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen[name] = line
        return super().construct_mapping(node, deep)


def apply_yaml(path: str, config: Config) -> Config:
    """The configuration with the file's values in place of its own.

    Raises UserError, naming the file and the key, where the file is missing or not a flat YAML mapping of flags
    (hyphens or underscores), or where a key is unknown or repeated or its value of the wrong kind.
    """
    names = entries(type(config))
    values: dict[str, Any] = {}
    for key, value in _read_mapping(path).items():
        name = key.replace('-', '_') if isinstance(key, str) else None
        if name in _ONLY_ON_COMMAND_LINE:
            raise UserError(f'{path}: {key}: this can only be given on the command line')
        if name not in names:
            hint = did_you_mean(name, names) if name else ''
            raise UserError(f'{path}: unknown key {key!r}{hint}; expected the name of a flag, as in --help')
        try:
            values[name] = convert(value, names[name].hint)
        except (ValueError, RecursionError) as error:
            raise UserError(f'{path}: {name}: {error}') from None
    return replace_values(config, values)


def _read_mapping(path: str) -> dict[Any, Any]:
    try:
        content = yaml.load(Path(path).read_text(encoding='utf-8'), Loader=_StrictLoader)
    except FileNotFoundError:
        raise UserError(f'{path}: expected a YAML file, but there is no such file') from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{path}: expected a YAML file, but it cannot be read: {error}') from None
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path}: expected YAML, but a value in it cannot be read: {error}') from None
    except yaml.YAMLError as error:
        raise UserError(f'{path}: expected YAML, but {_one_line(error)}') from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f'{path}: expected a mapping of flags to values (key: value lines), got {content!r:.60}')
    return content


def _one_line(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ' '.join(str(error).split())
    mark = error.problem_mark
    return f'line {mark.line + 1}, column {mark.column + 1}: {error.problem}'
