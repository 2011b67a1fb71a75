"""A cell of the search network: a directed acyclic graph of mixed edges over two input states."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdarts import fused
from fastdarts.genotype import edges_of
from fastdarts.mixed_op import Backend, MixedOp, runs_fused
from fastdarts.reference import FactorizedReduce, ReLUConvBN
from fastdarts.space import PRIMITIVES


class Cell(nn.Module):
    """States 0 and 1 are the preprocessed inputs; each of the `steps` nodes sums a mixed edge from every earlier state.

    The output concatenates the last `multiplier` nodes: [N, multiplier * C, H', W'], where H', W' are halved (rounded up)
    in a reduction cell. Edges are numbered as in `genotype.edges_of`.
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
        primitives: Sequence[str] = PRIMITIVES,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.steps = steps
        self.multiplier = multiplier
        self.reduction = reduction
        self.preprocess0: FactorizedReduce | ReLUConvBN = (
            FactorizedReduce(C_prev_prev, C, affine=False) if reduction_prev else ReLUConvBN(C_prev_prev, C, affine=False)
        )
        self.preprocess1 = ReLUConvBN(C_prev, C, affine=False)
        self._ops = nn.ModuleList(
            MixedOp(C, 2 if reduction and source < 2 else 1, primitives, backend) for source, _ in edges_of(steps)
        )

    def forward(self, s0: Tensor, s1: Tensor, weights: Tensor) -> Tensor:
        """s0 and s1: outputs of the two cells before; weights: [edges, ops] op weights."""
        edges: list[MixedOp] = list(self._ops)  # type: ignore[arg-type]
        if runs_fused(edges, s0):
            states = [fused.preprocess(self.preprocess0, s0), fused.preprocess(self.preprocess1, s1)]
            nodes = fused.mixed_nodes(edges, edges_of(self.steps), states, weights)
            return nodes if self.multiplier == self.steps else nodes[:, (self.steps - self.multiplier) * states[0].shape[1] :]
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        edge = 0
        for _ in range(self.steps):
            terms = [self._ops[edge + i](state, weights[edge + i]) for i, state in enumerate(states)]
            edge += len(states)
            states.append(sum(terms[1:], terms[0]))
        return torch.cat(states[-self.multiplier :], dim=1)
