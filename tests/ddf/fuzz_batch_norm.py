"""Random calls of the operators around the filters: `normalized_sum_`, its gradients and `batch_statistics_`."""

import random
from dataclasses import dataclass

import torch
from fuzz_branches import EPS, normalized
from guarded_memory import guarded
from layouts import LAYOUTS, laid_out
from torch import Tensor

from ddf import check, reference


@dataclass(frozen=True)
class NormCall:
    """A map, where its sum goes, its norm, a shortcut or None, that one's norm or [], and running mean and variance."""

    map: Tensor
    output: Tensor
    norm: list[Tensor]
    shortcut: Tensor | None
    shortcut_norm: list[Tensor]
    running: list[Tensor]
    label: str

    def guarded(self) -> 'NormCall':
        maps = guarded(self.map), guarded(self.output), None if self.shortcut is None else guarded(self.shortcut)
        values = (list(map(guarded, values)) for values in (self.norm, self.shortcut_norm, self.running))
        return NormCall(*maps[:2], next(values), maps[2], *values, self.label)


def random_norm_call(choose: random.Random) -> NormCall:
    batch, channels = choose.choice([1, 2, 3, 9]), choose.choice([1, 2, 3, 7, 8, 16, 17, 33])
    height, width = (choose.choice([1, 2, 3, 5, 7, 8, 13, 16, 17, 31]) for _ in range(2))
    dtype, layout = choose.choice([torch.float32, torch.float64]), choose.choice(LAYOUTS[:3])
    source, output, shortcut = (
        laid_out(torch.randn(batch, channels, height, width).to(dtype), layout, choose) for _ in range(3)
    )
    norm, shortcut_norm, running = ([torch.rand(channels).to(dtype) + 0.5 for _ in range(n)] for n in (4, 4, 2))
    added = choose.choice(['', 'shortcut', 'normalized shortcut'])
    label = f'{dtype} {tuple(source.shape)} {layout} {added}'
    if not added:
        shortcut = None
    if added != 'normalized shortcut':
        shortcut_norm = []
    return NormCall(source, output, norm, shortcut, shortcut_norm, running, label)


def compare_norms(call: NormCall) -> None:
    exact = normalized(call.map.double(), call.norm, EPS[0])
    if call.shortcut is not None:
        exact += normalized(call.shortcut.double(), call.shortcut_norm, EPS[1])
    arguments = call.map, call.norm, call.shortcut, call.shortcut_norm, *EPS
    torch.ops.ddf.normalized_sum_(call.output, *arguments)
    compare(call, 'sum', call.output, exact.relu())
    compare_statistics(call)
    compare_gradients(call)
    torch.ops.ddf.normalized_sum_(*arguments[:1], *arguments)
    compare(call, 'sum in place', call.map, exact.relu())


def compare_statistics(call: NormCall) -> None:
    count, momentum = call.map.numel() // call.map.shape[1], 0.3
    given = [values.clone().double() for values in call.running]
    found = torch.ops.ddf.batch_statistics_(call.map, *call.running, momentum)
    variance, mean = torch.var_mean(call.map.double(), (0, 2, 3), correction=0)
    compare(call, 'mean', found[0] + 1, mean + 1)  # of values around zero the mean may be small
    compare(call, 'variance', found[1], variance)
    if count > 1:
        compare(call, 'running mean', call.running[0], given[0].lerp(mean, momentum))
        compare(call, 'running variance', call.running[1], given[1].lerp(variance * count / (count - 1), momentum))


def compare_gradients(call: NormCall) -> None:
    """With the values of the norms for those of the batch: gradients need no more of them."""
    norm = [call.map, call.norm[0], *call.norm[2:]]
    shortcut_norm = [call.shortcut, call.shortcut_norm[0], *call.shortcut_norm[2:]] if call.shortcut_norm else []
    own_numbers = torch.Generator().manual_seed(0)  # the calls to come are the same with and without this comparison
    grad_output = torch.empty_like(call.map).normal_(generator=own_numbers)
    adds_shortcut = call.shortcut is not None
    found = torch.ops.ddf.normalized_sum_gradients(grad_output, call.output, norm, shortcut_norm, adds_shortcut)
    grad_sum = torch.where(call.output > 0, grad_output, 0).double()
    for values, results in ((norm, found[:3]), (shortcut_norm, found[3:])):
        if not values:
            continue
        map, weight, *statistics = (value.double() for value in values)
        exact = torch.ops.aten.native_batch_norm_backward(
            grad_sum, map, weight, None, None, *statistics, True, 0.0, [True] * 3
        )
        compare(call, 'gradient of map', results[0], exact[0])
        usual = (map.numel() / map.shape[1]) ** 0.5  # of sums whose parts have either sign, which may be small
        for name, result, value in zip(('weight', 'bias'), results[1:], exact[1:], strict=True):
            compare(call, f'gradient of {name}', result + usual, value + usual)
    if adds_shortcut and not call.shortcut_norm:
        compare(call, 'gradient of the shortcut', found[3], grad_sum)


def compare(call: NormCall, name: str, result: Tensor, exact: Tensor) -> None:
    memory_format = reference.memory_format_of(call.map) if result.dim() == 4 else torch.contiguous_format
    error = check.error(result, exact, result.dtype, memory_format)
    if error > 10 * check.tolerance(result.dtype):
        raise SystemExit(f'error {error} of {name} in {call.label}')
