"""The command `validate.py`: a model's exact accuracy on a data set, as one line of JSON."""

import csv
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import apply_test_time_pool
from timm.utils import decay_batch_step

from ddfnet.checkpoints import checkpoint_settings, load_weights, read_checkpoint
from ddfnet.config import EvaluationConfig, ValidateConfig, load_validate_config, replace_values
from ddfnet.data import class_names, create_validation_loader, is_streamed, open_dataset, stop_workers
from ddfnet.distributed import Processes, start_processes, stop_processes
from ddfnet.errors import UserError, command, first_line
from ddfnet.evaluation import evaluate
from ddfnet.memory import is_out_of_memory, release
from ddfnet.models.build import build_model, check_compiler, check_forward, model_in_chans, resolve_input
from ddfnet.precision import Precision
from ddfnet.predictions import SomeClasses, Views, read_classes, size_for_views
from ddfnet.scores import ClassScores, RealLabels, Score
from ddfnet.seeding import reseed

_DEFAULT_MODEL = 'ddf_mul_resnet50'
_FROM_CHECKPOINT = (
    'model', 'model_kwargs', 'num_classes', 'in_chans', 'img_size', 'input_size', 'gp', 'mean', 'std', 'interpolation',
    'crop_pct',
)  # fmt: skip

_ALWAYS = ('loss', 'top1', 'top5', 'count', 'corrupt', 'samples_per_s')

_logger = logging.getLogger('ddfnet')


@command
def main(argv: list[str]) -> None:
    """Validates as the flags say: progress on stderr, the result as the last line of stdout."""
    logging.basicConfig(format='%(message)s', stream=sys.stderr)
    _logger.setLevel(logging.INFO)
    config = load_validate_config(argv)
    reseed(config.evaluation.seed)
    processes = start_processes(config.evaluation.device)
    try:
        result = validate(config, processes)
    finally:
        stop_processes()
    if processes.is_primary:
        if config.evaluation.results_file:
            _write_result(result, Path(config.evaluation.results_file), config.evaluation.results_format)
        print(json.dumps(result))


def validate(config: ValidateConfig, processes: Processes) -> dict[str, Any]:
    """The result: model, top1, top1_err, top5, top5_err in percent, loss, count, corrupt (images left out),
    param_count in millions, img_size in pixels, crop_pct, interpolation, samples_per_s; with --metrics-avg precision,
    recall and F1 in percent, with --real-labels real_count (images that have such labels, which top1 and top5 are of).

    Raises:
        UserError: Data, model and checkpoint do not fit together.
    """
    if processes.is_primary:
        _check_results_file(config.evaluation.results_file, config.evaluation.results_format)
    check_compiler(config.model.torchcompile, processes.device)
    path = config.model.checkpoint or config.model.pretrained_path
    checkpoint = read_checkpoint(path) if path else {}
    config = _with_settings_of(checkpoint, config)
    name = config.model.model or _DEFAULT_MODEL
    in_chans = model_in_chans(config.model, name)
    data = config.data
    dataset = open_dataset(data, data.split, in_chans=in_chans, num_samples=data.num_samples)
    names = class_names(dataset)
    num_classes = config.model.num_classes or (len(names) if names and data.dataset == 'digits' else None)
    model: Any = build_model(config.model, name, num_classes, in_chans)
    classes = read_classes(config.evaluation.valid_labels, model.num_classes) if config.evaluation.valid_labels else []
    num_classes = len(classes) or model.num_classes
    _check_classes(names, num_classes, config.evaluation.valid_labels)
    if config.model.checkpoint:
        load_weights(model, checkpoint, config.model.checkpoint, config.model.use_ema)
    use_test_size = not config.model.use_train_size
    settings = resolve_input(
        config.model, model, in_chans, crop_mode=config.model.crop_mode, use_test_size=use_test_size
    )
    check_forward(model, settings['input_size'], config.evaluation.batch_size, train=False)
    param_count = sum(parameter.numel() for parameter in model.parameters())
    model = _with_test_pool(config, model, settings)
    if processes.is_primary:
        _remark(config, dataset)
    metrics = _measure(config, model, num_classes, classes, dataset, settings, processes)
    return _result(name, metrics, param_count, settings)


def _remark(config: ValidateConfig, dataset: Any) -> None:
    """Says what a user may not expect."""
    if is_streamed(dataset):
        _logger.info(f'{config.data.dataset} is streamed: images that cannot be read are left out by its reader')
    if not (config.model.checkpoint or config.model.pretrained_path or config.model.pretrained):
        _logger.warning('the weights are random: give --checkpoint FILE, or --pretrained')


def _check_classes(names: list[str] | None, predicted: int, valid_labels: str) -> None:
    if names is not None and len(names) > predicted:
        what = f'the {predicted} of --valid-labels' if valid_labels else f'the {predicted} of the model'
        raise UserError(f'the data has {len(names)} classes, more than {what}')


