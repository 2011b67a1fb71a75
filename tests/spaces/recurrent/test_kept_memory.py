"""The memory that a forward pass of a language model keeps for its backward, by the kernels and by plain modules."""

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from fastdarts.ops.recurrent import unavailable
from fastdarts.spaces.recurrent.architecture import PUBLISHED
from fastdarts.spaces.recurrent.discrete import RecurrentNetwork
from fastdarts.spaces.recurrent.supernet import RecurrentSearchNetwork
from fastdarts.tasks.language import Dropouts, Language

pytestmark = pytest.mark.skipif(
    unavailable(torch.device("cpu"), torch.float32) is not None, reason="fastdarts._C is not built"
)

Backend = Literal["reference", "fused"]
WORDS, WIDTH, STEPS, ROWS = 20, 16, 6, 8


def found(backend: Backend) -> nn.Module:
    return RecurrentNetwork(PUBLISHED["RNN_DARTS_V2"], WORDS, WIDTH, backend)


def supernet(backend: Backend) -> nn.Module:
    return RecurrentSearchNetwork(WORDS, WIDTH, backend)


def loss_of(network: nn.Module) -> tuple[Tensor, int]:
    """Return the loss of a window, and the bytes that its graph keeps besides the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    words = torch.randint(WORDS, (STEPS + 1, ROWS))
    hidden = torch.zeros(ROWS, WIDTH)
    masks = Dropouts(0.5, 0.25, 0.5, 0.2, 0.1).draw(WORDS, hidden, None)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = Language(0.0, 0.0).forward(network, (words[:-1], words[1:], hidden, *masks), None)
    return loss, sum(kept.values())


@pytest.mark.parametrize("make", [found, supernet])
def test_the_kernels_keep_a_quarter_or_less(make: Callable[[Backend], nn.Module]) -> None:
    """Hidden states, a product of each step, statistics: not the states and products of all nodes."""
    plain, fused = (loss_of(make(backend))[1] for backend in ("reference", "fused"))
    assert 4 * fused <= plain, f"{fused} bytes, plain modules {plain}"


def test_the_backward_makes_no_zeros_for_outputs_that_nothing_used() -> None:
    network = found("fused")
    loss, _ = loss_of(network)
    made: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            made.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        torch.autograd.grad(loss, list(network.parameters()))
    assert "fastdarts.recurrent_backward.default" in made
    assert not any("zeros" in name for name in made)
