"""Predict how a network of few bits scores, first from networks in floats (Wang et al., CVPR 2020)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdarts.methods.predictor import HIDDEN, minimise
from fastdarts.methods.scored import Scored
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.encoding import Encoding


class BitPredictor(nn.Module):
    """Predict scores by an MLP with three hidden layers of 400 ReLUs.

    A matrix of the bits adds to the output of the first one. It begins as zeros: until `fit_bits`, a network of few
    bits is predicted as it is in floats.

    Args:
        encoding: of the space.
        seed: of the initial weights.
    """

    base: Tensor
    scale: Tensor

    def __init__(self, encoding: Encoding, seed: int) -> None:
        super().__init__()
        self.encoding = encoding
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.first = nn.Linear(encoding.size, HIDDEN)
            self.bits = nn.Linear(encoding.bits, HIDDEN, bias=False)
            hidden = [nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
            self.rest = nn.Sequential(*hidden, nn.Linear(HIDDEN, 1))
        nn.init.zeros_(self.bits.weight)
        self.register_buffer("base", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, layers: Tensor, bits: Tensor | None = None) -> Tensor:
        """Predict scores [N] from encodings [N, size] and, of networks of few bits, [N, bits]."""
        hidden = self.first(layers).relu()
        if bits is not None:
            hidden = hidden + self.bits(bits)
        return self.base + self.scale * self.rest(hidden)[:, 0]

    def fit(self, known: Sequence[Scored]) -> None:
        """Fit all but the bits to scores of networks in floats."""
        scores = torch.tensor([one.score for one in known])
        self.base, self.scale = scores.mean(), scores.std(correction=0).clamp_min(1e-6)
        layers = torch.stack([self.encoding.layers(one.architecture) for one in known])
        minimise(self, lambda: ((self(layers) - scores) / self.scale).square().mean())

    def fit_bits(self, known: Sequence[Scored]) -> None:
        """Fit everything on to scores of networks of few bits."""
        scores = torch.tensor([one.score for one in known])
        layers = torch.stack([self.encoding.layers(one.architecture) for one in known])
        bits = torch.stack([self.encoding.bits_of(one.architecture) for one in known])
        minimise(self, lambda: ((self(layers, bits) - scores) / self.scale).square().mean())

    @torch.no_grad()
    def predict(self, architecture: LayerChoices) -> float:
        """Return the predicted score of a network of few bits."""
        return float(self(self.encoding.layers(architecture)[None], self.encoding.bits_of(architecture)[None]))
