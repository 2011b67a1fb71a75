"""The language model around a recurrent cell: tied embedding and decoder, and five dropouts."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding

from fastdarts.mixed.mixed_op import Backend, check_backend
from fastdarts.ops.cell_plan import CellPlan
from fastdarts.spaces.recurrent import fused
from fastdarts.spaces.recurrent.cell import INIT, CellMasks, RecurrentCore
from fastdarts.tasks.language import Masks


class LanguageLayers(nn.Module):
    """Base of the networks that predict the next word; a subclass calls `make_layers` and names plan and op weights.

    The decoder's weight is the embedding (tied). There is one layer; embedding, hidden state and output have one width.
    """

    def make_layers(self, vocabulary: int, width: int, nodes: int, norm: bool, backend: Backend) -> None:
        """Make the layers.

        Args:
            vocabulary: number of words.
            width: d, of embedding, states and hidden state.
            nodes: number of the cell's nodes.
            norm: True for a search cell.
            backend: how cell and loss are computed.

        Raises: ValueError for a size below 1 or an unknown backend.
        """
        check_backend(backend)
        for name, value in {"vocabulary": vocabulary, "width": width}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        self.vocabulary, self.width, self.backend = vocabulary, width, backend
        self.encoder = nn.Embedding(vocabulary, width)
        nn.init.uniform_(self.encoder.weight, -INIT, INIT)
        self.rnns = nn.ModuleList([RecurrentCore(width, nodes, norm)])
        self.decoder = nn.Linear(width, vocabulary)
        self.decoder.weight = self.encoder.weight
        nn.init.zeros_(self.decoder.bias)

    @abstractmethod
    def relaxed(self) -> tuple[Tensor, CellPlan]:
        """Return the op weights of a pass and the plan whose terms index them."""

    def forward(self, words: Tensor, hidden: Tensor | None = None, masks: Masks | None = None) -> Tensor:
        """Return the hidden state after each word, [T, B, d], before dropout.

        Args:
            words: [T, B] indices into the vocabulary.
            hidden: [B, d], the state before the window; None for zeros.
            masks: dropout masks; None in evaluation.
        """
        if hidden is None:
            hidden = self.encoder.weight.new_zeros(words.shape[1], self.width)
        x = embedding(words, self.encoder.weight)
        if masks is not None:
            if masks.rows.numel():
                x = x * embedding(words, masks.rows)
            x = x * masks.embedded
        weights, plan = self.relaxed()
        cell_masks = None if masks is None else CellMasks(masks.inputs, masks.hidden)
        core = self.rnns[0]
        assert isinstance(core, RecurrentCore)
        if fused.serves(self.backend, x.device, x.dtype):
            return fused.run_cell(core, x, hidden, cell_masks, weights, plan)
        read: Tensor = core(x, hidden, cell_masks, weights, plan)
        return read

    def nll(self, outputs: Tensor, targets: Tensor, shares: Tensor | None = None) -> Tensor:
        """Return the mean negative log-likelihood of the targets in nats, a scalar.

        Args:
            outputs: [T, B, d], after dropout.
            targets: [T, B] indices into the vocabulary.
            shares: [T], shares of the steps in the mean; None for equal ones.
        """
        if fused.serves(self.backend, outputs.device, outputs.dtype):
            return fused.nll(self.decoder, outputs, targets, shares)
        logits, words = self.decoder(outputs).flatten(0, 1), targets.flatten()
        if shares is None:
            return cross_entropy(logits, words)
        return (cross_entropy(logits, words, reduction="none").view(targets.shape).mean(1) * shares).sum()

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the products for one word, as many as the matrices have numbers."""
        return sum(weight.numel() for weight in self.parameters() if weight.dim() > 1)

    def predict(self, words: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits [T, B, vocabulary] of each next word, and the hidden state [B, d] behind the window."""
        read = self(words, hidden)
        return self.decoder(read), read[-1]
