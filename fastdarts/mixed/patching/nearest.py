"""Describe what sets modules apart from ops with kernels, for a report where nothing or little was found."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from fastdarts.mixed import fused
from fastdarts.mixed.patching.recognition import OWN, Op, leaves
from fastdarts.ops.plan import has_kernel
from fastdarts.primitives.modules import build, build_for_search
from fastdarts.primitives.table import CANDIDATES

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def differences(children: dict[str, nn.Module], ops: dict[str, Op]) -> str | None:
    """Say what sets the children of a module apart from candidate ops, or None if they are not like such at all."""
    said = {}
    for path, child in children.items():
        if ops[path].primitive == OWN and (found := _nearest(child)) is not None:
            said[path] = found
    if not said:
        return None
    texts = dict.fromkeys(said.values())
    parts = []
    for text in list(texts)[:4]:
        paths = [path for path in said if said[path] == text]
        parts.append(f"{', '.join(paths[:4])}{' and more' if len(paths) > 4 else ''}: {text}")
    return "; ".join(parts)


def _nearest(op: nn.Module) -> str | None:
    """Name the primitive whose layers are most like an op's, and the differences."""
    layers = leaves(op)
    kinds = tuple(map(_kind, layers))
    if not any(kind in ("convolution", "pool") for kind in kinds):
        return None
    best: tuple[int, str] | None = None
    for name, stride, reference in _references():
        if tuple(map(_kind, reference)) != kinds:
            continue
        found = dict.fromkeys(text for pair in zip(layers, reference, strict=True) if (text := _difference(*pair)))
        unlike = len(found) + sum(type(mine) is not type(other) for mine, other in zip(layers, reference, strict=True))
        if best is None or unlike < best[0]:
            what = f"{name}{' of stride 2' if stride == 2 else ''}"
            best = unlike, f"{what} but for {' and '.join(found)}" if found else f"{what} with another forward"
    return None if best is None else best[1]


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, nn.Conv2d):
        return "convolution"
    if isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
        return "pool"
    if isinstance(layer, _NORMS):
        return "norm"
    return "activation" if not list(layer.parameters()) else "other"


def _difference(layer: nn.Module, reference: nn.Module) -> str | None:
    if isinstance(reference, nn.BatchNorm2d):
        return None if isinstance(layer, nn.BatchNorm2d) else f"{type(layer).__name__} in place of BatchNorm2d"
    if type(layer) is not type(reference):
        return f"{type(layer).__name__} in place of {type(reference).__name__}"
    if type(reference) not in fused.GEOMETRY:
        return None
    mine, wanted = _geometry(layer), _geometry(reference)
    if isinstance(layer, nn.Conv2d) and mine["groups"] == layer.in_channels > 1:
        mine["groups"] = wanted["groups"] if wanted["groups"] != 1 else mine["groups"]
    names = [name for name in wanted if mine[name] != wanted[name]]
    return ", ".join(f"{name} {mine[name]} in place of {wanted[name]}" for name in names) or None


def _geometry(layer: nn.Module) -> dict[str, Any]:
    names = {"kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "ceil_mode", "count_include_pad"}
    own: dict[str, Any] = {name: value for name, value in layer.__dict__.items() if name in names}
    return {name: (value, value) if type(value) is int and name != "groups" else value for name, value in own.items()}


@lru_cache(maxsize=1)
def _references() -> Sequence[tuple[str, int, list[nn.Module]]]:
    """Layers of the primitives, and of pools without a batch norm, by name and stride."""
    found = []
    with torch.device("meta"):
        for name, c in CANDIDATES.items():
            for stride in (1, 2):
                if has_kernel(c) and (c.kind not in ("none", "skip") or (c.kind == "skip" and stride == 2)):
                    found.append((name, stride, leaves(build_for_search(name, 4, stride))))
                if c.is_pool:
                    found.append(
                        (f"{name} without the batch norm that follows it", stride, leaves(build(name, 4, stride)))
                    )
    return found
