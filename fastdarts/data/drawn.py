"""Share among augmentations how they make random choices: by their own generator, for the rows of a global batch."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from fastdarts.data.modern import Transform
from fastdarts.data.share import Share


class DrawnAugment(ABC):
    """Draw the random choices for a batch, then apply them.

    Args:
        seed: seed of `generator`, which makes all random choices.
        device: device of the images.
    """

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.before: Transform | None = None
        """Transform that a call applies first; may be set at any time."""
        self.generator = torch.Generator(device)
        self.generator.manual_seed(seed)

    def __call__(self, images: Tensor, share: Share | None = None) -> Tensor:
        """Augment images [N, C, H, W]; return float32, channels-last.

        With a share, they are its rows of a global batch, for all of which random choices are made.
        """
        if self.before is not None:
            images = self.before(images)
        if share is None:
            return self.apply(images, self.draw(images))
        whole = self.draw(images[:1].expand(share.total, *images.shape[1:]))
        return self.apply(images, type(whole)(*map(share.of, whole)))

    @abstractmethod
    def draw(self, images: Tensor) -> Any:
        """Sample the random choices for `images`, of which only shape and device are used.

        Returns: a named tuple of tensors [N].
        """

    @abstractmethod
    def apply(self, images: Tensor, draw: Any) -> Tensor:
        """Augment `images` with the random choices `draw`, as a call does."""

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue the random choices from where `state` was taken, on the same kind of device."""
        self.generator.set_state(state["generator"])
