"""A depthwise layer whose filters are predicted per sample, in the manner of WeightNet (arXiv 2007.11823).

    python examples/weightnet.py

A vector that summarises the sample becomes one k x k filter per channel, the same for all pixels: channel filters
alone, with a constant spatial filter. PyTorch can do this with one convolution of B * C groups; the script compares
output and gradients with that. About 4 s on two CPU cores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf import ddf


class DepthwiseWeightNet(nn.Module):
    """(B, C, H, W) to (B, C, Ho, Wo), Ho = (H - 1) // stride + 1 and Wo likewise.

    Args:
        width: Values of the activation vector per channel; a channel's filter is a linear function of its own.
    """

    def __init__(
        self, channels: int, kernel_size: int = 3, stride: int = 1, reduction: int = 4, width: int = 2
    ) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        self.activation = nn.Sequential(
            nn.Linear(channels, channels // reduction), nn.Linear(channels // reduction, width * channels), nn.Sigmoid()
        )
        self.generate = nn.Conv1d(width * channels, channels * kernel_size**2, 1, groups=channels, bias=False)

    def weights(self, x: Tensor) -> Tensor:
        """The filters of every sample: (B, C, k, k)."""
        activation = self.activation(x.mean((2, 3)))  # (B, width * C)
        return self.generate(activation.unsqueeze(2)).reshape(*x.shape[:2], self.kernel_size, self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        height, width = ((size - 1) // self.stride + 1 for size in x.shape[2:])
        every_pixel = x.new_ones(1, 1, 1, 1).expand(x.shape[0], self.kernel_size**2, height, width)
        return ddf(x, self.weights(x), every_pixel, self.kernel_size, stride=self.stride)


def grouped_convolution(layer: DepthwiseWeightNet, x: Tensor) -> Tensor:
    """The same as one convolution with a group for every channel of every sample."""
    batch, channels, height, width = x.shape
    output = F.conv2d(
        x.reshape(1, batch * channels, height, width),
        layer.weights(x).reshape(batch * channels, 1, layer.kernel_size, layer.kernel_size),
        stride=layer.stride,
        padding=layer.kernel_size // 2,
        groups=batch * channels,
    )
    return output.reshape(batch, channels, *output.shape[2:])


def main() -> None:
    torch.manual_seed(0)
    for settings in ({'kernel_size': 3}, {'kernel_size': 5, 'stride': 2}):
        layer = DepthwiseWeightNet(32, **settings)
        x = torch.randn(4, 32, 27, 30, requires_grad=True)
        output, expected = layer(x), grouped_convolution(layer, x)
        torch.testing.assert_close(output, expected)
        grad_output = torch.randn_like(output)
        leaves = (x, *layer.parameters())
        for gradient, of_convolution in zip(
            torch.autograd.grad(output, leaves, grad_output), torch.autograd.grad(expected, leaves, grad_output)
        ):
            torch.testing.assert_close(gradient, of_convolution, rtol=1e-4, atol=1e-4)
        print(f'{settings}: output {tuple(output.shape)} and gradients are equal to those of the grouped convolution')


if __name__ == '__main__':
    main()
