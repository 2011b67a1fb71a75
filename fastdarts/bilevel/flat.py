"""Store a network's weights, their gradients and their momentum, each in one contiguous buffer."""

from __future__ import annotations

import copyreg
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from fastdarts.ops import flat_ops


class FlatWeights:
    """Turn parameters into views of one contiguous buffer; they keep their values and stay ordinary parameters.

    `state_dict()`, `load_state_dict()`, `deepcopy`, pickling and other optimizers work as before. `.to()` and similar
    calls give the parameters separate memory; the next `attach()` gathers them again. Parameters that are already
    consecutive in one storage, as another `FlatWeights` leaves them, are not copied.

    Args:
        weights: distinct parameters on one device, all float32 or all float64.

    Raises:
        ValueError: no weights, a weight given twice, sharded weights, several devices or dtypes, or another dtype.
    """

    buffer: Tensor
    """[numel]: the weights in the order given, the elements of each in the order of its memory format."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self.weights = list(weights)
        self.numel = sum(w.numel() for w in self.weights)
        if self.numel == 0:
            raise ValueError("weights is empty: no parameter requires gradients")
        if any(hasattr(w, "full_tensor") for w in self.weights):  # DTensors, whose import takes a second
            raise ValueError(
                "weights are sharded (fully_shard): their parts cannot become one buffer. Shard after the search, or "
                "take alphas' gradients with torch.autograd.grad and average them with Ranks.of_process_group().sum"
            )
        if len(set(map(id, self.weights))) < len(self.weights):
            raise ValueError("weights holds a parameter more than once")
        self._flatten()
        copyreg.pickle(nn.Parameter, _reduce_parameter)

    def attach(self) -> Tensor:
        """Return the buffer, after making the weights views of it again if they are not."""
        if not self._viewed_in(self.buffer):
            self._flatten()
        return self.buffer

    def gather(self, tensors: Sequence[Tensor | None], out: Tensor | None = None) -> Tensor:
        """Gather `tensors`, one per weight and shaped like it (None means zeros), into one flat tensor [numel]."""
        if len(tensors) != len(self.weights):
            raise ValueError(f"there are {len(self.weights)} weights; got {len(tensors)} tensors")
        first = self.weights[0]
        in_memory_order: list[Tensor] = []
        zeros = 0  # elements of the Nones since the last tensor
        for index, (weight, tensor) in enumerate(zip(self.weights, tensors, strict=True)):
            if tensor is None:
                zeros += weight.numel()
                continue
            if zeros:
                in_memory_order.append(first.new_zeros(zeros))
                zeros = 0
            in_memory_order.append(tensor.permute(self._orders[index]) if index in self._orders else tensor)
        if zeros:
            in_memory_order.append(first.new_zeros(zeros))
        if out is None:
            out = torch.empty(self.numel, dtype=first.dtype, device=first.device)
        return flat_ops.gather(in_memory_order, out)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of the tensor `flat` [numel] with the weights' shapes and memory formats."""
        pieces = flat.split([w.numel() for w in self.weights])
        return [p.as_strided(w.shape, s) for p, w, s in zip(pieces, self.weights, self._strides, strict=True)]

    def _flatten(self) -> None:
        kinds = {(w.device, w.dtype) for w in self.weights}
        if len(kinds) > 1 or self.weights[0].dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "weights must be on one device and all float32 or all float64 (amp_dtype runs the network in less); "
                f"got {', '.join(sorted(f'{dtype} on {device}' for device, dtype in kinds))}"
            )
        self._strides = [torch.empty_like(w).stride() for w in self.weights]  # dense, in the weight's memory format
        self._orders = {
            i: _slowest_first(s)
            for i, (w, s) in enumerate(zip(self.weights, self._strides, strict=True))
            if not w.is_contiguous()
        }
        buffer = self._adopted()
        if buffer is None:
            with torch.no_grad():
                buffer = self.gather([w.detach() for w in self.weights])
            for w, view in zip(self.weights, self.views(buffer), strict=True):
                w.data = view
        self.buffer = buffer
        _flat_storages.add(id(buffer.untyped_storage()))

    def _adopted(self) -> Tensor | None:
        """Return a flat view of the weights' storage if they are consecutive in it, else None."""
        first = self.weights[0].detach()
        room = first.untyped_storage().nbytes() // first.element_size() - first.storage_offset()
        if room < self.numel or any(w.stride() != s for w, s in zip(self.weights, self._strides, strict=True)):
            return None
        buffer = first.as_strided((self.numel,), (1,), first.storage_offset())
        return buffer if self._viewed_in(buffer) else None

    def _viewed_in(self, buffer: Tensor) -> bool:
        storage, offset = buffer.untyped_storage(), buffer.storage_offset()
        for w, stride in zip(self.weights, self._strides, strict=True):
            if w.untyped_storage() is not storage or w.storage_offset() != offset or w.stride() != stride:
                return False
            offset += w.numel()
        return True


