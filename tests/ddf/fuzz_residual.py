"""Random calls of `add_residual_`, the end of a residual block."""

import random
from dataclasses import dataclass, replace

import torch
from fuzz_branches import EPS, normalized
from guarded_memory import guarded
from layouts import LAYOUTS, laid_out
from torch import Tensor

from ddf import check, reference


@dataclass(frozen=True)
class ResidualCall:
    """A map, its norm, a shortcut and the norm of that or []."""

    map: Tensor
    norm: list[Tensor]
    shortcut: Tensor
    shortcut_norm: list[Tensor]
    label: str

    def guarded(self) -> 'ResidualCall':
        norms = [list(map(guarded, values)) for values in (self.norm, self.shortcut_norm)]
        maps = guarded(self.map), guarded(self.shortcut)
        return replace(self, map=maps[0], norm=norms[0], shortcut=maps[1], shortcut_norm=norms[1])


def random_residual_call(choose: random.Random) -> ResidualCall:
    batch, channels = choose.choice([1, 2, 3, 9]), choose.choice([1, 2, 3, 7, 8, 16, 17, 33])
    height, width = (choose.choice([1, 2, 3, 5, 7, 8, 13, 16, 17, 31]) for _ in range(2))
    dtype, layout = choose.choice([torch.float32, torch.float64]), choose.choice(LAYOUTS[:3])
    maps = [laid_out(torch.randn(batch, channels, height, width).to(dtype), layout, choose) for _ in range(2)]
    norms = [[torch.rand(channels).to(dtype) + 0.5 for _ in range(4)] for _ in range(2)]
    if choose.random() < 0.5:
        norms[1] = []
    label = f'{dtype} {tuple(maps[0].shape)} {layout} {bool(norms[1])}'
    return ResidualCall(maps[0], norms[0], maps[1], norms[1], label)


def compare_residual(call: ResidualCall) -> None:
    map, shortcut = call.map.double(), call.shortcut.double()
    exact = torch.relu(normalized(map, call.norm, EPS[0]) + normalized(shortcut, call.shortcut_norm, EPS[1]))
    torch.ops.ddf.add_residual_(call.map, call.norm, call.shortcut, call.shortcut_norm, *EPS)
    memory_format = reference.memory_format_of(call.map)
    error = check.error(call.map, exact, call.map.dtype, memory_format)
    if error > 3 * check.tolerance(call.map.dtype):
        raise SystemExit(f'error {error} in {call.label}')
    if not torch.equal(call.shortcut.double(), shortcut):
        raise SystemExit(f'the shortcut was changed in {call.label}')
