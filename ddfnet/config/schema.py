"""The three configurations, and the flat view of them that YAML files and checkpoints hold.

A name is the same everywhere: attribute `config.schedule.warmup_epochs`, flag `--warmup-epochs`, key `warmup_epochs`.
To add a flag, add a field to one of the sections.
"""

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from ddfnet.config.augmentation import AugmentationConfig
from ddfnet.config.data import BatchConfig, DataConfig, ValidateDataConfig
from ddfnet.config.evaluation import EvaluationConfig
from ddfnet.config.inference import BenchmarkConfig
from ddfnet.config.model import ModelConfig, ValidateModelConfig
from ddfnet.config.optimization import LossConfig, OptimizerConfig, ScheduleConfig
from ddfnet.config.runtime import (
    BatchNormConfig,
    DistributionConfig,
    EmaConfig,
    PrecisionConfig,
    RunConfig,
    TrainPrecisionConfig,
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything train.py can be told."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    augmentation: AugmentationConfig = dataclasses.field(default_factory=AugmentationConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    precision: TrainPrecisionConfig = dataclasses.field(default_factory=TrainPrecisionConfig)
    batch_norm: BatchNormConfig = dataclasses.field(default_factory=BatchNormConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)


@dataclasses.dataclass(frozen=True)
class ValidateConfig:
    """Everything validate.py can be told."""

    data: ValidateDataConfig = dataclasses.field(default_factory=ValidateDataConfig)
    model: ValidateModelConfig = dataclasses.field(default_factory=ValidateModelConfig)
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)


@dataclasses.dataclass(frozen=True)
class InferenceConfig:
    """Everything inference_time.py can be told."""

    benchmark: BenchmarkConfig = dataclasses.field(default_factory=BenchmarkConfig)
    precision: PrecisionConfig = dataclasses.field(default_factory=PrecisionConfig)


AnyConfig = TrainConfig | ValidateConfig | InferenceConfig
Config = TypeVar('Config', TrainConfig, ValidateConfig, InferenceConfig)


class Entry(NamedTuple):
    """Where a name lives and what its values may be."""

    section: str
    hint: Any


def entries(config_type: type) -> dict[str, Entry]:
    """Every name of a configuration."""
    return {
        name: Entry(section, hint)
        for section, section_type in typing.get_type_hints(config_type).items()
        if dataclasses.is_dataclass(section_type)
        for name, hint in typing.get_type_hints(section_type, include_extras=True).items()
    }


def values_of(config: AnyConfig) -> dict[str, Any]:
    """Every value under its name."""
    return {name: getattr(getattr(config, entry.section), name) for name, entry in entries(type(config)).items()}


def to_flat_dict(config: AnyConfig) -> dict[str, Any]:
    """Every value under its name, in plain types: what args.yaml holds. With `-c` it gives an equal configuration."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values_of(config).items()}


def replace_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with other values under some names."""
    names = entries(type(config))
    by_section: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        by_section.setdefault(names[name].section, {})[name] = value
    sections = {
        section: dataclasses.replace(getattr(config, section), **changed) for section, changed in by_section.items()
    }
    return dataclasses.replace(config, **sections)
