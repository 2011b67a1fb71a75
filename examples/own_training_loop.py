"""Search with a training loop of your own: SearchNetwork and Architect, no run folder, no configuration.

python examples/own_training_loop.py
"""

import argparse

import torch
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from fastdarts import Architect, SearchNetwork
from fastdarts.data import BatchStream, load, split
from fastdarts.data.augment import Augment

parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--steps", type=int, default=None, help="of an epoch (default: all)")
given = parser.parse_args()

torch.manual_seed(0)
data = load("digits")
weights_half, alphas_half = split(data, train_portion=0.5)
train, valid = BatchStream(weights_half, 48, seed=0), BatchStream(alphas_half, 48, seed=1)  # endless
augment = Augment(
    data.mean, data.std, crop_padding=1, flip=False, cutout=0, generator_seed=0, device=torch.device("cpu")
)

network = SearchNetwork(C=4, num_classes=10, layers=3, in_channels=1)
architect = Architect(network, lr=0.03)
sgd = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
schedule = CosineAnnealingLR(sgd, T_max=given.epochs)

for epoch in range(given.epochs):
    right = seen = 0
    for _ in range(given.steps or train.batches_per_epoch):
        (images, targets), (valid_images, valid_targets) = train.next(), valid.next()
        batch, valid_batch = (augment(images), targets), (augment(valid_images), valid_targets)
        xi = sgd.param_groups[0]["lr"]
        architect.step(batch, valid_batch, xi, sgd, order=2)

        sgd.zero_grad()
        logits = network(batch[0])
        cross_entropy(logits, targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        sgd.step()
        right += int((logits.argmax(1) == targets).sum())
        seen += len(targets)
    schedule.step()
    print(f"epoch {epoch + 1}: training accuracy {right / seen:.3f}, validation loss {float(architect.valid_loss):.3f}")
print(network.genotype())
