"""Stand in for the candidate ops while a patched module's own forward runs, and defer calls of them."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fastdarts.mixed.fused import watched
from fastdarts.mixed.patching.calls import Call
from fastdarts.mixed.patching.outputs import evaluated
from fastdarts.mixed.patching.recognition import Op
from fastdarts.mixed.patching.sums import Session


class OpProxy:
    """A candidate op as a module's own forward sees it: calls of it are deferred, all else is the op's."""

    def __init__(self, session: Session, module: nn.Module, op: Op) -> None:
        self.__dict__.update(_fastdarts=(session, module, op), _fastdarts_training=module.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        session, module, op = self.__dict__["_fastdarts"]
        if kwargs or len(args) != 1 or type(args[0]) is not Tensor:
            args, kwargs = evaluated(args), evaluated(kwargs)
        given = (*args[1:], *kwargs.values())
        # A forward may count operations, with hooks and in eval mode, before it computes.
        as_before = module.training == self.__dict__["_fastdarts_training"] and not any(map(watched, module.modules()))
        if as_before and args and op.more <= len(given) and all(one is None for one in given) and _takes(args[0], op):
            call = Call(module, op, args[0], (None,) * op.more)
            session.calls.append(call)
            return session.output([(call, None)])
        return module(*args, **kwargs)

    forward = __call__

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_fastdarts"][1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_fastdarts"][1], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_fastdarts"][1], name, value)

    def __getitem__(self, index: Any) -> Any:
        return self.__dict__["_fastdarts"][1][index]

    def __len__(self) -> int:
        return len(self.__dict__["_fastdarts"][1])

    def __iter__(self) -> Any:
        return iter(self.__dict__["_fastdarts"][1])


def _takes(x: object, op: Op) -> bool:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 4 or 0 in x.shape:
        return False
    return op.C in (0, x.shape[1])


class ContainerProxy:
    """A list or dictionary of candidate ops as a module's own forward sees it."""

    def __init__(self, container: nn.Module, items: dict[str, Any]) -> None:
        self.__dict__.update(_fastdarts=(container, items))

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self.__dict__["_fastdarts"][0])

    def __getattr__(self, name: str) -> Any:
        container, items = self.__dict__["_fastdarts"]
        if name == "_modules":
            return items
        return items[name] if name in items else getattr(container, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_fastdarts"][0], name, value)

    def __len__(self) -> int:
        return len(self.__dict__["_fastdarts"][1])

    def __iter__(self) -> Any:
        container, items = self.__dict__["_fastdarts"]
        return iter(items) if isinstance(container, nn.ModuleDict) else iter(items.values())

    def __contains__(self, key: object) -> bool:
        return key in self.__dict__["_fastdarts"][1]

    def __getitem__(self, index: Any) -> Any:
        container, items = self.__dict__["_fastdarts"]
        if isinstance(container, nn.ModuleDict):
            return items[index]
        return list(items.values())[index]

    def items(self) -> Any:
        return self.__dict__["_fastdarts"][1].items()

    def keys(self) -> Any:
        return self.__dict__["_fastdarts"][1].keys()

    def values(self) -> Any:
        return self.__dict__["_fastdarts"][1].values()

    def children(self) -> Any:
        return iter(self.__dict__["_fastdarts"][1].values())

    def named_children(self) -> Any:
        return iter(self.__dict__["_fastdarts"][1].items())

    def __reversed__(self) -> Any:
        return reversed(list(self.__dict__["_fastdarts"][1].values()))


@contextmanager
def proxied(session: Session, module: nn.Module, known: dict[str, Op]) -> Iterator[None]:
    """Let a module see its known ops by their proxies, wherever it looks for its children.

    Also in lists of its own, which hold children beside the module's registry. One thread at a time.
    """

    def proxy(path: str, child: nn.Module | None) -> Any:
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            items = {key: proxy(f"{path}.{key}", inner) for key, inner in child._modules.items()}
            return ContainerProxy(child, items)
        op = known.get(path)
        return child if op is None or child is None else OpProxy(session, child, op)

    with _locks_guard:
        lock = _locks.setdefault(module, threading.RLock())
    own = module.__dict__
    with lock:
        seen = {name: proxy(name, child) for name, child in module._modules.items()}
        changed: dict[str, Any] = {"_modules": seen}
        by_id = {id(child): seen[name] for name, child in module._modules.items() if child is not None}
        for name, value in own.items():
            if isinstance(value, list | tuple) and any(id(item) in by_id for item in value):
                changed[name] = type(value)([by_id.get(id(item), item) for item in value])
        before = {name: own[name] for name in changed}
        own.update(changed)
        try:
            yield
        finally:
            own.update({name: value for name, value in before.items() if own.get(name) is changed[name]})


_locks: "weakref.WeakKeyDictionary[nn.Module, Any]" = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()
