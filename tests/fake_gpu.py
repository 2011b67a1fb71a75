"""Steps on fake CUDA tensors, which have no contents: whatever reads them on the host, or copies from it, fails."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils._python_dispatch import TorchDispatchMode


def walk_graph(
    output: Tensor,
    inputs: Sequence[Tensor],
    grad_outputs: Tensor | None = None,
    *,
    create_graph: bool = False,
    materialize_grads: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad` node by node. Autograd's own engine asks the driver about CUDA, also for fake tensors."""
    root = get_gradient_edge(output)
    waits_for: dict[Node, int] = defaultdict(int)
    stack, met = [root.node], {root.node}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waits_for[node] += 1
                if node not in met:
                    met.add(node)
                    stack.append(node)
    arrived: dict[Node, dict[int, Tensor]] = defaultdict(dict)
    arrived[root.node][root.output_nr] = torch.ones_like(output) if grad_outputs is None else grad_outputs
    ready = [root.node]
    with torch.set_grad_enabled(create_graph):
        while ready:
            node = ready.pop()
            results: Sequence[Tensor | None] = [None] * len(node.next_functions)
            if arrived[node] and node.next_functions:
                slots = [arrived[node].get(i) for i in range(len(node._input_metadata))]
                returned = getattr(node, "apply", node)(*slots)  # nodes written in Python have `apply`
                results = returned if isinstance(returned, tuple | list) else (returned,)
            # A Python node also returns None for each argument that is no tensor; ours stand last.
            for (parent, slot), result in zip(node.next_functions, results, strict=False):
                if parent is None:
                    continue
                if result is not None:
                    result = result.sum_to_size(parent._input_metadata[slot].shape)
                    before = arrived[parent].get(slot)
                    arrived[parent][slot] = result if before is None else before + result
                waits_for[parent] -= 1
                if not waits_for[parent]:
                    ready.append(parent)
    edges = [get_gradient_edge(tensor) for tensor in inputs]
    found = [arrived[edge.node].get(edge.output_nr) for edge in edges]
    assert materialize_grads or allow_unused or all(g is not None for g in found)
    if not materialize_grads:
        return tuple(found)
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True))


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors made inside are CUDA tensors without contents: shapes are computed, any read by the host raises."""
    monkeypatch.setattr(torch.autograd, "grad", walk_graph)
    with FakeTensorMode(), torch.device("cuda"):
        yield


class NothingFromTheHost(TorchDispatchMode):
    """Fails where a tensor goes from the CPU to the GPU, which waits for the GPU and which no graph can capture."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source = args[1] if func.overloadpacket is torch.ops.aten.copy_ else args[0]
            assert not (source.device.type == "cpu" and out.device.type == "cuda"), (func, tuple(source.shape))
        return out