class FlatSGD(SGD):
    """Run SGD with momentum, weight decay and clipping by the global norm in one pass over flat buffers.

    The updates equal those of `torch.optim.SGD` (without dampening and Nesterov momentum). Parameter groups and
    optimizer state have the same format, so state dicts load in both directions. A weight without a gradient counts
    as one with gradient zero.

    Args:
        weights: parameters as for `FlatWeights`, in one group.
        lr, momentum, weight_decay: as in `torch.optim.SGD`.

    Raises:
        ValueError: as `torch.optim.SGD` and `FlatWeights`, or if a loaded state dict sets an option without support.
    """

    flat: FlatWeights
    momentum: Tensor
    """[numel]: the momentum buffers, zero before the first step."""
    gradient_norm: Tensor
    """Euclidean norm of the latest step's gradient before clipping; a float64 scalar on the device."""

    def __init__(
        self,
        weights: Iterable[nn.Parameter],
        lr: float | Tensor = 1e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(list(weights), lr, momentum=momentum, weight_decay=weight_decay)
        self._flatten()

    @torch.no_grad()
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], float] | None = None,
        *,
        gradient: Tensor | None = None,
        max_norm: float = math.inf,
        lr: Tensor | None = None,
    ) -> float | None:
        """Take one step without synchronising with the device; return the closure's loss, or None.

        Args:
            closure: as in `torch.optim.SGD`.
            gradient: flat gradient [numel]; by default gathered from the weights' `.grad`.
            max_norm: largest Euclidean norm of the gradient; a longer one is scaled down to it.
            lr: learning rate as a float64 scalar on the device, in place of the group's.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        (group,) = self.param_groups
        weights = self.attach()
        if gradient is None:
            gradient = self.flat.gather([w.grad for w in self.flat.weights])
        if lr is None:
            lr = as_scalar(group["lr"], weights.device)
        self.gradient_norm = flat_ops.norm(gradient)
        # With momentum 0 the momentum buffers keep their values, as in torch.optim.SGD, in case it is set again.
        buffer = self.momentum if group["momentum"] else None
        flat_ops.clipped_sgd(
            weights,
            buffer,
            gradient,
            self.gradient_norm,
            lr,
            group["momentum"],
            group["weight_decay"],
            max_norm,
        )
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add the only parameter group; raise ValueError for a second one."""
        if self.param_groups:
            raise ValueError("FlatSGD has one parameter group; build a new one with all weights")
        super().add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state to copy or pickle, with cloned momentum buffers, because pickle does not preserve views."""
        state: dict[str, Any] = super().__getstate__()
        own = {w: held | {"momentum_buffer": held["momentum_buffer"].clone()} for w, held in self.state.items()}
        return state | {"state": defaultdict(dict, own)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set a loaded, copied or unpickled state and flatten it; raise ValueError for unsupported options."""
        if len(state["param_groups"]) != 1:
            raise ValueError(f"FlatSGD has one parameter group; the state has {len(state['param_groups'])}")
        for option in ("dampening", "nesterov", "maximize"):
            if state["param_groups"][0].get(option):
                raise ValueError(f"FlatSGD offers no {option}; the state has {state['param_groups'][0][option]!r}")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._flatten()

    def _flatten(self) -> None:
        weights = self.param_groups[0]["params"]
        self.flat = FlatWeights(weights)
        self._weights = self.flat.buffer
        held = [self.state[w].get("momentum_buffer") for w in weights]
        self.momentum = self.flat.gather([None if m is None else m.to(w) for w, m in zip(weights, held, strict=True)])
        for w, view in zip(weights, self.flat.views(self.momentum), strict=True):
            self.state[w]["momentum_buffer"] = view

    def attach(self) -> Tensor:
        """Return the weights' buffer, after flattening weights and momentum again if the weights have moved."""
        if self.flat.attach() is not self._weights:
            self._flatten()
        return self._weights


def as_scalar(value: float | Tensor, device: torch.device) -> Tensor:
    """Return `value`, a number or one-element tensor, as a float64 scalar on `device`, without synchronising."""
    if isinstance(value, Tensor):
        return value.detach().to(device, torch.float64).reshape(())
    return torch.full((), value, dtype=torch.float64, device=device)


def _slowest_first(strides: tuple[int, ...]) -> list[int]:
    return sorted(range(len(strides)), key=lambda dim: -strides[dim])


# Ids of the storages that weights were made views of. A storage keeps its id as long as a tensor uses it.
_flat_storages: set[int] = set()


def _reduce_parameter(parameter: nn.Parameter) -> str | tuple[Any, ...]:
    """Reduce a flat weight to an ordinary one for pickling: each view would otherwise save the whole buffer again."""
    if id(parameter.untyped_storage()) in _flat_storages:
        parameter = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    return parameter.__reduce_ex__(2)
