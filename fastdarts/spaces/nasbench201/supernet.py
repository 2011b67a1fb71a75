"""The search network of NAS-Bench-201: three stages of cells of six mixed edges."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastdarts.mixed.graph import nodes_of
from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import Backend, MixedOp, check_backend, check_input, read_fused
from fastdarts.primitives.table import EdgeOps
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.nasbench201.architecture import ENDS, PRIMITIVES, NasBench201Cell
from fastdarts.spaces.nasbench201.blocks import ResidualBlock, stages
from fastdarts.spaces.supernet import Mixes, Supernet

_MODULES = {"avg_pool_3x3": "bare_avg_pool_3x3"}  # pools have no batch norm here


def groups_of(primitives: Sequence[str] = PRIMITIVES) -> dict[str, Group]:
    """Return the space's one group: the edges of the cell that all stages share."""
    return {"cell": Group("cell", (tuple(primitives),) * len(ENDS), ENDS, whole=True)}


class SearchCell(nn.Module):
    """Four nodes, an edge between each two; the last node is the output: [N, C, H, W] -> [N, C, H, W]."""

    def __init__(self, C: int, ops: Sequence[Sequence[str]], backend: Backend, K: int) -> None:
        super().__init__()
        if C % K:
            raise ValueError(f"C must be a multiple of K = {K}; got {C}")
        self.C = C
        self.K = K
        self._ops = nn.ModuleList(
            MixedOp(C // K, 1, [_MODULES.get(name, name) for name in names], backend) for names in ops
        )

    def forward(self, x: Tensor, mix: Mix) -> Tensor:
        """Mix the ops of each edge as `mix` says."""
        edges = self.edges()
        read = read_fused(edges, x, mix.active)
        mix = mix if self.training else mix._replace(drop_path=None)
        return nodes_of(edges, read, ENDS, [x], mix, self.K)[:, -self.C :]

    def edges(self) -> list[MixedOp]:
        """Return the mixed ops, in the order of `ENDS`."""
        return list(self._ops)  # type: ignore[arg-type]


class SearchNetwork201(Supernet):
    """The continuous relaxation of NAS-Bench-201 (Dong and Yang, ICLR 2020, section 2.1).

    As in the authors' search code, batch norm in cells has no scale and shift. Their convolutions have biases, which
    batch norm removes again; these have none.

    Args:
        C: channels of the first stage.
        num_classes: size of the logits.
        layers: cells of each of the three stages.
        in_channels: channels of the images.
        backend: see `MixedOp`.
        primitives: candidate ops of every edge.
        candidates: each edge's own candidates: for "cell" a list of names an edge, equally many.
        auxiliary: ops that every edge has besides its candidates, without an alpha.
        K: only 1/K of the channels go through the ops (PC-DARTS).
        stem: make(in_channels, C) -> your own first layers instead of a 3x3 convolution.
        head: make(channels, num_classes) -> your own last layers.
    """

    def __init__(
        self,
        C: int = 16,
        num_classes: int = 10,
        layers: int = 5,
        in_channels: int = 3,
        backend: Backend = "auto",
        *,
        primitives: Sequence[str] = PRIMITIVES,
        candidates: Mapping[str, EdgeOps] | None = None,
        auxiliary: Sequence[str] = (),
        K: int = 1,
        stem: Callable[[int, int], nn.Module] | None = None,
        head: Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        sizes = {"C": C, "num_classes": num_classes, "layers": layers, "in_channels": in_channels, "K": K}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        check_backend(backend)
        groups = groups_of(primitives)
        if candidates is not None:
            groups = {"cell": Group("cell", tuple(map(tuple, candidates["cell"])), ENDS, whole=True)}
        super().__init__(groups, tuple(auxiliary))
        self.in_channels = in_channels
        self.backend = backend
        ops = [(*row, *self.auxiliary) for row in groups["cell"].ops]
        if stem is None:
            self.stem: nn.Module = nn.Sequential(nn.Conv2d(in_channels, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        else:
            self.stem = stem(in_channels, C)
        self.cells = nn.ModuleList()
        C_prev = C
        for C_cell, residual in stages(C, layers):
            self.cells.append(ResidualBlock(C_prev, C_cell) if residual else SearchCell(C_cell, ops, backend, K))
            C_prev = C_cell
        if head is None:
            self.lastact = nn.Sequential(nn.BatchNorm2d(C_prev), nn.ReLU())
            self.global_pooling = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(C_prev, num_classes)
        else:
            self.head = head(C_prev, num_classes)
        self.make_alphas()

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, num_classes] (or your head's output) from images [N, in_channels, H, W]."""
        check_input(x, self.in_channels)
        if self.backend != "reference":
            x = x.contiguous(memory_format=torch.channels_last)
        mix = self.op_weights()["cell"]
        x = self.stem(x)
        seen = 0
        for cell in self.cells:
            x = cell(x, mix.of_cell(seen)) if isinstance(cell, SearchCell) else cell(x)
            seen += isinstance(cell, SearchCell)
        if hasattr(self, "head"):
            return self.head(x)
        return self.classifier(self.global_pooling(self.lastact(x)).flatten(1))

    def mixed_ops(self, group: str) -> list[list[MixedOp]]:
        """Return the mixed ops of each cell."""
        return [cell.edges() for cell in self.cells if isinstance(cell, SearchCell)]

    def derive(self, scores: Mapping[str, Tensor], choice: Choice = Choice()) -> NasBench201Cell:  # noqa: B008 - frozen
        """Return the cell of each edge's strongest op, `none` included, ties to the first.

        Args:
            scores: [6, ops] of "cell".
            choice: `threshold` makes an edge without an op above it `none`; `max_skips` replaces the weakest skip
                connections by their edges' next op; the rest has no meaning here.
        """
        ops, score = self.groups["cell"].ops, scores["cell"]
        rows = choice.ranked("cell", score).tolist()
        columns = [max(range(len(row)), key=row.__getitem__) for row in rows]
        names = [row[column] for row, column in zip(ops, columns, strict=True)]
        if choice.threshold is not None:
            above = [rows[edge][column] >= choice.threshold for edge, column in enumerate(columns)]
            names = [name if stays else "none" for name, stays in zip(names, above, strict=True)]
        while choice.max_skips is not None and names.count("skip_connect") > choice.max_skips:
            skips = [edge for edge, name in enumerate(names) if name == "skip_connect" and len(ops[edge]) > 1]
            if not skips:
                break
            weakest = min(skips, key=lambda edge: float(score[edge, ops[edge].index("skip_connect")]))
            others = [column for column, name in enumerate(ops[weakest]) if name != "skip_connect"]
            names[weakest] = ops[weakest][max(others, key=rows[weakest].__getitem__)]
        return NasBench201Cell(tuple(names))

    def mixes_of(self, architecture: NasBench201Cell) -> Mixes:
        """Return op weights with which this network computes a cell; `none` runs nothing."""
        group = self.groups["cell"]
        weights = torch.zeros(len(group.ops), group.shape[1] + len(self.auxiliary))
        for edge, name in enumerate(architecture.ops):
            if name in group.ops[edge]:  # `none` may have been left out
                weights[edge, group.ops[edge].index(name)] = 1
        active = [row.nonzero().flatten().tolist() for row in weights]
        return {"cell": Mix(weights.to(self.alphas["cell"]), active)}

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> NasBench201Cell:
        """Draw a cell uniformly; with `max_skips`, among those with so many skip connections or fewer."""
        ops = self.groups["cell"].ops
        while True:
            names = tuple(row[int(torch.randint(len(row), (), generator=generator))] for row in ops)
            if max_skips is None or names.count("skip_connect") <= max_skips:
                return NasBench201Cell(names)