def _measure(
    config: ValidateConfig,
    model: Any,
    num_classes: int,
    classes: list[int],
    dataset: Any,
    settings: dict[str, Any],
    processes: Processes,
) -> dict[str, float]:
    """Metrics of the model as asked for: of some classes, over views, with further scores; in batches that fit.

    Raises:
        UserError: Out of memory, with --retry even for a single image.
    """
    evaluation = config.evaluation
    precision = Precision(config.precision, processes.device)
    if classes:
        model = SomeClasses(model, classes)
    if evaluation.tta:
        model = Views(model, evaluation.tta, settings['input_size'][1:])
    settings = size_for_views(settings, evaluation.tta)
    model = precision.place(model)
    if config.model.torchcompile:
        model = torch.compile(model, backend=config.model.torchcompile, mode=config.model.torchcompile_mode)
    batch_size = evaluation.batch_size
    while True:
        loader = create_validation_loader(dataset, config.data, batch_size, settings, processes)
        scores = _scores(evaluation, dataset, num_classes, processes)
        try:
            return evaluate(model, loader, precision, processes, _logger.info, evaluation.log_freq, scores=scores)
        except Exception as error:  # allocators raise several kinds
            if not is_out_of_memory(error):
                raise
            problem = first_line(error)
        finally:
            stop_workers(loader)
        batch_size = _smaller_batch(batch_size, problem, evaluation.retry)
        release(processes.device)


def _scores(config: EvaluationConfig, dataset: Any, num_classes: int, processes: Processes) -> list[Score]:
    scores: list[Score] = []
    if config.metrics_avg:
        scores.append(ClassScores(config.metrics_avg, num_classes, processes.device))
    if config.real_labels:
        scores.append(RealLabels(config.real_labels, dataset, num_classes))
    return scores


def _smaller_batch(batch_size: int, problem: str, retry: bool) -> int:
    text = f'out of memory with a batch of {batch_size} ({problem})'
    if not retry:
        raise UserError(f'{text}: give a smaller --batch-size, or --retry, which halves it until it fits')
    if batch_size == 1:
        raise UserError(f'{text}: give a smaller --img-size')
    smaller = decay_batch_step(batch_size, num_intra_steps=1)
    _logger.warning(f'{text}: starting again with {smaller}')
    return smaller


def _with_settings_of(checkpoint: dict[str, Any], config: ValidateConfig) -> ValidateConfig:
    """Fills in what was not given from the settings the checkpoint was made with, its data included."""
    settings = {name: value for name, value in checkpoint_settings(checkpoint).items() if value not in (None, '', {})}
    names = [*_FROM_CHECKPOINT, 'class_map']
    if not config.data.data_dir and not config.data.dataset:
        names += ['data_dir', 'dataset']
    given = {**vars(config.model), **vars(config.data)}
    if config.model.input_size is not None:
        names = [name for name in names if name not in ('in_chans', 'img_size')]
    elif config.model.img_size is not None:
        names.remove('input_size')
    elif config.model.in_chans is not None and 'input_size' in settings:
        settings['input_size'] = (config.model.in_chans, *settings['input_size'][1:])
    unset = {name: settings[name] for name in names if given[name] in (None, '', {}) and name in settings}
    lists_as_fields = {name: tuple(value) if isinstance(value, list) else value for name, value in unset.items()}
    return replace_values(config, lists_as_fields)


def _with_test_pool(config: ValidateConfig, model: Any, settings: dict[str, Any]) -> Any:
    if not config.model.test_pool:
        return model
    model, applied = apply_test_time_pool(model, settings)
    if not applied:
        own = model.pretrained_cfg['input_size'][1]
        raise UserError(
            f'--test-pool needs an input larger than the {own} pixels of the model, got {settings["input_size"][1]}: '
            'give a larger --img-size'
        )
    settings['crop_pct'] = 1.0  # as in timm: the border is part of what is averaged
    return model


def _result(name: str, metrics: Mapping[str, float], param_count: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        'model': name,
        'top1': round(metrics['top1'], 4),
        'top1_err': round(100 - metrics['top1'], 4),
        'top5': round(metrics['top5'], 4),
        'top5_err': round(100 - metrics['top5'], 4),
        'loss': round(metrics['loss'], 6),
        'count': metrics['count'],
        'corrupt': metrics['corrupt'],
        'param_count': round(param_count / 1e6, 2),
        'img_size': settings['input_size'][-1],
        'crop_pct': settings['crop_pct'],
        'interpolation': settings['interpolation'],
        'samples_per_s': round(metrics['samples_per_s'], 1),
        **{key: round(value, 4) for key, value in metrics.items() if key not in _ALWAYS},
    }


def _check_results_file(path: str, results_format: str | None) -> None:
    if not path:
        return
    if not results_format and Path(path).suffix not in ('.csv', '.json'):
        raise UserError(f'results file {path}: expected a name that ends with .csv or .json, or a --results-format')
    try:
        open(path, 'a').close()
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error


def _write_result(result: Mapping[str, Any], path: Path, results_format: str | None) -> None:
    """JSON or CSV, as asked for, else by the suffix."""
    with open(path, 'w', newline='') as file:
        if (results_format or path.suffix.removeprefix('.')) == 'json':
            json.dump(result, file, indent=4)
        else:
            writer = csv.DictWriter(file, list(result))
            writer.writeheader()
            writer.writerow(result)
