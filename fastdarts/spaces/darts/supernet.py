"""The search network of DARTS' convolutional space: a stack of cells whose edges mix all candidate operations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import Backend, MixedOp, check_backend, check_input
from fastdarts.primitives.table import PRIMITIVES, EdgeOps, check_primitives, per_edge
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.cell_genotypes import PREFIX, CellGenotypes
from fastdarts.spaces.darts.derivation import DerivedCell, derive_cells, random_cells
from fastdarts.spaces.darts.genotype import Genotype, edges_of
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.network import Head, Stem
from fastdarts.spaces.supernet import Mixes, Supernet

TITLES = {"normal": "normal cell", "reduce": "reduction cell"}


def groups_of(
    primitives: Sequence[str], candidates: Mapping[str, Sequence[Sequence[str]]] | None = None, steps: int = 4
) -> dict[str, Group]:
    """Return the space's groups: the edges of normal and of reduction cells.

    Args:
        primitives: the ops of every edge.
        candidates: each edge's own ops instead: for "normal" and for "reduce" a list of names an edge.
        steps: nodes of a cell.
    """
    ends = tuple(edges_of(steps))
    return {
        name: Group(title, per_edge(candidates[name] if candidates else primitives, len(ends)), ends)
        for name, title in TITLES.items()
    }


def own_groups(types: Mapping[str, Group], layers: int) -> dict[str, Group]:
    """Return a group for each cell of a network: the edges of `types`, the cell's alone."""
    groups = {}
    for index in range(layers):
        reduction = _is_reduction(index, layers)
        title = f"cell {index} (reduction)" if reduction else f"cell {index}"
        groups[f"{PREFIX}{index}"] = replace(types[_type_of(reduction)], title=title)
    return groups


