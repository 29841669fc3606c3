"""The command `inference_time.py`: the operation against convolutions, or models against each other, as a table."""

from collections.abc import Sequence

import torch
from torch import nn

from ddf import DDFPack, build_info, ddf
from ddfnet.config import InferenceConfig, ModelSource, load_inference_config
from ddfnet.distributed import resolve_device
from ddfnet.errors import UserError, command
from ddfnet.models.build import build_model, check_forward, model_in_chans, resolve_input
from ddfnet.precision import Precision
from ddfnet.timing import Candidate, Timing, time_candidates


@command
def main(argv: list[str]) -> None:
    """Times what the flags say and prints tables on stdout."""
    config = load_inference_config(argv)
    device = resolve_device(config.benchmark.device)
    if config.benchmark.num_threads is not None:
        torch.set_num_threads(config.benchmark.num_threads)
    precision = Precision(config.precision, device)
    print(f'{_device_name(device)}, torch {torch.__version__}, {str(build_info()).splitlines()[0]}')
    try:
        if config.benchmark.model:
            _print_models(config, precision)
        else:
            _print_operation(config, precision)
    except RuntimeError as error:  # OutOfMemoryError is one; the CPU's allocator has no class of its own
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        raise UserError(f'out of memory on {device}: give a smaller --batch-size') from error


def _device_name(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{device.type} ({torch.get_num_threads()} threads)' if device.type == 'cpu' else device.type


def _print_models(config: InferenceConfig, precision: Precision) -> None:
    """One table of all models, each at its own or the given image size."""
    candidates = [_model_candidate(name, config, precision) for name in config.benchmark.model or ()]
    timings = time_candidates(candidates, config.benchmark.min_time, precision.device)
    _print_table(f'batch {config.benchmark.batch_size}', timings)


def _model_candidate(name: str, config: InferenceConfig, precision: Precision) -> Candidate:
    source = ModelSource(img_size=config.benchmark.img_size)
    in_chans = model_in_chans(source, name)
    model = build_model(source, name, None, in_chans)
    input_size = resolve_input(source, model, in_chans)['input_size']
    check_forward(model, input_size, config.benchmark.batch_size, train=False)
    images = precision.lay_out(torch.randn(config.benchmark.batch_size, *input_size, device=precision.device))
    model = precision.place(model).eval()

    def run() -> torch.Tensor:
        with precision.autocast():
            return model(images)

    return Candidate(f'{name} {input_size[-1]}', run, config.benchmark.batch_size)


def _print_operation(config: InferenceConfig, precision: Precision) -> None:
    """A table per size of the map: convolution, depthwise convolution, the DDF module, the DDF operation alone."""
    benchmark = config.benchmark
    for size in benchmark.sizes:
        candidates = _operation_candidates(config, precision, size)
        title = f'{benchmark.batch_size} x {benchmark.channels} x {size} x {size}, kernel {benchmark.kernel_size}'
        _print_table(title, time_candidates(candidates, benchmark.min_time, precision.device))


def _operation_candidates(config: InferenceConfig, precision: Precision, size: int) -> list[Candidate]:
    benchmark = config.benchmark
    channels, kernel_size = benchmark.channels, benchmark.kernel_size
    settings = {'kernel_size': kernel_size, 'padding': kernel_size // 2, 'bias': False}
    modules: dict[str, nn.Module] = {
        'convolution': nn.Conv2d(channels, channels, **settings),  # type: ignore[arg-type]
        'depthwise convolution': nn.Conv2d(channels, channels, groups=channels, **settings),  # type: ignore[arg-type]
        'DDF module': DDFPack(channels, kernel_size),
    }
    map = precision.lay_out(torch.randn(benchmark.batch_size, channels, size, size, device=precision.device))
    pack = precision.place(modules['DDF module'])
    assert isinstance(pack, DDFPack)
    with torch.inference_mode():
        filters = pack.filters(map)
    runs = {name: _forward(precision.place(module), map, precision) for name, module in modules.items()}
    runs['DDF operation'] = _forward(lambda map: ddf(map, *filters, kernel_size), map, precision)
    return [Candidate(name, run, benchmark.batch_size) for name, run in runs.items()]


def _forward(function, map: torch.Tensor, precision: Precision):
    def run() -> torch.Tensor:
        with precision.autocast():
            return function(map)

    return run


def _print_table(title: str, timings: Sequence[Timing]) -> None:
    width = max(len(timing.name) for timing in timings)
    print(f'\n{title}')
    print(f'{"":{width}}  median ms   samples/s   ratio to the first row')
    for timing in timings:
        ratio = timing.median / timings[0].median
        print(f'{timing.name:{width}}  {timing.median * 1e3:9.3f}  {timing.samples_per_s:10.1f}   {ratio:.2f}')
