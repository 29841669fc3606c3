"""An involution-like layer (arXiv 2103.06255): a filter per pixel, shared by the channels of a group.

    python examples/involution.py

The groups of involution are the heads of `ddf`; the channel filter is a constant. The script compares output and
gradients with the same sum over unfolded patches, and prints the parameters next to a convolution's and how much
each of the two keeps for the backward pass. About 4 s on two CPU cores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf import ddf


class Involution(nn.Module):
    """A drop-in for a k x k convolution with equal channels in and out."""

    def __init__(
        self, channels: int, kernel_size: int = 7, stride: int = 1, groups: int = 4, reduction: int = 4
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.groups = kernel_size, stride, groups
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, channels // reduction, 1, stride, bias=False),
            nn.BatchNorm2d(channels // reduction),
            nn.ReLU(),
        )
        self.span = nn.Conv2d(channels // reduction, groups * kernel_size**2, 1)

    def kernels(self, x: Tensor) -> Tensor:
        return self.span(self.reduce(x))  # (B, groups * k*k, Ho, Wo)

    def forward(self, x: Tensor) -> Tensor:
        every_channel = x.new_ones(1, 1, 1, 1).expand(*x.shape[:2], self.kernel_size, self.kernel_size)
        return ddf(x, every_channel, self.kernels(x), self.kernel_size, stride=self.stride, head=self.groups)


def involution_by_unfolding(layer: Involution, x: Tensor) -> Tensor:
    """The same by the definition, with every patch written out."""
    batch, channels = x.shape[:2]
    kernels = layer.kernels(x)
    grid = kernels.shape[2:]
    patches = F.unfold(x, layer.kernel_size, padding=layer.kernel_size // 2, stride=layer.stride)
    patches = patches.reshape(batch, layer.groups, channels // layer.groups, layer.kernel_size**2, *grid)
    kernels = kernels.reshape(batch, layer.groups, 1, layer.kernel_size**2, *grid)
    return (patches * kernels).sum(3).reshape(batch, channels, *grid)


def saved_for_backward(function, x: Tensor) -> int:
    """Bytes of the distinct tensors that autograd keeps for the backward pass of `function(x)`."""
    storages = {}

    def keep(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = function(x)  # alive until the storages are counted
    assert output.requires_grad
    return sum(storages.values())


def main() -> tuple[int, int]:
    """Returns the bytes kept for the backward pass by `ddf` and by unfolding."""
    torch.manual_seed(0)
    layer = Involution(64, stride=2).double()  # float32 would round gradients that sum over all pixels
    x = torch.randn(2, 64, 33, 40, dtype=torch.float64, requires_grad=True)
    output, expected = layer(x), involution_by_unfolding(layer, x)
    grad_output = torch.randn_like(output)
    leaves = (x, *layer.parameters())
    gradients = torch.autograd.grad(output, leaves, grad_output)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, grad_output))
    print('output and gradients are equal to those of the sum over unfolded patches')

    parameters = sum(parameter.numel() for parameter in layer.parameters())
    print(f'parameters: involution {parameters:,}, convolution {nn.Conv2d(64, 64, 7, bias=False).weight.numel():,}')
    layer, x = layer.float(), x.float()
    kept = saved_for_backward(layer, x), saved_for_backward(lambda x: involution_by_unfolding(layer, x), x)
    print(f'kept for the backward pass: ddf {kept[0] / 2**20:.1f} MiB, unfolding {kept[1] / 2**20:.1f} MiB')
    return kept


if __name__ == '__main__':
    main()
