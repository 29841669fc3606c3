"""Typed configurations of the three commands: the only place that knows flags, their defaults and their checks."""

from ddfnet.config.augmentation import AugmentationConfig
from ddfnet.config.checks import check
from ddfnet.config.data import BatchConfig, DataConfig, DataSource, ValidateDataConfig
from ddfnet.config.evaluation import EvaluationConfig
from ddfnet.config.inference import BenchmarkConfig
from ddfnet.config.loading import load_inference_config, load_train_config, load_validate_config
from ddfnet.config.model import ModelConfig, ModelSource, ValidateModelConfig
from ddfnet.config.optimization import LossConfig, OptimizerConfig, ScheduleConfig
from ddfnet.config.runtime import (
    BatchNormConfig,
    DistributionConfig,
    EmaConfig,
    PrecisionConfig,
    RunConfig,
    TrainPrecisionConfig,
)
from ddfnet.config.schema import InferenceConfig, TrainConfig, ValidateConfig, replace_values, to_flat_dict

__all__ = [
    'AugmentationConfig',
    'BatchConfig',
    'BatchNormConfig',
    'BenchmarkConfig',
    'DataConfig',
    'DataSource',
    'DistributionConfig',
    'EmaConfig',
    'EvaluationConfig',
    'InferenceConfig',
    'LossConfig',
    'ModelConfig',
    'ModelSource',
    'OptimizerConfig',
    'PrecisionConfig',
    'RunConfig',
    'ScheduleConfig',
    'TrainConfig',
    'TrainPrecisionConfig',
    'ValidateConfig',
    'ValidateDataConfig',
    'ValidateModelConfig',
    'check',
    'load_inference_config',
    'load_train_config',
    'load_validate_config',
    'replace_values',
    'to_flat_dict',
]
