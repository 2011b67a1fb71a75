"""Use a discrete network as a backbone, by the interface of timm's `features_only`."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdarts.spaces.network import DiscreteNetwork


class Backbone(nn.Module):
    """Return the feature maps of a network's cells, one for each size of image.

    As with `timm.create_model(..., features_only=True)`, `feature_info` tells of each map its channels, its reduction
    and the module that makes it, and a call returns the maps, large ones first. The weights are those of the network,
    which stays trainable.

    Args:
        network: a network with a list `cells`.
        image_shape: (C, H, W) of its images, from which reductions are measured.
        out_indices: which of the maps to return, from 0 for the largest; negative ones count from the last. None for
            all.

    Raises: ValueError for a network without cells, or an index without a map.
    """

    def __init__(
        self, network: DiscreteNetwork, image_shape: Sequence[int], out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        cells = getattr(network, "cells", None)
        if not isinstance(cells, nn.ModuleList):
            raise ValueError(f"a backbone is made of a network with cells; {type(network).__name__} has none")
        self.network = network
        self._maps: dict[int, Tensor] = {}
        self._chosen: list[int] = list(range(len(cells)))
        for index, cell in enumerate(cells):
            cell.register_forward_hook(self._keeper(index))
        infos = self._measured(image_shape)
        indices = range(len(infos)) if out_indices is None else out_indices
        wrong = [index for index in indices if not -len(infos) <= index < len(infos)]
        if wrong:
            raise ValueError(f"out_indices must be among the {len(infos)} maps, 0..{len(infos) - 1}; got {wrong[0]}")
        self.feature_info = [infos[index] for index in indices]
        self._chosen = [int(info["module"].removeprefix("cells.")) for info in self.feature_info]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the feature maps [N, C_i, H_i, W_i] of images x [N, C, H, W]."""
        self.network(x)
        maps = [self._maps[index] for index in self._chosen]
        self._maps.clear()
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last of the chosen maps."""
        return self(x)[-1]

    def _keeper(self, index: int) -> Any:
        def keep(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if index in self._chosen:
                self._maps[index] = output

        return keep

    def _measured(self, image_shape: Sequence[int]) -> list[dict[str, Any]]:
        """Return the last cell of each size, by a pass on a blank image in eval mode."""
        training = self.network.training
        weight = next(self.network.parameters())
        with torch.no_grad():
            self.network.eval()(torch.zeros(1, *image_shape, dtype=weight.dtype, device=weight.device))
        self.network.train(training)
        last = {tuple(made.shape[2:]): (index, made.shape[1]) for index, made in self._maps.items()}
        self._maps.clear()
        return [
            {"num_chs": channels, "reduction": round(image_shape[1] / size[0]), "module": f"cells.{index}"}
            for size, (index, channels) in last.items()
        ]
