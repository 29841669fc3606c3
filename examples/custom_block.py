"""A residual block of one's own around DDFPack, in a small network that learns scikit-learn's digits.

    pip install scikit-learn
    python examples/custom_block.py

Trains on 898 images of 8 x 8 pixels for 10 epochs, prints the loss of every epoch and the accuracy on the other 899
images. About 15 s on two CPU cores.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from ddf import DDFPack


class DDFBlock(nn.Module):
    """Dynamic filters mix pixels, two 1x1 convolutions mix channels; (B, C, H, W) to (B, C, Ho, Wo)."""

    def __init__(self, channels: int, stride: int = 1, expansion: int = 2) -> None:
        super().__init__()
        self.mix_pixels = nn.Sequential(
            DDFPack(channels, kernel_size=3, stride=stride, head=4, se_ratio=0.25), nn.BatchNorm2d(channels)
        )
        self.mix_channels = nn.Sequential(
            nn.Conv2d(channels, channels * expansion, 1, bias=False),
            nn.BatchNorm2d(channels * expansion),
            nn.ReLU(),
            nn.Conv2d(channels * expansion, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        # DDFPack keeps Ho = (H - 1) // stride + 1, which is what pooling with ceil_mode gives
        self.shortcut = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.mix_channels(F.relu(self.mix_pixels(x))))


def make_network(channels: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        DDFBlock(channels),
        DDFBlock(channels, stride=2),
        DDFBlock(channels),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, 10),
    )


def main(epochs: int = 10) -> tuple[list[float], float]:
    """Returns the mean loss of every epoch and the accuracy on images that were not trained on."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
    labels = torch.tensor(digits.target)
    network = make_network()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, epochs=epochs, steps_per_epoch=29)
    losses = []
    for epoch in range(epochs):
        batches = torch.randperm(898).split(32)
        total = 0.0
        for batch in batches:
            loss = F.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / len(batches)
        losses.append(total)
        print(f'epoch {epoch}  loss {total:.3f}')
    network.eval()
    with torch.no_grad():
        correct = network(images[898:]).argmax(1) == labels[898:]
    accuracy = correct.float().mean().item()
    print(f'accuracy on 899 other images: {accuracy:.1%}')
    return losses, accuracy


if __name__ == '__main__':
    main()
