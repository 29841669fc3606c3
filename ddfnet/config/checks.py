"""What is checked of a configuration before anything starts."""

from collections.abc import Iterator

from ddfnet.config.contradictions import contradictions as train_contradictions
from ddfnet.config.evaluation import contradictions as validate_contradictions
from ddfnet.config.inference import contradictions as inference_contradictions
from ddfnet.config.runtime import PrecisionConfig
from ddfnet.config.schema import AnyConfig, InferenceConfig, TrainConfig, entries, to_flat_dict
from ddfnet.config.unused import unused
from ddfnet.config.values import convert, flag
from ddfnet.errors import UserError


def check(config: AnyConfig) -> None:
    """Raises UserError for the first value that is wrong by itself, contradicts another or misleads without effect."""
    names = entries(type(config))
    for name, value in to_flat_dict(config).items():
        try:
            convert(value, names[name].hint)
        except ValueError as error:
            raise UserError(f'{flag(name)}: {error}') from None
    for contradiction in _contradictions(config):
        raise UserError(contradiction)


def _contradictions(config: AnyConfig) -> Iterator[str]:
    yield from _number_formats(config.precision)
    if isinstance(config, TrainConfig):
        yield from train_contradictions(config)
        yield from unused(config)
    elif isinstance(config, InferenceConfig):
        yield from inference_contradictions(config.benchmark)
    else:
        yield from validate_contradictions(config)


def _number_formats(precision: PrecisionConfig) -> Iterator[str]:
    if precision.amp and precision.model_dtype not in (None, 'float32'):
        yield f'--amp keeps weights in float32, --model-dtype {precision.model_dtype} does not: leave one of them out'
    if precision.amp_dtype != 'auto' and not precision.amp:
        yield '--amp-dtype has no effect without --amp: add that, or leave --amp-dtype out'
