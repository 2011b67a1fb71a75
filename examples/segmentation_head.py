"""Search for a segmentation network: a stem of stride 2 and a head that classifies each pixel.

    python examples/segmentation_head.py

The images are noise with a bright rectangle; the task is to mark its pixels.
"""

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from fastdarts import Architect, EvalNetwork, SearchNetwork


def stem(in_channels: int, channels: int) -> nn.Module:
    """Return the first layers: half of the image's height and width."""
    return nn.Sequential(nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False), nn.BatchNorm2d(channels))


class DenseHead(nn.Module):
    """Logits of each pixel; stem and two reduction cells have divided the image's sides by eight."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(self.classifier(x), scale_factor=8, mode="bilinear")


def rectangles(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return images [count, 3, size, size] and the class 0 or 1 of each pixel [count, size, size]."""
    low, high = torch.randint(size // 2, (2, count, 1)), torch.randint(size // 2, size, (2, count, 1))
    inside = (torch.arange(size) >= low) & (torch.arange(size) < high)
    mask = inside[0][:, :, None] & inside[1][:, None, :]
    return torch.randn(count, 3, size, size) + 2 * mask[:, None], mask.long()


parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--size", type=int, default=32)
given = parser.parse_args()

torch.manual_seed(0)
options = {"C": 4, "num_classes": 2, "layers": 3, "stem": stem, "head": DenseHead}
network = SearchNetwork(**options)
architect = Architect(network, lr=0.01)
sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for step in range(given.steps):
    images, classes = rectangles(16, given.size)
    architect.step((images, classes), rectangles(16, given.size), xi=0.05, w_optimizer=sgd, order=1)
    sgd.zero_grad()
    logits = network(images)
    loss = cross_entropy(logits, classes)
    loss.backward()
    sgd.step()
    if step % 20 == 0 or step == given.steps - 1:
        accuracy = (logits.argmax(1) == classes).float().mean()
        print(f"step {step}: loss {loss:.3f}, pixels classified right {accuracy:.3f}")
print(network.genotype())
found = EvalNetwork(network.genotype(), auxiliary=False, **options)
print("discrete network:", tuple(found(rectangles(2, given.size)[0]).shape))
