"""Averaged SGD over one flat buffer of weights, and the rule that starts it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fastdarts.bilevel.flat import FlatWeights
from fastdarts.ops import flat_ops

_NUMBERS = ("step", "eta", "mu")
"""Name numbers of a weight's state in `torch.optim.ASGD`: steps, the next learning rate and weight in the average."""


class FlatASGD(Optimizer):
    """Run averaged SGD (Polyak and Juditsky, 1992) over flat buffers.

    The updates equal those of `torch.optim.ASGD` with t0=0 and lambd=0, whose state dicts load here and the other way
    round. As there, a step uses the learning rate that was set before the step before it, and the average begins with
    the second step.

    Args:
        weights: parameters as for `FlatWeights`, in one group.
        lr: learning rate.
        weight_decay: L2 of the weights.

    Raises:
        ValueError: as `FlatWeights`, for an lr or weight_decay below 0, or for a loaded state of other settings.
    """

    flat: FlatWeights
    average: Tensor
    """[numel]: the average of the weights."""
    gradient_norm: Tensor
    """Euclidean norm of the latest step's gradient before clipping; a float64 scalar on the device."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        for name, value in {"lr": lr, "weight_decay": weight_decay}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number, at least 0; got {value!r}")
        settings = {"lr": lr, "weight_decay": weight_decay, "lambd": 0.0, "alpha": 0.75, "t0": 0.0}
        super().__init__(list(weights), settings)
        for weight in self.param_groups[0]["params"]:
            self.state[weight] = {
                "step": torch.zeros(()),
                "eta": torch.tensor(float(lr)),
                "mu": torch.ones(()),
                "ax": torch.zeros_like(weight),
            }
        self._numbers = (0.0, float(lr), 1.0)
        self._flatten()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        gradient: Tensor | None = None,
        max_norm: float = math.inf,
    ) -> float | None:
        """Take one step; return the closure's loss, or None.

        Args:
            closure: as in `torch.optim.ASGD`.
            gradient: flat gradient [numel]; by default gathered from the weights' `.grad`.
            max_norm: largest Euclidean norm of the gradient; a longer one is scaled down to it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        weights = self.flat.attach()
        if gradient is None:
            gradient = self.flat.gather([w.grad for w in self.flat.weights])
        self.gradient_norm = flat_ops.norm(gradient)
        step, eta, mu = self._numbers
        step += 1
        if step == 1:
            eta = _rounded(group["lr"])
        rate = torch.full((), eta, dtype=torch.float64, device=weights.device)
        flat_ops.clipped_sgd(weights, None, gradient, self.gradient_norm, rate, 0.0, group["weight_decay"], max_norm)
        if mu == 1:
            self.average.copy_(weights)
        else:
            self.average.lerp_(weights, mu)
        self._numbers = step, _rounded(group["lr"]), _rounded(1 / max(1.0, step))
        for weight in self.flat.weights:
            for name, value in zip(_NUMBERS, self._numbers, strict=True):
                self.state[weight][name].fill_(value)
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are their averages."""
        buffer = self.flat.attach()
        raw = buffer.clone()
        buffer.copy_(self.average)
        try:
            yield
        finally:
            buffer.copy_(raw)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set a loaded, copied or unpickled state and flatten it; raise ValueError for unsupported settings."""
        for group in state["param_groups"]:
            for option in ("lambd", "t0", "maximize"):
                if group.get(option):
                    raise ValueError(f"FlatASGD has {option} 0; the state has {group[option]!r}")
        super().__setstate__(state)
        self._numbers = self._loaded_numbers()
        self._flatten()

    def _loaded_numbers(self) -> tuple[float, float, float]:
        """Return step, eta and mu as the state has them; steps keep them on the host, so that none reads the device."""
        first = self.state[self.param_groups[0]["params"][0]]
        step, eta, mu = (float(first[name]) for name in _NUMBERS)
        return step, eta, mu

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle, with cloned averages, because pickle does not preserve views."""
        state: dict[str, Any] = super().__getstate__()
        own = {weight: held | {"ax": held["ax"].clone()} for weight, held in self.state.items()}
        return state | {"state": defaultdict(dict, own)}

    def _flatten(self) -> None:
        weights = self.param_groups[0]["params"]
        self.flat = FlatWeights(weights)
        self.average = self.flat.gather([self.state[w]["ax"].to(w) for w in weights])
        for weight, view in zip(weights, self.flat.views(self.average), strict=True):
            self.state[weight]["ax"] = view


def _rounded(value: float) -> float:
    """Return the number that `torch.tensor(value)`, in which torch's ASGD keeps it, holds."""
    return float(np.float32(value)) if torch.get_default_dtype() == torch.float32 else float(value)


def stalls(losses: Sequence[float], patience: int) -> bool:
    """Return True if the last validation loss is above the lowest of all but the `patience` losses before it.

    This is the non-monotone trigger of averaging (Merity et al., AWD-LSTM, arXiv:1708.02182, algorithm 1), as DARTS'
    code applies it; at least `patience` + 1 losses must come before the last.
    """
    *before, last = losses
    return len(before) > patience and last > min(before[:-patience])
