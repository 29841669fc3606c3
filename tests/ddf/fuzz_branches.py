"""Random calls of the operators that hold a module's branches: `dynamic_filter`, and the two of its training."""

import random
from dataclasses import dataclass, replace

import torch
from guarded_memory import guarded
from layouts import LAYOUTS, laid_out
from torch import Tensor

from ddf import check, reference

EPS = 1e-5, 1e-3  # of the norms


@dataclass(frozen=True)
class BranchesCall:
    """Arguments of `dynamic_filter`: a map, weights and biases, settings, the norms of the map and of the output; and
    the gradient of the output, for the operators that take no norms."""

    tensors: tuple[Tensor, ...]
    settings: tuple[int, int, int, int, str, float | None]
    norms: tuple[list[Tensor], list[Tensor]]
    grad_output: Tensor
    label: str

    def guarded(self) -> 'BranchesCall':
        tensors, norms = tuple(map(guarded, self.tensors)), tuple(list(map(guarded, values)) for values in self.norms)
        return replace(self, tensors=tensors, norms=norms, grad_output=guarded(self.grad_output))

    def run(self) -> Tensor:
        return torch.ops.ddf.dynamic_filter(*self.tensors, *self.settings, *self.norms, *EPS)

    def by_definition(self, *tensors: Tensor) -> Tensor:
        x, spatial_weight, spatial_bias, squeeze_weight, squeeze_bias, excite_weight, excite_bias, scale = tensors
        kernel_size, dilation, stride, *settings = self.settings
        x = rectified(x, self.norms[0], EPS[0])
        logits = torch.nn.functional.conv2d(x, spatial_weight[:, :, None, None], spatial_bias, stride)
        hidden = torch.relu(x.mean((2, 3)) @ squeeze_weight.T + squeeze_bias)
        taps = (hidden @ excite_weight.T + excite_bias).unflatten(1, (x.shape[1], kernel_size**2))
        std = taps.std(2, keepdim=True) + 1e-10
        channel = (taps - taps.mean(2, keepdim=True)) / std * scale.view_as(taps[0])
        channel = channel.unflatten(2, (kernel_size, kernel_size))
        return rectified(reference.forward(x, channel, logits, dilation, stride, *settings), self.norms[1], EPS[1])

    def run_training(self) -> list[Tensor]:
        """The output and the gradients of map and weights."""
        output, *predictions = torch.ops.ddf.dynamic_filter_predictions(*self.tensors, *self.settings)
        arguments = self.grad_output, *self.tensors, *predictions, *self.settings
        return [output, *torch.ops.ddf.dynamic_filter_gradients(*arguments)]


def normalized(x: Tensor, values: list[Tensor], eps: float) -> Tensor:
    """A BatchNorm in evaluation; without values x itself."""
    if not values:
        return x
    weight, bias, mean, variance = (value.double()[:, None, None] for value in values)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def rectified(x: Tensor, values: list[Tensor], eps: float) -> Tensor:
    """A BatchNorm and a ReLU; without values x itself."""
    return torch.relu(normalized(x, values, eps)) if values else x


def random_branches_call(choose: random.Random) -> BranchesCall:
    head = choose.choice([1, 1, 2, 3])
    batch, channels = choose.choice([1, 2, 3, 9, 17]), head * choose.choice([1, 2, 3, 4, 5, 8, 17, 33])
    height, width = (choose.choice([1, 2, 3, 5, 7, 8, 9, 13, 16, 17, 20, 31, 33]) for _ in range(2))
    kernel_size, hidden = choose.choice([3, 3, 3, 5, 7]), choose.choice([1, 3, 8, 15, 16, 17, 35])
    stride, dilation = choose.choice([1, 1, 2, 3, 40]), choose.choice([1, 1, 2, 50])
    logits, taps = head * kernel_size**2, channels * kernel_size**2
    shapes = ((logits, channels), (logits,), (hidden, channels), (hidden,), (taps, hidden), (taps,), (taps,))
    dtype, layout = choose.choice([torch.float32, torch.float64]), choose.choice(LAYOUTS[:3])
    x = laid_out(torch.randn(batch, channels, height, width).to(dtype), layout, choose)
    settings = kernel_size, dilation, stride, head, choose.choice(['mul', 'add']), choose.choice([None, 0.5])
    tensors = (x, *(torch.randn(shape).to(dtype) for shape in shapes))
    norms = tuple(
        [torch.rand(channels).to(dtype) + 0.5 for _ in range(4)] if choose.random() < 0.4 else [] for _ in range(2)
    )
    grid = reference.output_size(height, stride), reference.output_size(width, stride)
    grad_layout = choose.choice(LAYOUTS)
    grad_output = laid_out(torch.randn(batch, channels, *grid).to(dtype), grad_layout, choose)
    label = f'{dtype} {tuple(x.shape)} {layout} {grad_layout} {hidden} {settings} {list(map(bool, norms))}'
    return BranchesCall(tensors, settings, norms, grad_output, label)


def compare_branches(call: BranchesCall) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in call.tensors]
    exact = call.by_definition(*tensors)
    check_result('output', call.run(), exact, call)
    if not any(call.norms):
        names = ('output', *(f'gradient {position}' for position in range(len(tensors))))
        gradients = torch.autograd.grad(exact, tensors, call.grad_output.double())
        for name, result, expected in zip(names, call.run_training(), (exact, *gradients)):
            check_result(name, result, expected, call)


def check_result(name: str, result: Tensor, expected: Tensor, call: BranchesCall) -> None:
    x = call.tensors[0]
    memory_format = reference.memory_format_of(x) if result.dim() == 4 else torch.contiguous_format
    # sums of products of sums: the errors of one are the terms of the next
    error = check.error(result, expected.detach(), x.dtype, memory_format)
    if error > 30 * check.tolerance(x.dtype):
        raise SystemExit(f'error {error} of {name} in {call.label}')
