"""The search network of the recurrent space: a language model whose cell mixes all activations on all edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import Backend, MixedOp
from fastdarts.ops.cell_plan import CellPlan, search_plan
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.recurrent.architecture import ACTIVATIONS, PRIMITIVES, STEPS, RecurrentCell
from fastdarts.spaces.recurrent.language_model import LanguageLayers
from fastdarts.spaces.supernet import Mixes, Supernet

ENDS = tuple((source, target) for target in range(1, STEPS + 1) for source in range(target))
"""(source, target) of each of the 36 edges; state 0 is made from the input."""


def groups_of(primitives: Sequence[str] = PRIMITIVES) -> dict[str, Group]:
    """Return the space's one group: the edges of the cell."""
    return {"cell": Group("recurrent cell", (tuple(primitives),) * len(ENDS), ENDS, frozenset(ACTIVATIONS))}


class RecurrentSearchNetwork(LanguageLayers, Supernet):
    """The continuous relaxation of a recurrent cell (Liu et al., ICLR 2019, section 3.1.2).

    Args:
        vocabulary: number of words.
        width: d, of embedding, states and hidden state.
        backend: "reference" for plain modules, "fused" for the kernels, "auto" for these where they are available.
        primitives: candidate activations of every edge.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 300,
        backend: Backend = "auto",
        *,
        primitives: Sequence[str] = PRIMITIVES,
    ) -> None:
        super().__init__(groups_of(primitives))
        self.make_layers(vocabulary, width, STEPS, norm=True, backend=backend)
        self.make_alphas()

    def relaxed(self) -> tuple[Tensor, CellPlan]:
        mix = self.op_weights()["cell"]
        weights = mix.weights
        if mix.added is not None:
            weights = torch.cat([weights, mix.added[:, None]], dim=1)
        plan = search_plan(self.groups["cell"].ops, ENDS, mix.active, mix.added is not None)
        return weights, plan

    @contextmanager
    def normalised_by_batch(self) -> Iterator[None]:
        """Inside, the norm takes the statistics of the batch in eval mode, too, and leaves the running ones alone.

        All states of the cell share the running statistics, which follow the latest ten: they fit none of the states.
        """
        norm = self.get_submodule("rnns.0.bn")
        was_training = norm.training
        with self.frozen_statistics():
            norm.train()
            try:
                yield
            finally:
                norm.train(was_training)

    def mixed_ops(self, group: str) -> list[list[MixedOp]]:
        """Return nothing: the activations are computed by the cell, not by `MixedOp`s."""
        return []

    def derive(self, scores: Mapping[str, Tensor], choice: Choice = Choice()) -> RecurrentCell:  # noqa: B008 - frozen
        """Return the cell with each node's strongest edge, and on it the strongest activation; ties to the first.

        Args:
            scores: [36, ops] of "cell"; `none` does not compete.
            choice: only its ranking has a meaning here.
        """
        ops, values = self.groups["cell"].ops, choice.ranked("cell", scores["cell"])
        nodes = []
        for rows in self.groups["cell"].entering():
            candidates = [
                (-values[row, column].item(), row - rows.start, column)
                for row in range(rows.start, rows.stop)
                for column, name in enumerate(ops[row])
                if name != "none"
            ]
            _, source, column = min(candidates)
            nodes.append((ops[rows.start + source][column], source))
        return RecurrentCell(tuple(nodes))

    def mixes_of(self, architecture: RecurrentCell) -> Mixes:
        """Return op weights with which this network computes a cell; unused edges put their weight on `none`."""
        group = self.groups["cell"]
        weights = torch.zeros(group.shape)
        active: list[list[int]] = [[] for _ in group.ops]
        for rows, (name, source) in zip(group.entering(), architecture.nodes, strict=True):
            row = rows.start + source
            active[row] = [group.ops[row].index(name)]
            weights[row, active[row]] = 1
        for row, columns in enumerate(active):
            if not columns and "none" in group.ops[row]:
                weights[row, group.ops[row].index("none")] = 1
        return {"cell": Mix(weights.to(self.alphas["cell"]), active)}

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> RecurrentCell:
        """Draw a cell uniformly: of each node a predecessor and an activation. `max_skips` has no meaning here."""
        names = [name for name in self.groups["cell"].ops[0] if name != "none"]

        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        return RecurrentCell(tuple((names[draw(len(names))], draw(node + 1)) for node in range(STEPS)))
