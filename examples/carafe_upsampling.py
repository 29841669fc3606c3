"""Content-aware upsampling by spatial filters alone, in the manner of CARAFE (arXiv 1905.02188).

    python examples/carafe_upsampling.py

Every new pixel is a weighted mean of the 5 x 5 neighbourhood of its source pixel; a small network predicts the weights.
The script compares the layer with the same sum over unfolded patches, then trains it to double the resolution of
pictures of disks and prints its error next to bilinear interpolation's. About 10 s on two CPU cores.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddf import ddf


class ContentAwareUpsampling(nn.Module):
    """(B, C, H, W) to (B, C, H * scale_factor, W * scale_factor)."""

    def __init__(self, channels: int, hidden_channels: int = 16, kernel_size: int = 5, scale_factor: int = 2) -> None:
        super().__init__()
        self.kernel_size, self.scale_factor = kernel_size, scale_factor
        self.compress = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.encode = nn.Conv2d(hidden_channels, scale_factor**2 * kernel_size**2, 3, padding=1)

    def kernels(self, x: Tensor) -> Tensor:
        """Weights that sum to 1 for every new pixel: (B, scale_factor**2, kernel_size**2, H, W)."""
        logits = self.encode(F.relu(self.compress(x)))
        return logits.unflatten(1, (self.scale_factor**2, self.kernel_size**2)).softmax(2)

    def forward(self, x: Tensor) -> Tensor:
        # one for every channel and tap, without memory of its own: the spatial filters do all the work
        every_channel = x.new_ones(1, 1, 1, 1).expand(*x.shape[:2], self.kernel_size, self.kernel_size)
        subpixels = [ddf(x, every_channel, kernel, self.kernel_size) for kernel in self.kernels(x).unbind(1)]
        return F.pixel_shuffle(torch.stack(subpixels, 2).flatten(1, 2), self.scale_factor)


def upsample_by_unfolding(layer: ContentAwareUpsampling, x: Tensor) -> Tensor:
    """The same by the definition, with every patch written out."""
    patches = F.unfold(x, layer.kernel_size, padding=layer.kernel_size // 2)  # (B, C * k*k, H * W)
    patches = patches.reshape(*x.shape[:2], layer.kernel_size**2, *x.shape[2:])
    new_pixels = torch.einsum('bskhw,bckhw->bcshw', layer.kernels(x), patches)
    return F.pixel_shuffle(new_pixels.flatten(1, 2), layer.scale_factor)


def disks(count: int, size: int = 32) -> Tensor:
    """Random disks, one to a picture, with values in [0, 1]: (count, 1, size, size)."""
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing='ij')
    centre_y, centre_x = size * (0.3 + 0.4 * torch.rand(2, count, 1, 1))
    radius = size * (0.1 + 0.2 * torch.rand(count, 1, 1))
    distance = ((rows - centre_y) ** 2 + (columns - centre_x) ** 2).sqrt()
    return (radius - distance).clamp(0, 1).unsqueeze(1)


def main(steps: int = 200) -> tuple[float, float]:
    """Returns the mean squared errors of the trained layer and of bilinear interpolation."""
    torch.manual_seed(0)
    layer = ContentAwareUpsampling(1)
    x = torch.randn(2, 1, 7, 9)
    torch.testing.assert_close(layer(x), upsample_by_unfolding(layer, x))
    print('equal to the sum over unfolded patches')

    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for step in range(steps):
        pictures = disks(16)
        loss = F.mse_loss(layer(F.avg_pool2d(pictures, 2)), pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f'step {step:3d}  mean squared error {loss.item():.5f}')
    pictures = disks(256)
    with torch.no_grad():
        learned = F.mse_loss(layer(F.avg_pool2d(pictures, 2)), pictures).item()
    bilinear = F.mse_loss(F.interpolate(F.avg_pool2d(pictures, 2), scale_factor=2, mode='bilinear'), pictures).item()
    print(f'new pictures: content-aware {learned:.5f}, bilinear {bilinear:.5f}')
    return learned, bilinear


if __name__ == '__main__':
    main()
