"""Files that torch saved with objects of other code: tensors and plain values are read, nothing else is made or run.

It has the interface that `torch.load(pickle_module=...)` asks for.
"""

import collections
import pickle
from pickle import UnpicklingError as UnpicklingError  # part of the interface
from typing import IO, Any

import torch

_TENSORS = {
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
}


class Unknown:
    """Stands for an object of other code; takes whatever its pickle does to it and does nothing but keep its state."""

    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> "Unknown":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Unknown":
        return Unknown()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass


class Unpickler(pickle._Unpickler):  # the one in Python, whose every call goes through `find_class`
    """Make plain values, tensors and their storages; everything else is an `Unknown`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in _TENSORS:
            return getattr(torch._utils, name)
        if module == "torch" and (name == "Size" or isinstance(vars(torch).get(name), torch.dtype)):
            return vars(torch)[name]
        if module in ("builtins", "__builtin__") and name in ("set", "dict", "list", "tuple", "int", "float", "str"):
            return {"set": set, "dict": dict, "list": list, "tuple": tuple, "int": int, "float": float, "str": str}[
                name
            ]
        return type(name, (Unknown,), {})

    def get_extension(self, code: int) -> None:
        raise UnpicklingError("the file uses registered extensions")


def load(file: IO[bytes], **arguments: Any) -> Any:
    """Read one pickle."""
    return Unpickler(file, **arguments).load()


def state_of_module(value: Any) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a module that was saved whole, by their names; empty for anything else."""
    found: dict[str, torch.Tensor] = {}

    def visit(module: Any, prefix: str, depth: int) -> None:
        state = getattr(module, "state", None)
        if not isinstance(module, Unknown) or not isinstance(state, dict) or depth > 100:
            return
        for kind in ("_parameters", "_buffers"):
            part = state.get(kind)
            for name, tensor in part.items() if isinstance(part, dict) else ():
                if isinstance(tensor, torch.Tensor):
                    found[prefix + str(name)] = tensor
        modules = state.get("_modules")
        for name, inner in modules.items() if isinstance(modules, dict) else ():
            visit(inner, f"{prefix}{name}.", depth + 1)

    visit(value, "", 0)
    return found
