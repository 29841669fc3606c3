"""The command line, by tyro: it splits the words, knows the short forms and prints the help.

What the words mean is converted afterwards by the types of the fields, as for YAML, so that both give the same errors.
"""

import dataclasses
from typing import Annotated, Any, cast

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from ddfnet.config.inference import bare_flags
from ddfnet.config.schema import (
    Config,
    Entry,
    InferenceConfig,
    TrainConfig,
    ValidateConfig,
    entries,
    replace_values,
    values_of,
)
from ddfnet.config.values import Tokens, convert, did_you_mean, field_type, flag, to_words
from ddfnet.errors import UserError

_DataDir = Annotated[str | None, Positional, arg(metavar='[DATA_DIR]')]
_ConfigFile = Annotated[str | None, arg(aliases=['-c'], metavar='FILE')]
_REGISTRY = ConstructorRegistry()
_TRUTHS = ('True', 'False', 'true', 'false')


@dataclasses.dataclass(frozen=True)
class _ConfigFileOnly:
    config: _ConfigFile = None


@dataclasses.dataclass(frozen=True)
class TrainCommand(TrainConfig):
    """What train.py's command line has beside the configuration."""

    positional_data_dir: _DataDir = None
    """Folder of the images, with a subfolder per split."""
    config: _ConfigFile = None
    """YAML file of flags; the command line overrides it."""
    local_rank: int | None = None
    """Ignored: launchers of torch pass it."""


@dataclasses.dataclass(frozen=True)
class ValidateCommand(ValidateConfig):
    """What validate.py's command line has beside the configuration."""

    positional_data_dir: _DataDir = None
    """Folder of the images, with a subfolder per split."""


@dataclasses.dataclass(frozen=True)
class InferenceCommand(InferenceConfig):
    """What inference_time.py's command line has: the configuration alone."""


_Command = TrainCommand | ValidateCommand | InferenceCommand


@_REGISTRY.primitive_rule
def _keep_words(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Has tyro hand over a field's words as they are; booleans stay tyro's --flag/--no-flag pairs."""
    kind = field_type(info.type) if info.type is not bool else None
    if kind is None:
        return None
    return PrimitiveConstructorSpec(
        nargs=kind.nargs,
        metavar=kind.metavar,
        instance_from_str=Tokens,
        is_instance=lambda value: True,
        str_from_instance=to_words,
    )


def config_file(argv: list[str], prog: str) -> str | None:
    """The file after -c or --config, None where there is none."""
    parsed, _ = tyro.cli(
        _ConfigFileOnly, prog=prog, args=argv, add_help=False, return_unknown_args=True, registry=_REGISTRY
    )
    return convert(parsed.config, str | None)


def apply_command_line(argv: list[str], config: Config, command: type[_Command], prog: str, description: str) -> Config:
    """The configuration with the command line's values in place of its own.

    Prints and exits with 0 for --help; exits with 2, as tyro does, where a flag lacks its value. Raises UserError for
    unknown flags, for values of the wrong kind and for two different data folders.
    """
    shown = _without_double_negatives(config)
    sections: dict[str, Any] = {field.name: getattr(shown, field.name) for field in dataclasses.fields(shown)}
    parsed, unknown = tyro.cli(
        command,
        prog=prog,
        description=description,
        args=bare_flags(argv),
        default=command(**sections),
        config=(OmitArgPrefixes,),
        return_unknown_args=True,
        registry=_REGISTRY,
    )
    names: dict[str, Entry] = entries(type(config))
    positional = cast('Tokens | None', getattr(parsed, 'positional_data_dir', None))
    if positional and positional[0] in _TRUTHS:
        raise UserError(_unexpected(positional[0], takes_folder=True))
    if unknown:
        raise UserError(_unknown(unknown, command))
    values = values_of(_without_double_negatives(cast('Any', parsed)))
    words = {name: value for name, value in values.items() if isinstance(value, Tokens | bool)}
    if positional:
        if words.get('data_dir', positional) != positional:
            raise UserError(f'expected one folder of images, got {positional[0]!r} and --data-dir: keep one')
        words['data_dir'] = positional
    return replace_values(config, {name: _convert(name, value, names[name].hint) for name, value in words.items()})


def _without_double_negatives(config: Config) -> Config:
    """The configuration with its `no_...` switches turned over, and back again.

    They have names without `no_` on the command line (`arg(name=...)`), so that tyro's pair is --aug/--no-aug.
    """
    values, names = values_of(config), entries(type(config))
    negative = [name for name, entry in names.items() if name.startswith('no_') and _is_switch(entry)]
    return replace_values(config, {name: not values[name] for name in negative})


def _is_switch(entry: Entry) -> bool:
    kind = field_type(entry.hint)
    return kind is not None and kind.item is bool


def _convert(name: str, words: Any, hint: Any) -> Any:
    try:
        return convert(words, hint)
    except ValueError as error:
        raise UserError(f'{flag(name)}: {error}') from None


def _unknown(words: list[str], command: type[_Command]) -> str:
    """What to say about words that tyro could not place."""
    unknown = [word.partition('=')[0] for word in words if word.startswith('-') and not word[1:2].isdigit()]
    if not unknown:
        return _unexpected(words[0], takes_folder=command is not InferenceCommand)
    names = entries(command)
    switches = [
        name.removeprefix('no_') if name.startswith('no_') else f'no_{name}'
        for name, entry in names.items()
        if _is_switch(entry)
    ]
    own = ['config', 'local_rank'] if command is TrainCommand else []
    flags = [flag(name)[2:] for name in (*names, *switches, *own)]
    return 'unknown flag ' + ', '.join(word + did_you_mean(word, flags, '--') for word in unknown) + '; see --help'


def _unexpected(word: str, takes_folder: bool) -> str:
    if word in _TRUTHS:
        return f'unexpected {word!r}: a switch takes no value; it is turned on by --name and off by --no-name'
    return f'unexpected {word!r}: expected a flag' + (', or one folder as DATA_DIR' if takes_folder else '')
