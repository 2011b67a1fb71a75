"""A network's weights as people have them: under a key, with prefixes, saved by old releases, beside other objects."""

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastdarts.config.files import write_atomically
from fastdarts.runs import checkpoint
from fastdarts.runs.inert_pickle import state_of_module

Weights = dict[str, Tensor]

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that DataParallel, compilation and sharding put between; no module of ours is called so."""
_COUNT = "num_batches_tracked"  # of a batch norm; saved by torch 0.4 and later, and read by no training of ours
_DEPTH = 4


class Found(NamedTuple):
    """Weights with the network's own names, and what was done to get them, in words."""

    weights: Weights
    notes: list[str]


def load_weights(path: Path, wanted: Mapping[str, Tensor]) -> Found:
    """Return the weights in a file, under the names of the network that they are for, on the CPU.

    Args:
        path: a checkpoint of ours, or anything torch saved that holds a state_dict or a whole module somewhere.
        wanted: the network's state_dict.

    Raises: FileNotFoundError when there is none; ValueError when the file is damaged or holds no weights.
    """
    content, foreign = checkpoint.read_any(path)
    notes = ["it holds other Python objects, which were passed over"] if foreign else []
    candidates = [(place, _unwrapped(weights)) for place, weights in _state_dicts(content, "", 0)]
    if not candidates:
        raise ValueError(f"checkpoint {path} holds no state_dict of a network" + "".join(f"; {n}" for n in notes))
    best: tuple[int, str, Weights, str] | None = None
    for place, weights in candidates:
        for prefix in _prefixes(weights, wanted):
            ours = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
            score = sum(name in ours and ours[name].shape == tensor.shape for name, tensor in wanted.items())
            if best is None or score > best[0]:
                best = score, place, ours, prefix
    assert best is not None
    _, place, weights, prefix = best
    if place and not (content.get("fastdarts") if isinstance(content, dict) else None):
        notes.append(f"weights taken from {place!r}")
    stripped = list(dict.fromkeys([*_wrappers_in(content, place), *([prefix] if prefix else [])]))
    if stripped:
        notes.append(f"stripped {', '.join(map(repr, stripped))} from their names")
    missing = [name for name in wanted if name.endswith(_COUNT) and name not in weights]
    if missing:
        weights |= {name: wanted[name].detach().cpu().clone() for name in missing}
        notes.append(f"{_COUNT}, which old releases of torch did not save, left as new")
    return Found(weights, notes)


def save_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Write a state_dict, on the CPU, that `load_weights` and `torch.load` read. Raises: DiskFullError."""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu() for name, tensor in weights.items()}, buffer)
    write_atomically(path, buffer.getvalue())


def _state_dicts(value: Any, place: str, depth: int) -> Iterator[tuple[str, Weights]]:
    """Yield each dict of tensors in a file's content, with its place, the outermost first."""
    module = state_of_module(value)
    if module:
        yield place, module
    if not isinstance(value, Mapping):
        return
    tensors = {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        yield place, tensors
    if depth < _DEPTH:
        for name, inner in value.items():
            yield from _state_dicts(inner, f"{place}.{name}" if place else str(name), depth + 1)


def _unwrapped(weights: Weights) -> Weights:
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): t for name, t in weights.items()}


def _wrappers_in(content: Any, place: str) -> list[str]:
    """Return the wrappers' names, with a dot, that the weights at a place had."""
    for found, weights in _state_dicts(content, "", 0):
        if found == place:
            parts = {part for name in weights for part in name.split(".")}
            return [f"{wrapper}." for wrapper in _WRAPPERS if wrapper in parts]
    return []


def _prefixes(weights: Weights, wanted: Mapping[str, Tensor]) -> list[str]:
    """Return the prefixes of one of the network's names, the empty one first."""
    last = list(wanted)[-1]
    found = [name.removesuffix(last) for name in weights if name.endswith("." + last)]
    return list(dict.fromkeys(["", *found]))
