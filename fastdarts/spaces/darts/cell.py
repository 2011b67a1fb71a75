"""A cell of the search network: a directed acyclic graph of mixed edges over two input states."""

from collections.abc import Sequence

from torch import Tensor, nn

from fastdarts.mixed import fused
from fastdarts.mixed.graph import nodes_of
from fastdarts.mixed.mix import Active, DropPath, Mix
from fastdarts.mixed.mixed_op import Backend, MixedOp, check_active, check_input, check_weights_kind, read_fused
from fastdarts.primitives.modules import FactorizedReduce, ReLUConvBN
from fastdarts.primitives.table import PRIMITIVES, per_edge
from fastdarts.spaces.darts.genotype import edges_of


class Cell(nn.Module):
    """States 0 and 1 are the preprocessed inputs; each of the `steps` nodes sums a mixed edge from every earlier state.

    The output concatenates the last `multiplier` nodes: [N, multiplier * C, H', W'], where H', W' are halved (rounded
    up) in a reduction cell. Edges are numbered as in `genotype.edges_of`. `primitives` names the ops of every edge, or
    holds the names of each, equally many. With K > 1 an edge's ops see the first C/K channels; the others bypass them:
    as they are, or at stride 2 through a 2x2 max-pooling (PC-DARTS).
    """

    def __init__(
        self,
        steps: int,
        multiplier: int,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        primitives: Sequence[str] | Sequence[Sequence[str]] = PRIMITIVES,
        backend: Backend = "auto",
        K: int = 1,
    ) -> None:
        super().__init__()
        if C % K:
            raise ValueError(f"C must be a multiple of K = {K}; got {C}")
        self.steps = steps
        self.multiplier = multiplier
        self.C_prev_prev = C_prev_prev
        self.C_prev = C_prev
        self.C = C
        self.reduction = reduction
        self.reduction_prev = reduction_prev
        self.K = K
        self.preprocess0: FactorizedReduce | ReLUConvBN = (
            FactorizedReduce(C_prev_prev, C, affine=False)
            if reduction_prev
            else ReLUConvBN(C_prev_prev, C, affine=False)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        self._built = fused.signature(self.preprocess0), fused.signature(self.preprocess1)
        self._ends = edges_of(steps)
        self._ops = nn.ModuleList(
            MixedOp(C // K, 2 if reduction and source < 2 else 1, names, backend)
            for (source, _), names in zip(self._ends, per_edge(primitives, len(self._ends)), strict=True)
        )

    def forward(
        self,
        s0: Tensor,
        s1: Tensor,
        weights: Tensor,
        active: Active | None = None,
        passing: Tensor | None = None,
        added: Tensor | None = None,
        drop_path: DropPath | None = None,
    ) -> Tensor:
        """Compute the cell's output.

        Args:
            s0, s1: outputs of the two cells before.
            weights: [edges, ops] op weights.
            active, passing, added, drop_path: see `Mix`; drop_path acts in training only.
        """
        self._check(s0, s1, weights)
        if active is not None:
            check_active(active, [weights.shape[1]] * len(weights))
        edges = self.edges()
        read = None if any(map(called_by_itself, edges)) else read_fused(edges, s0, active)
        if read is None:
            states = [self.preprocess0(s0), self.preprocess1(s1)]
        else:
            before = (self.preprocess0, s0), (self.preprocess1, s1)
            states = [fused.preprocess(*one, built) for one, built in zip(before, self._built, strict=True)]
        mix = Mix(weights, active, passing, added, drop_path if self.training else None)
        nodes = nodes_of(edges, read, self._ends, states, mix, self.K)
        if self.multiplier == self.steps:
            return nodes
        return nodes[:, (self.steps - self.multiplier) * states[0].shape[1] :]

    def edges(self) -> list[MixedOp]:
        """Return the mixed ops, in the order of the rows of op weights."""
        return list(self._ops)  # type: ignore[arg-type]

    def _check(self, s0: Tensor, s1: Tensor, weights: Tensor) -> None:
        check_input(s0, self.C_prev_prev, "s0")
        check_input(s1, self.C_prev, "s1")
        factor = 2 if self.reduction_prev else 1
        expected = (s0.shape[0], *(-(-size // factor) for size in s0.shape[2:]))
        if (s1.shape[0], *s1.shape[2:]) != expected:
            raise ValueError(
                f"s1 must have N, H, W = {expected}, as s0 {tuple(s0.shape)} "
                f"{'after halving' if factor == 2 else 'has'}; got {tuple(s1.shape)}"
            )
        if (s1.dtype, s1.device) != (s0.dtype, s0.device):
            raise TypeError(f"s1 must be {s0.dtype} on {s0.device} like s0; got {s1.dtype} on {s1.device}")
        first = self._ops[0]
        assert isinstance(first, MixedOp)
        columns = len(first.primitives)
        if not isinstance(weights, Tensor) or weights.shape != (len(self._ops), columns):
            got = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise ValueError(f"weights must be [{len(self._ops)} edges, {columns} ops]; got {got}")
        check_weights_kind(weights, s0.device)


def called_by_itself(edge: MixedOp) -> bool:
    """Return True if the edge has hooks or an overridden forward, so that it must be called as a module."""
    return fused.watched(edge) or "forward" in edge.__dict__ or type(edge).forward is not MixedOp.forward
