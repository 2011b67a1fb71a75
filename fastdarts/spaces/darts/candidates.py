"""List the ops of each edge in RobustDARTS' spaces s1 to s4 (Zela et al., ICLR 2020, arXiv:1909.09656, section 3)."""

from typing import Any

from fastdarts.primitives.table import PRIMITIVES, EdgeOps

_SHORT = {
    "skip": "skip_connect",
    "max": "max_pool_3x3",
    "avg": "avg_pool_3x3",
    "sep3": "sep_conv_3x3",
    "dil3": "dil_conv_3x3",
    "dil5": "dil_conv_5x5",
}
_S1 = (
    "skip/dil3 skip/dil5 skip/dil5 skip/sep3 skip/dil3 max/skip skip/sep3 skip/sep3 skip/dil3 skip/sep3 max/skip "
    "skip/dil3 dil3/dil5 dil3/dil5",
    "max/avg max/dil3 max/avg max/avg skip/dil5 max/avg max/sep3 skip/dil3 skip/dil5 max/avg max/avg skip/dil5 "
    "skip/dil5 skip/dil5",
)
_SAME = {
    "s2": ("skip_connect", "sep_conv_3x3"),
    "s3": ("none", "skip_connect", "sep_conv_3x3"),
    "s4": ("noise", "sep_conv_3x3"),
}


def arguments_of(space: str) -> dict[str, Any]:
    """Return the arguments of `SearchNetwork` for `space`: `primitives`, and `candidates` if the edges' ops differ."""
    if space in _SAME:
        return {"primitives": _SAME[space]}
    if space != "s1":
        return {"primitives": PRIMITIVES}
    candidates: dict[str, EdgeOps] = {
        name: tuple(tuple(_SHORT[op] for op in edge.split("/")) for edge in cell.split())
        for name, cell in zip(("normal", "reduce"), _S1, strict=True)
    }
    used = {name for cell in candidates.values() for edge in cell for name in edge}
    return {"primitives": tuple(name for name in PRIMITIVES if name in used), "candidates": candidates}
