"""Configurations from their sources: defaults, then the YAML file, then the command line."""

import dataclasses

from ddfnet.config.checks import check
from ddfnet.config.command_line import InferenceCommand, TrainCommand, ValidateCommand, apply_command_line, config_file
from ddfnet.config.schema import InferenceConfig, TrainConfig, ValidateConfig
from ddfnet.config.yaml_file import apply_yaml

_TRAIN = 'Train a DDF network, or any other timm model, on images.'
_VALIDATE = 'Measure the accuracy of a trained network.'
_INFERENCE = 'Time the DDF operation against convolutions, or models against each other.'


def load_train_config(argv: list[str]) -> TrainConfig:
    """The configuration that train.py's arguments ask for, checked.

    Raises UserError for what the user can mend. Exits with 0 after --help, with 2 where a flag lacks its value.
    """
    config = TrainConfig()
    path = config_file(argv, 'train.py')
    if path is not None:
        config = apply_yaml(path, config)
    config = apply_command_line(argv, config, TrainCommand, 'train.py', _TRAIN)
    config = dataclasses.replace(config, precision=config.precision.without_old_spellings())
    check(config)
    return config


def load_validate_config(argv: list[str]) -> ValidateConfig:
    """The configuration that validate.py's arguments ask for, checked; raises and exits as load_train_config does."""
    config = apply_command_line(argv, ValidateConfig(), ValidateCommand, 'validate.py', _VALIDATE)
    check(config)
    return config


def load_inference_config(argv: list[str]) -> InferenceConfig:
    """The configuration that inference_time.py's arguments ask for, checked; raises and exits as load_train_config."""
    config = apply_command_line(argv, InferenceConfig(), InferenceCommand, 'inference_time.py', _INFERENCE)
    check(config)
    return config
