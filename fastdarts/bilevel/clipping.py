"""Clip the gradients of a second-order alpha step, as DARTS' search of a recurrent cell does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from fastdarts.bilevel.flat import FlatWeights
from fastdarts.ops import flat_ops


@dataclass(frozen=True)
class VirtualClip:
    """Clip the gradients of the training loss (for the virtual step) and of the validation loss (the vector v).

    Attributes:
        max_norm: largest Euclidean norm of each.
        published: True for the factor of the authors' code, max_norm / norm also where that is above 1 and nothing is
            clipped, before the implicit term.
        held: weights that the virtual step leaves as they are. In the authors' code these are the tied embedding and
            decoder, since a stale copy of the one overwrites the other.
    """

    max_norm: float
    published: bool = False
    held: Sequence[Tensor] = ()

    def clip(self, gradient: Tensor) -> Tensor:
        """Scale `gradient` [n] down to `max_norm` in place; return the implicit term's factor, a float64 scalar."""
        ratio = self.max_norm / (flat_ops.norm(gradient) + 1e-6)
        factor = ratio.clamp(max=1.0)
        gradient.mul_(factor)
        return ratio if self.published else factor

    def restore_held(self, flat: FlatWeights, saved: Tensor) -> None:
        """Put the weights that are held back to their values in `saved` [n]."""
        held = set(map(id, self.held))
        for weight, before in zip(flat.weights, flat.views(saved), strict=True):
            if id(weight) in held:
                weight.data.copy_(before)
