"""The search network (supernet) of any space: its alphas, their relaxation and the op weights of a forward pass."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastdarts.mixed.mix import Mix
from fastdarts.mixed.statistics import frozen_statistics
from fastdarts.spaces.group import Choice, Group


class Choices(Protocol):
    """Hold the candidate ops of one row: a mixed op, or a layer."""

    primitives: tuple[str, ...]
    stride: int
    _ops: nn.ModuleList


Mixes = dict[str, Mix]
"""The op weights of each group."""
Relaxation = Callable[["Supernet"], Mixes]


def softmax_relaxation(network: "Supernet") -> Mixes:
    """Return the softmax of each row's alphas (Liu et al., ICLR 2019, equation 2)."""
    return {name: Mix(alpha.softmax(dim=-1)) for name, alpha in network.alphas.items()}


class Supernet(nn.Module):
    """Base of the search networks. A subclass builds its modules, then calls `make_alphas`.

    The architecture parameters are leaves of their own, neither in `parameters()` nor in `state_dict()`.
    """

    groups: dict[str, Group]
    """The rows of choices by name."""
    alphas: dict[str, Tensor]
    """[rows, ops] of each group: leaves that require gradients."""
    relaxation: Relaxation
    """Computes the op weights of a forward pass; a method sets its own."""
    extra_alphas: dict[str, Tensor]
    """A method's further architecture parameters by name: leaves that require gradients."""
    auxiliary: tuple[str, ...]
    """Ops that every edge has besides its candidates, without an alpha; their op weights follow the candidates'."""

    def __init__(self, groups: Mapping[str, Group], auxiliary: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.groups = dict(groups)
        self.auxiliary = auxiliary
        self.alphas = {}
        self.extra_alphas = {}
        self.relaxation = softmax_relaxation

    def make_alphas(self) -> None:
        """Draw the initial alphas: small noise, as in the original code, breaks ties of the first ranking."""
        self.alphas = {name: (1e-3 * torch.randn(group.shape)).requires_grad_() for name, group in self.groups.items()}

    @property
    def primitives(self) -> tuple[str, ...]:
        """Return all candidate ops' names: the columns of alphas.npz."""
        return tuple(dict.fromkeys(name for group in self.groups.values() for row in group.ops for name in row))

    def arch_parameters(self) -> list[Tensor]:
        """Return all architecture parameters: `alphas`, then `extra_alphas`."""
        return [*self.alphas.values(), *self.extra_alphas.values()]

    def alpha_state(self) -> dict[str, Tensor]:
        """Return copies of all architecture parameters by name, which `state_dict` has not: they are no `parameters()`.

        An average of the weights (EMA) or another process takes the network's state from both.
        """
        return {name: alpha.detach().clone() for name, alpha in self._named_alphas().items()}

    @torch.no_grad()
    def load_alpha_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy what `alpha_state` returned into the architecture parameters, which stay the same tensors.

        Raises: ValueError for other names or shapes, and nothing is copied.
        """
        ours = self._named_alphas()
        shapes = {name: list(alpha.shape) for name, alpha in ours.items()}
        theirs = {name: list(alpha.shape) for name, alpha in state.items()}
        if shapes != theirs:
            raise ValueError(f"alpha_state must have {shapes}; got {theirs}")
        for name, alpha in ours.items():
            alpha.copy_(state[name])

    def _named_alphas(self) -> dict[str, Tensor]:
        return {f"alphas_{name}": alpha for name, alpha in self.alphas.items()} | self.extra_alphas

    def op_weights(self) -> Mixes:
        """Return each group's op weights for one forward pass; a relaxation may draw them."""
        # The alphas become constants of a traced program, which may not require gradients.
        if torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
            return self._traced_op_weights()
        return self.relaxation(self)

    def _traced_op_weights(self) -> Mixes:
        before = self.alphas, self.extra_alphas
        self.alphas, self.extra_alphas = ({name: alpha.data for name, alpha in group.items()} for group in before)
        try:
            return self.relaxation(self)
        finally:
            self.alphas, self.extra_alphas = before

    @contextmanager
    def mixing(self, mixes: Mapping[str, Mix]) -> Iterator[None]:
        """Inside, forward passes use these op weights."""
        before = self.relaxation
        self.relaxation = lambda _: dict(mixes)
        try:
            yield
        finally:
            self.relaxation = before

    @abstractmethod
    def mixed_ops(self, group: str) -> Sequence[Sequence[Choices]]:
        """Return the modules that mix the ops of a group's rows, in the order of the rows, for each cell it describes.

        A space without cells has one entry.
        """

    def untrained(self) -> list[Group]:
        """Return the groups that no layer of this network reads, so that their alphas stay as they were drawn."""
        return []

    @abstractmethod
    def derive(self, scores: Mapping[str, Tensor], choice: Choice = Choice()) -> Any:  # noqa: B008 - frozen
        """Return the architecture of scores [rows, ops] a group, compared as `choice.ranked` says."""

    @abstractmethod
    def mixes_of(self, architecture: Any) -> Mixes:
        """Return op weights with which this network computes an architecture: 1 for its ops; nothing else runs."""

    @abstractmethod
    def random(self, generator: torch.Generator, max_skips: int | None = None) -> Any:
        """Draw an architecture uniformly; with `max_skips`, among those with so many skip connections or fewer."""

    def genotype(self) -> Any:
        """Return the architecture of the softmax of the present alphas."""
        return self.derive({name: alpha.softmax(dim=-1) for name, alpha in self.alphas.items()})

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Inside, batch norm in train mode normalises by the batch as always and leaves its running buffers alone.

        Buffers of other modules, which a caller has added, are restored at the end.
        """
        with frozen_statistics(self):
            yield

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Supernet":
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for alpha in self.arch_parameters():  # .to(), .cuda(), .double() reach parameters and buffers only
            alpha.data = fn(alpha.data)
            if alpha.grad is not None:
                alpha.grad.data = fn(alpha.grad.data)
        return self
