"""Genotypes as other code prints and holds them: text is parsed as literals, never run."""

import ast
import re
from collections.abc import Mapping
from typing import Any

from fastdarts.config.plain import plain

FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
_LONGEST = 100_000
_LISTS = r"list|tuple|array|tensor"
_SCALARS = r"u?int(8|16|32|64)?|str_|array|tensor"
_CALL = re.compile(r"(?:(\w+)\s*=\s*)?\b[A-Za-z_][\w.]*\(\s*normal\s*=")


def fields_of(value: Any) -> dict[str, Any]:
    """Return the four fields of a genotype that other code made, as plain lists.

    Args:
        value: a named tuple, a mapping or any object with the fields; with ranges, numpy's integers, a list of pairs
            for each node, (primitive, predecessor, weight) or FairDARTS' (primitive, state, predecessor).

    Raises: TypeError or ValueError for anything else.
    """
    if isinstance(value, Mapping):
        found = {name: value[name] for name in FIELDS if name in value}
    else:
        found = {name: getattr(value, name) for name in FIELDS if hasattr(value, name)}
    if missing := [name for name in FIELDS if name not in found]:
        raise TypeError(
            f"a genotype needs the fields {', '.join(FIELDS)}; {type(value).__name__} lacks {', '.join(missing)}"
        )
    fields = {name: _lists(plain(field, f"genotype.{name}")) for name, field in found.items()}
    for cell in ("normal", "reduce"):
        pairs, concat = fields[cell], fields[f"{cell}_concat"]
        if isinstance(pairs, list) and pairs and all(_is_triple(pair, int) for pair in pairs):
            last = max([*(pair[1] for pair in pairs), *(s for s in concat if isinstance(s, int))], default=1)
            nodes: list[list[list[Any]]] = []
            for state in range(2, last + 1):  # as FairDARTS' network, without ops from nodes that have none
                ours = [[op, source] for op, target, source in pairs if target == state]
                nodes.append([pair for pair in ours if pair[1] < 2 or (pair[1] < state and nodes[pair[1] - 2])])
            fields[cell] = nodes
            fields[f"{cell}_concat"] = [s for s in concat if not (isinstance(s, int) and s >= 2) or nodes[s - 2]]
        else:
            fields[cell] = _without_weights(pairs)
    return fields


def fields_in_text(text: str, name: str | None = None) -> dict[str, Any]:
    """Return the fields of the genotype that a text holds as DARTS prints it, `Genotype(normal=[...], ...)`.

    Args:
        text: an expression, a log (its last genotype is taken) or Python code with assignments.
        name: of the assignment, where there are several.

    Raises: ValueError where there is none, where several have names of their own and none is asked for, or where the
        text holds anything but literals, ranges, arrays and the integers of numpy and of tensors.
    """
    calls = list(_CALL.finditer(text))
    if not calls:
        raise ValueError("no Genotype(normal=..., normal_concat=..., reduce=..., reduce_concat=...) is in it")
    if name is not None:
        calls = [call for call in calls if call[1] == name]
        if not calls:
            raise ValueError(f"it has no genotype called {name!r}")
    elif len(names := list(dict.fromkeys(call[1] for call in calls if call[1]))) > 1:
        raise ValueError(f"it has several genotypes, say which one as FILE:NAME: {', '.join(names)}")
    call = calls[-1]
    start = call.end(1) if call[1] else call.start()
    expression = _balanced(text[start:].lstrip(" =\t\n"))
    try:
        tree = ast.parse(expression, mode="eval").body
        assert isinstance(tree, ast.Call)
        values = [_literal(argument) for argument in tree.args]
        return fields_of(
            dict(zip(FIELDS, values, strict=False))
            | {keyword.arg: _literal(keyword.value) for keyword in tree.keywords if keyword.arg in FIELDS}
        )
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"its genotype cannot be read: {error or type(error).__name__}") from None
    except TypeError as error:
        raise ValueError(str(error)) from None


def _balanced(text: str) -> str:
    """Return a call's text, from its beginning to the parenthesis that closes it."""
    depth = 0
    for index, character in enumerate(text[:_LONGEST]):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == ")" and depth == 0:
            return text[: index + 1]
    raise ValueError("its genotype has no closing parenthesis")


def _literal(node: ast.expr) -> Any:
    """Return a literal's value; a range or an array is a list, integers of numpy and tensors are integers."""
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Call) and {keyword.arg for keyword in node.keywords} <= {"dtype", "device"}:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        values = [_literal(argument) for argument in node.args]
        if name in ("range", "arange") and 1 <= len(values) <= 3:
            if all(type(v) is int and abs(v) < 1000 for v in values):
                return list(range(*values))
        elif len(values) == 1 and re.fullmatch(_LISTS if isinstance(values[0], list) else _SCALARS, name):
            return values[0]
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"a genotype is made of literals; got {ast.unparse(node)[:60]!r}") from None


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _is_triple(value: Any, last: type) -> bool:
    return isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and type(value[2]) is last


def _without_weights(value: Any) -> Any:
    """Return a cell's lists with (primitive, predecessor, weight) cut to pairs."""
    if _is_triple(value, float):
        return value[:2]
    return [_without_weights(item) for item in value] if isinstance(value, list) else value
