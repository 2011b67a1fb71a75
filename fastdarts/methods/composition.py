"""Compose methods: `reinmax+pc-darts+beta-darts` draws ops as ReinMax, on partial channels, with beta decay.

Each part has a role, and a composed method has at most one part of a role. Options and settings are those of all parts;
the paper's settings of a part alone (`published`) are not taken over. What has no meaning together is in `RULES`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import combinations
from typing import Any, get_args

from fastdarts.methods.method import Method, MethodOptions, Role

Part = tuple[str, type[Method]]
"""A method's name and class."""

RULES = (
    ("one drawn op", "perturbation", "noise is for the op weights of all ops, and only the drawn ones run"),
    ("one drawn op", "freezing", "all ops are judged in every step, and only the drawn ones run"),
    ("one drawn op", "lambda-darts", "layers are compared by the gradients of all op weights, and one op runs"),
    ("one drawn op", "robustdarts", "the curvature needs second derivatives, which the gradient of a sample has not"),
    ("no softmax", "perturbation", "perturbed op weights are put back onto the simplex, where sigmoids are not"),
    ("no softmax", "beta-darts", "beta decay shrinks a softmax"),
    ("drnas", "beta-darts", "beta decay shrinks a softmax; the penalty of drnas is its option kl"),
    ("lambda-darts", "perturbation", "both set the op weights of the weight step"),
    ("lambda-darts", "freezing", "both change the gradient of the weights"),
    ("decisions", "freezing", "decided edges run one op, and freezing judges all in every step"),
)
"""Two names, roles or traits of parts, and the reason why they cannot go together."""


@cache
def compose(parts: tuple[Part, ...]) -> type[Method]:
    """Return the class of a search by all parts.

    Raises: ValueError that names the parts that cannot go together, and why.
    """
    _check(parts)
    order = get_args(Role)
    classes = [kind for _, kind in sorted(parts, key=lambda part: order.index(part[1].role))]
    names = "+".join(name for name, _ in parts)
    body: dict[str, Any] = {
        "__doc__": f"Search by {names}.",
        "__module__": __name__,
        "Options": _options(classes),
        "role": None,
        "settings": {name: value for kind in reversed(classes) for name, value in kind.settings.items()},
        "published": {},
        "needs": frozenset().union(*(kind.needs for kind in classes)),
    }
    return type(names, tuple(classes), body)


def _options(classes: Sequence[type[Method]]) -> type[MethodOptions]:
    bases = tuple(kind.Options for kind in classes if kind.Options is not MethodOptions) or (MethodOptions,)
    made: type[MethodOptions] = dataclass(frozen=True, kw_only=True)(type("Options", bases, {}))
    return made


def _check(parts: Sequence[Part]) -> None:
    for name, kind in parts:
        if kind.role is None:
            raise ValueError(f"method {name!r} only runs alone: it has no role in a composed one")
    for (one, first), (other, second) in combinations(parts, 2):
        refused = f"methods {one!r} and {other!r} cannot go together"
        if first.role == second.role:
            raise ValueError(f"{refused}: both are for the same part, {first.role}")
        for left, right, why in RULES:
            traits = _traits(one, first), _traits(other, second)
            if any(left in here and right in there for here, there in (traits, traits[::-1])):
                raise ValueError(f"{refused}: {why}")
        both = {field.name for field in fields(first.Options)} & {field.name for field in fields(second.Options)}
        if both:
            raise ValueError(f"{refused}: each has an option {sorted(both)[0]!r}")


def _traits(name: str, kind: type[Method]) -> set[str | None]:
    """Return the words by which RULES may name a part."""
    more = {"one drawn op": kind.runs_one_op, "no softmax": not kind.competes}
    return {name, kind.role, *(trait for trait, holds in more.items() if holds)}
