"""The search network (supernet): a stack of cells whose edges mix all candidate operations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastdarts.mixed.mixed_op import Active, Backend, check_backend, check_input
from fastdarts.mixed.walk import modules_of
from fastdarts.primitives.modules import check_even
from fastdarts.primitives.table import PRIMITIVES, EdgeOps, check_primitives, per_edge
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import Genotype, derive_cell, edges_of


class Mix(NamedTuple):
    """How the cells of one type mix their ops in a forward pass."""

    weights: Tensor
    """[edges, ops]: the op weights, whatever relaxation made them."""
    active: Active | None = None
    """The ops that run, for each edge; None: all."""


Relaxation = Callable[["SearchNetwork"], list[Mix]]


def softmax_relaxation(network: "SearchNetwork") -> list[Mix]:
    """Softmax of each edge's alphas (equation 2)."""
    return [Mix(alpha.softmax(dim=-1)) for alpha in network.alphas]


class SearchNetwork(nn.Module):
    """The continuous relaxation of DARTS' convolutional space (Liu et al., ICLR 2019, sections 2.1 and 3.1).

    Reduction cells stand at a third and two thirds of the depth and double the channels. Parameter names are those
    of the original code; the architecture parameters are leaves of their own, neither `parameters()` nor in
    `state_dict()`.

    Args:
        C: channels of the first cells' nodes, even.
        num_classes: size of the logits.
        layers: number of cells.
        steps, multiplier: nodes of a cell, and how many of the last ones it puts out.
        stem_multiplier: the stem has stem_multiplier * C channels.
        in_channels: channels of the images.
        primitives: candidate ops of every edge.
        candidates: for an edge's own candidates: those of normal and of reduction cells, a list of names for each edge,
            equally many in a cell. They are among the primitives.
        auxiliary: ops that every edge has besides its candidates, without an alpha; their op weights follow the
            candidates'.
        cell: makes a cell, as `Cell`.
        backend: see `MixedOp`.
    """

    relaxation: Relaxation
    """Gives a forward pass its op weights; a method sets its own."""
    extra_alphas: dict[str, Tensor]
    """A method's further architecture parameters by name: leaves that require gradients."""

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
        candidates: Sequence[Sequence[Sequence[str]]] | None = None,
        auxiliary: Sequence[str] = (),
        cell: Callable[..., Cell] = Cell,
    ) -> None:
        super().__init__()
        for name, value in (
            ("C", C),
            ("num_classes", num_classes),
            ("layers", layers),
            ("steps", steps),
            ("multiplier", multiplier),
            ("stem_multiplier", stem_multiplier),
            ("in_channels", in_channels),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        check_even(C, "C")
        check_backend(backend)
        if multiplier > steps:
            raise ValueError(f"multiplier must be at most steps = {steps}; got {multiplier}")
        self.steps = steps
        self.multiplier = multiplier
        self.in_channels = in_channels
        self.backend = backend
        self.primitives = check_primitives(primitives)
        edges = edges_of(steps)
        self.candidates: list[EdgeOps] = [per_edge(names, len(edges)) for names in candidates or [self.primitives] * 2]
        for names in {name for cell_type in self.candidates for edge in cell_type for name in edge}:
            if names not in self.primitives:
                raise ValueError(f"candidates must be among the primitives {', '.join(self.primitives)}; got {names}")
        self.auxiliary = tuple(auxiliary)
        self.relaxation = softmax_relaxation
        self.extra_alphas = {}

        C_prev_prev, C_prev, C_cell = stem_multiplier * C, stem_multiplier * C, C
        self.stem = nn.Sequential(nn.Conv2d(in_channels, C_prev, 3, padding=1, bias=False), nn.BatchNorm2d(C_prev))
        self.cells = nn.ModuleList()
        reduction_prev = False
        for i in range(layers):
            reduction = i in (layers // 3, 2 * layers // 3)
            C_cell *= 2 if reduction else 1
            ops = [(*names, *self.auxiliary) for names in self.candidates[reduction]]
            self.cells.append(
                cell(steps, multiplier, C_prev_prev, C_prev, C_cell, reduction, reduction_prev, ops, backend)
            )
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, multiplier * C_cell
        self.global_pooling = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(C_prev, num_classes)

        # The original's initial alphas: noise that breaks ties of the first ranking.
        shapes = [(len(edges), len(names[0])) for names in self.candidates]
        self.alphas_normal, self.alphas_reduce = ((1e-3 * torch.randn(shape)).requires_grad_() for shape in shapes)

    @property
    def alphas(self) -> list[Tensor]:
        """[alphas_normal, alphas_reduce], each [edges, ops]: leaves that require gradients."""
        return [self.alphas_normal, self.alphas_reduce]

    def arch_parameters(self) -> list[Tensor]:
        """All architecture parameters: `alphas`, then `extra_alphas`."""
        return [*self.alphas, *self.extra_alphas.values()]

    def alpha_state(self) -> dict[str, Tensor]:
        """Return copies of all architecture parameters by name, which `state_dict` has not: they are no `parameters()`.

        An average of the weights (EMA) or another process takes the network's state from both.
        """
        named = {"alphas_normal": self.alphas_normal, "alphas_reduce": self.alphas_reduce, **self.extra_alphas}
        return {name: alpha.detach().clone() for name, alpha in named.items()}

    @torch.no_grad()
    def load_alpha_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `alpha_state` returned into the architecture parameters, which stay the same tensors.

        Raises: ValueError for other names or shapes, and nothing is copied.
        """
        ours = {"alphas_normal": self.alphas_normal, "alphas_reduce": self.alphas_reduce, **self.extra_alphas}
        shapes = {name: list(alpha.shape) for name, alpha in ours.items()}
        theirs = {name: list(alpha.shape) for name, alpha in state.items()}
        if shapes != theirs:
            raise ValueError(f"alpha_state must have {shapes}; got {theirs}")
        for name, alpha in ours.items():
            alpha.copy_(state[name])

    def op_weights(self) -> list[Mix]:
        """The op weights of normal and reduction cells, for one forward pass; a relaxation may draw them."""
        return self.relaxation(self)

    @contextmanager
    def mixing(self, mixes: Sequence[Mix]) -> Iterator[None]:
        """Inside, forward passes mix normal and reduction cells as given."""
        before = self.relaxation
        self.relaxation = lambda _: list(mixes)
        try:
            yield
        finally:
            self.relaxation = before

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, in_channels, H, W] -> logits [N, num_classes]."""
        check_input(x, self.in_channels)
        if self.backend != "reference":
            x = x.contiguous(memory_format=torch.channels_last)  # the kernels' layout, once for the whole network
        mixes = self.op_weights()
        s0 = s1 = self.stem(x)
        for cell in self.cells:
            assert isinstance(cell, Cell)
            s0, s1 = s1, cell(s0, s1, *mixes[cell.reduction])
        return self.classifier(self.global_pooling(s1).flatten(1))

    def genotype(self) -> Genotype:
        """The discrete cells of the softmax of the present alphas."""
        return self.derive([alpha.softmax(dim=-1) for alpha in self.alphas])

    def derive(self, scores: Sequence[Tensor]) -> Genotype:
        """The discrete cells by `derive_cell`, from scores [edges, ops] of normal and reduction cells' candidates."""
        normal, reduce = (
            derive_cell(score, self.steps, names) for score, names in zip(scores, self.candidates, strict=True)
        )
        return Genotype(normal, self.concat(), reduce, self.concat())

    def concat(self) -> list[int]:
        """The states that a cell puts out."""
        return list(range(2 + self.steps - self.multiplier, 2 + self.steps))

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Inside, batch norm in train mode normalises by the batch as always and leaves its running buffers alone.

        Buffers of other modules, which a caller has put in, are put back at the end.
        """
        holders = [module for module in modules_of(self) if module._buffers]
        tracking = [m for m in holders if isinstance(m, nn.BatchNorm2d) and m.track_running_stats]
        others = (m._buffers.values() for m in holders if not isinstance(m, nn.BatchNorm2d))
        saved = [(buffer, buffer.clone()) for buffers in others for buffer in buffers if buffer is not None]
        # Not by nn.Module's own __setattr__, which takes 20 times as long: a network has 1,000 batch norms.
        for module in tracking:
            object.__setattr__(module, "track_running_stats", False)
        try:
            yield
        finally:
            for module in tracking:
                object.__setattr__(module, "track_running_stats", True)
            for buffer, value in saved:
                buffer.copy_(value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SearchNetwork":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for alpha in self.arch_parameters():  # .to(), .cuda(), .double() reach parameters and buffers only
            alpha.data = fn(alpha.data)
            if alpha.grad is not None:
                alpha.grad.data = fn(alpha.grad.data)
        return self