class SearchNetwork(Supernet):
    """The continuous relaxation of DARTS' convolutional space (Liu et al., ICLR 2019, sections 2.1 and 3.1).

    Reduction cells are at one third and two thirds of the depth and double the channels. Parameter names are those
    of the original code.

    Args:
        C: channels of the first cells' nodes. Odd ones go with every op, since reduction cells double them.
        num_classes: size of the logits.
        layers: number of cells.
        steps, multiplier: nodes of a cell, and how many of the last ones it puts out.
        stem_multiplier: the stem has stem_multiplier * C channels.
        in_channels: channels of the images.
        primitives: candidate ops of every edge.
        backend: see `MixedOp`.
        candidates: each edge's own candidates: for "normal" and for "reduce" a list of names an edge, equally many in a
            cell. They are among the primitives.
        auxiliary: ops that every edge has besides its candidates, without an alpha; their op weights follow the
            candidates'.
        K: only 1/K of the channels go through the ops (PC-DARTS).
        auxiliary_skip: every edge also has a skip connection with weight 1, which found cells keep. Op weights do not
            name it; an edge whose ops have all been removed has none.
        stem: make(in_channels, channels) -> your own first layers instead of a 3x3 convolution.
        head: make(channels, num_classes) -> your own last layers instead of global pooling and a linear classifier, for
            example for dense prediction.
        own_cells: every cell has alphas of its own, in groups cell0, cell1, ... in place of normal and reduce, and the
            architecture is a `CellGenotypes`.
    """

    def __init__(
        self,
        C: int = 16,
        num_classes: int = 10,
        layers: int = 8,
        steps: int = 4,
        multiplier: int = 4,
        stem_multiplier: int = 3,
        in_channels: int = 3,
        primitives: Sequence[str] = PRIMITIVES,
        backend: Backend = "auto",
        *,
        candidates: Mapping[str, Sequence[Sequence[str]]] | None = None,
        auxiliary: Sequence[str] = (),
        K: int = 1,
        auxiliary_skip: bool = False,
        stem: Stem | None = None,
        head: Head | None = None,
        own_cells: bool = False,
    ) -> None:
        for name, value in (
            ("C", C),
            ("num_classes", num_classes),
            ("layers", layers),
            ("steps", steps),
            ("multiplier", multiplier),
            ("stem_multiplier", stem_multiplier),
            ("in_channels", in_channels),
            ("K", K),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        check_backend(backend)
        if multiplier > steps:
            raise ValueError(f"multiplier must be at most steps = {steps}; got {multiplier}")
        if own_cells and auxiliary_skip:
            raise ValueError("own_cells and auxiliary_skip exclude each other: only two kinds of cells keep the skip")
        names = check_primitives(primitives)
        if candidates is not None and set(candidates) != set(TITLES):
            raise ValueError(f"candidates must have the keys {', '.join(TITLES)}; got {', '.join(candidates)}")
        types = groups_of(names, candidates, steps)
        for name in {name for group in types.values() for row in group.ops for name in row}:
            if name not in names:
                raise ValueError(f"candidates must be among the primitives {', '.join(names)}; got {name}")
        super().__init__(own_groups(types, layers) if own_cells else types, tuple(auxiliary))
        self._own_cells = own_cells
        self.steps = steps
        self.multiplier = multiplier
        self.in_channels = in_channels
        self.backend = backend
        self.auxiliary_skip = auxiliary_skip
        self._primitives = names

        C_prev_prev, C_prev, C_cell = stem_multiplier * C, stem_multiplier * C, C
        if stem is None:
            self.stem: nn.Module = nn.Sequential(
                nn.Conv2d(in_channels, C_prev, 3, padding=1, bias=False), nn.BatchNorm2d(C_prev)
            )
        else:
            self.stem = stem(in_channels, C_prev)
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = _is_reduction(i, layers)
            C_cell *= 2 if reduction else 1
            further = (*self.auxiliary, *(["skip_connect"] if auxiliary_skip else []))
            ops: EdgeOps = tuple((*row, *further) for row in types[_type_of(reduction)].ops)
            self.cells.append(
                Cell(steps, multiplier, C_prev_prev, C_prev, C_cell, reduction, reduction_prev, ops, backend, K)
            )
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, multiplier * C_cell
        if head is None:
            self.global_pooling = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(C_prev, num_classes)
        else:
            self.head = head(C_prev, num_classes)
        self.make_alphas()

    @property
    def primitives(self) -> tuple[str, ...]:
        """Return all candidate ops' names: the columns of alphas.npz."""
        return self._primitives

    @property
    def alphas_normal(self) -> Tensor:
        """Return the alphas [edges, ops] of the normal cells."""
        return self.alphas["normal"]

    @property
    def alphas_reduce(self) -> Tensor:
        """Return the alphas [edges, ops] of the reduction cells."""
        return self.alphas["reduce"]

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, num_classes] (or your head's output) from images [N, in_channels, H, W]."""
        check_input(x, self.in_channels)
        if self.backend != "reference":
            x = x.contiguous(memory_format=torch.channels_last)  # the kernels' layout, once for the whole network
        mixes = self.op_weights()
        s0 = s1 = self.stem(x)
        seen = dict.fromkeys(self.groups, 0)
        for cell, group in self._cells():
            mix = self._with_skip(mixes[group].of_cell(seen[group]), self._columns(group))
            seen[group] += 1
            s0, s1 = s1, cell(s0, s1, mix.weights, mix.active, mix.passing, mix.added, mix.drop_path)
        if hasattr(self, "head"):
            return self.head(s1)
        return self.classifier(self.global_pooling(s1).flatten(1))

    def _columns(self, group: str) -> int:
        """Return the number of ops that op weights name."""
        return self.groups[group].shape[1] + len(self.auxiliary)

    def _with_skip(self, mix: Mix, columns: int) -> Mix:
        """Return the mix with a last column for the auxiliary skip, unless it has that already."""
        if not self.auxiliary_skip or mix.weights.shape[1] > columns:
            return mix
        weights = torch.cat([mix.weights, mix.weights.new_ones(len(mix.weights), 1)], dim=1)
        active = None if mix.active is None else [[*row, columns] if row else [] for row in mix.active]
        return mix._replace(weights=weights, active=active)

    def mixed_ops(self, group: str) -> list[list[MixedOp]]:
        """Return the mixed ops of each cell that a group describes."""
        return [cell.edges() for cell, name in self._cells() if name == group]

    def untrained(self) -> list[Group]:
        """Return the cell that a network of one or two layers has not."""
        return [group for name, group in self.groups.items() if not self.mixed_ops(name)]

    def derive(
        self,
        scores: Mapping[str, Tensor],
        choice: Choice = Choice(),  # noqa: B008 - frozen
    ) -> Genotype | CellGenotypes:
        """Return the architecture of scores [edges, ops]; see `derivation.derive_cells`."""
        return self._architecture(derive_cells(self.groups, scores, choice, self.concat(), self._limited()))

    def mixes_of(self, architecture: Genotype | CellGenotypes) -> Mixes:
        """Return op weights with which this network computes an architecture."""
        mixes = {}
        skip = False
        if self.auxiliary_skip and isinstance(architecture, Genotype) and architecture.auxiliary_skip:
            skip, architecture = True, architecture.without_auxiliary_skip()
        for name, group in self.groups.items():
            weights = torch.zeros(len(group.ops), self._columns(name) + self.auxiliary_skip)
            for state, node in enumerate(architecture.nodes(name), start=2):  # type: ignore[arg-type]
                for op, source in node:
                    edge = group.ends.index((source, state))
                    weights[edge, group.ops[edge].index(op)] += 1
                    if skip:
                        weights[edge, -1] = 1
            active = [row.nonzero().flatten().tolist() for row in weights]
            mixes[name] = Mix(weights.to(self.alphas[name]), active)
        return mixes

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> Genotype | CellGenotypes:
        """Draw an architecture uniformly: two predecessors of each node, any op (`none`, too) on both edges."""
        return self._architecture(random_cells(self.groups, generator, self.concat(), max_skips, self._limited()))

    def concat(self) -> list[int]:
        """Return the states that a cell puts out."""
        return list(range(2 + self.steps - self.multiplier, 2 + self.steps))

    def _cells(self) -> Iterator[tuple[Cell, str]]:
        """Yield each cell with the name of its group."""
        for index, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            yield cell, f"{PREFIX}{index}" if self._own_cells else _type_of(cell.reduction)

    def _limited(self) -> set[str]:
        """Return the groups whose skip connections may be limited: those of cells that are no reductions."""
        if not self._own_cells:
            return {"normal"}
        return {name for cell, name in self._cells() if not cell.reduction}

    def _architecture(self, cells: Mapping[str, DerivedCell]) -> Genotype | CellGenotypes:
        if self._own_cells:
            found = (Genotype(*cell, *cell).cell(0, reduction=False) for cell in cells.values())
            return CellGenotypes(tuple(found))
        genotype = Genotype(*cells["normal"], *cells["reduce"])
        return genotype.with_auxiliary_skip() if self.auxiliary_skip else genotype


def _is_reduction(index: int, layers: int) -> bool:
    return index in (layers // 3, 2 * layers // 3)


def _type_of(reduction: bool) -> str:
    return "reduce" if reduction else "normal"
