"""A recurrent cell: the predecessor and the activation of each node (Liu et al., ICLR 2019, section 3.1.2)."""

import ast
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

PRIMITIVES = ("none", "tanh", "relu", "sigmoid", "identity")
"""The candidate activations, in the order of the columns of alpha."""
ACTIVATIONS = PRIMITIVES[1:]
STEPS = 8
"""Nodes of the search cell."""

_NODE = re.compile(r"([a-z]+)-(\d+)")


@dataclass(frozen=True)
class RecurrentCell:
    """Describe a cell. State 0 is made from the input and the previous hidden state; state i + 1 is node i.

    Attributes:
        nodes: (activation, predecessor) of each node; the predecessor is an earlier state.
        concat: the states whose mean is the new hidden state; None for all nodes.

    Raises: ValueError for an unknown activation, a predecessor that is not earlier, or states that do not exist.
    """

    nodes: tuple[tuple[str, int], ...]
    concat: tuple[int, ...] | None = None
    space = "recurrent"

    def __post_init__(self) -> None:
        nodes = tuple((name, source) for name, source in self.nodes)
        if not nodes:
            raise ValueError("recurrent must hold at least one node")
        for index, (name, source) in enumerate(nodes):
            if name not in ACTIVATIONS:
                raise ValueError(f"recurrent[{index}] must be one of {', '.join(ACTIVATIONS)}; got {name!r}")
            if type(source) is not int or not 0 <= source <= index:
                raise ValueError(f"recurrent[{index}] must have a predecessor from 0 to {index}; got {source!r}")
        concat = tuple(range(1, len(nodes) + 1)) if self.concat is None else tuple(self.concat)
        if (
            not concat
            or len(set(concat)) < len(concat)
            or not all(type(state) is int and 0 <= state <= len(nodes) for state in concat)
        ):
            raise ValueError(f"concat must be distinct states from 0 to {len(nodes)}; got {list(concat)}")
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "concat", tuple(sorted(concat)))

    def __str__(self) -> str:
        """Return the nodes as `relu-0 tanh-1 ...`, with `: 1 2 ...` behind if not all nodes form the output."""
        text = " ".join(f"{name}-{source}" for name, source in self.nodes)
        whole = self.concat == tuple(range(1, len(self.nodes) + 1))
        return text if whole else f"{text} : {' '.join(map(str, self.states))}"

    @property
    def states(self) -> tuple[int, ...]:
        """Return the states whose mean is the new hidden state."""
        assert self.concat is not None  # set by __post_init__
        return self.concat

    @staticmethod
    def looks_like(text: str) -> bool:
        """Return True if the text begins like a cell's nodes, `relu-0 ...`."""
        words = text.split()
        return bool(words) and _NODE.fullmatch(words[0]) is not None

    @classmethod
    def parse(cls, text: str) -> "RecurrentCell":
        """Read what `str` gives, or a genotype as the original code prints it; ValueError says what is wrong."""
        if "recurrent=" in text:
            return cls._parse_original(text)
        names, _, states = text.partition(":")
        nodes = [_NODE.fullmatch(word) for word in names.split()]
        if not nodes or None in nodes:
            raise ValueError(f"a recurrent cell must be written as relu-0 tanh-1 ...; got {text!r}")
        concat = tuple(int(state) for state in states.split()) or None
        return cls(tuple((match[1], int(match[2])) for match in nodes if match), concat)

    @classmethod
    def _parse_original(cls, text: str) -> "RecurrentCell":
        wanted = "must be written as Genotype(recurrent=[('relu', 0), ...], concat=range(1, 9))"
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not isinstance(call, ast.Call):
                raise ValueError
            values = {keyword.arg: keyword.value for keyword in call.keywords}
            nodes = ast.literal_eval(values["recurrent"])
            concat = _states(values["concat"]) if "concat" in values else None
            return cls(tuple((str(name), source) for name, source in nodes), concat)
        except (SyntaxError, KeyError, TypeError) as error:
            raise ValueError(f"a recurrent genotype {wanted}; got {text[:80]!r}") from error

    def to_json(self) -> str:
        """Return a JSON object with the space's name, the nodes and the states of the output."""
        value = {"space": self.space, "recurrent": [list(node) for node in self.nodes], "concat": list(self.states)}
        return json.dumps(value, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "RecurrentCell":
        """Read what `to_json` wrote; ValueError says what is wrong with `text`."""
        value: Any = json.loads(text)
        nodes = value.get("recurrent") if isinstance(value, dict) else None
        if not isinstance(nodes, list) or not all(isinstance(node, list) and len(node) == 2 for node in nodes):
            raise ValueError(
                f"genotype must be a JSON object with the key recurrent, a list of pairs; got {text[:80]!r}"
            )
        concat = value.get("concat")
        if not isinstance(concat, list | None):
            raise ValueError(f"genotype.concat must be a list of states; got {concat!r}")
        return cls(tuple((name, source) for name, source in nodes), None if concat is None else tuple(concat))


def _states(node: ast.expr) -> tuple[int, ...]:
    """Return the states of a list, or of range(...), in a parsed genotype."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
        return tuple(range(*(ast.literal_eval(argument) for argument in node.args)))
    found: Iterable[int] = ast.literal_eval(node)
    return tuple(found)


PUBLISHED = {
    "RNN_DARTS_V1": RecurrentCell.parse("relu-0 relu-1 tanh-2 relu-3 relu-4 identity-1 relu-5 relu-1"),
    "RNN_DARTS_V2": RecurrentCell.parse("sigmoid-0 relu-1 relu-1 identity-1 tanh-2 sigmoid-5 tanh-3 relu-5"),
    "RNN_ENAS": RecurrentCell.parse(
        "tanh-0 tanh-1 relu-1 tanh-3 tanh-3 relu-3 relu-4 relu-7 relu-8 relu-8 relu-8 : 2 5 6 9 10 11"
    ),
}
"""Published cells: DARTS, first and second order (Liu et al., ICLR 2019), and ENAS (Pham et al., ICML 2018)."""
