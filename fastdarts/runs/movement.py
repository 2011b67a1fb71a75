"""Notes on alphas that cannot move, or have not moved, in a search."""

import torch

from fastdarts.runs.search_state import SearchState

_PAPER = 50 * 390 * 3e-4  # epochs, steps and rate on CIFAR-10: how far Adam can move an alpha there
_SHORT = _PAPER / 10
_STILL = 0.1  # change of an alpha below which the cells are about those of the random start
_HIGHEST_RATE = 0.03


def before(state: SearchState) -> list[str]:
    """Return a note if the steps of a search are too few for its learning rate of the alphas."""
    config = state.config
    if state.method.level == "weights":
        return []
    steps = round((1 - config.alpha_warmup) * config.epochs) * state.steps_per_epoch
    reach = steps * config.arch_lr
    if reach >= _SHORT:
        return []
    return [
        f"note: {steps} steps at arch_lr {config.arch_lr:g} move an alpha by at most about {reach:.2g} (the paper's "
        f"search by {_PAPER:.2g}): {_cure(state, reach)}"
    ]


def after(state: SearchState) -> list[str]:
    """Return a note if the alphas have hardly moved since the search began."""
    if state.method.level == "weights":
        return []
    first, last = state.history[0], state.history[-1]
    moved = 0.0
    for name in state.network.groups:
        if first[name].shape == last[name].shape:
            moved = max(moved, _largest((last[name] - first[name]).abs()))
    if moved >= _STILL:
        return []
    return [
        f"note: the alphas hardly moved, by {moved:.2g} at most, so the cells are about those of the random start: "
        f"{_cure(state, moved)}"
    ]


def _largest(change: torch.Tensor) -> float:
    finite = change[change.isfinite()]
    return float(finite.max()) if finite.numel() else 0.0


def _cure(state: SearchState, reach: float) -> str:
    rate = min(state.config.arch_lr * _PAPER / max(reach, 1e-9), _HIGHEST_RATE)
    offered = state.unit == "images" and not state.config.small_data
    preset = "--small-data has defaults for few images; or " if offered else ""
    return f"{preset}give more epochs, smaller batches or --arch-lr {rate:.1g}"
