"""The language model of a found cell, as it is trained from scratch."""

import torch
from torch import Tensor

from fastdarts.mixed.mixed_op import Backend
from fastdarts.ops.cell_plan import CellPlan, derived_plan
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.recurrent.architecture import RecurrentCell
from fastdarts.spaces.recurrent.language_model import LanguageLayers


class RecurrentNetwork(LanguageLayers, DiscreteNetwork):
    """Embedding, a found cell without batch norm, and the tied decoder (Liu et al., ICLR 2019, section 3.2.2).

    Args:
        architecture: the cell.
        vocabulary: number of words.
        width: d, of embedding, states and hidden state.
        backend: "reference" for plain modules, "fused" for the kernels, "auto" for these where they are available.
    """

    backend: Backend

    def __init__(
        self, architecture: RecurrentCell, vocabulary: int, width: int = 850, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.make_layers(vocabulary, width, len(architecture.nodes), norm=False, backend=backend)
        self._weights: Tensor
        self.register_buffer("_weights", torch.ones(len(architecture.nodes)), persistent=False)

    def relaxed(self) -> tuple[Tensor, CellPlan]:
        return self._weights, derived_plan(self.architecture.nodes, self.architecture.states)
