"""Networks inside other people's distributed programs: DistributedDataParallel and fully_shard, two ranks each."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from spawned import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from fastdarts import Architect, MixedOp, SearchNetwork
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.step import SearchStep

PRIMITIVES = ("none", "max_pool_3x3", "skip_connect", "sep_conv_3x3")


def network_of(seed: int) -> SearchNetwork:
    torch.manual_seed(seed)
    return SearchNetwork(C=4, num_classes=3, layers=3, steps=2, multiplier=2, primitives=PRIMITIVES).double()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """This rank's rows."""
    generator = torch.Generator().manual_seed(2 * seed + dist.get_rank())
    return torch.randn(4, 3, 8, 8, generator=generator).double(), torch.randint(3, (4,), generator=generator)


def numbers_of(network: SearchNetwork) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*network.arch_parameters(), *network.parameters())]


def loop_with_ddp(order: int) -> list[list[Tensor]]:
    """A loop with DDP for the weights and Architect for the alphas, and our own step; both from rank 0's numbers."""
    network = network_of(seed=dist.get_rank())
    ddp = DistributedDataParallel(network)
    optimizer = SGD(network.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    architect = Architect(network, lr=0.01)
    other = network_of(seed=0)
    theirs = SGD(other.parameters(), 0.05, momentum=0.9, weight_decay=3e-4)
    step = SearchStep(other, Architect(other, lr=0.01), theirs, order=order)
    for seed in range(3):
        train, valid = batch(seed), batch(seed + 10)
        architect.step(train, valid, 0.05, optimizer, order)
        optimizer.zero_grad()
        cross_entropy(ddp(train[0]), train[1]).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        step.step(train, valid)
    return [numbers_of(network), numbers_of(other)]


@pytest.mark.parametrize("order", [1, 2])
def test_weights_by_ddp_and_alphas_by_architect(order: int, tmp_path: Path) -> None:
    first, second = on_ranks(2, loop_with_ddp, tmp_path, order)
    for by_ddp, by_step, elsewhere in zip(*first, second[0], strict=True):
        assert torch.equal(by_ddp, elsewhere)
        torch.testing.assert_close(by_ddp, by_step, rtol=1e-9, atol=1e-11)


class Edge(nn.Module):
    """An edge whose alphas are parameters, as in programs that give all of them to one optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        self.op = MixedOp(4, 1, PRIMITIVES)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x, self.alpha.softmax(0))


def edge_in_ddp() -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    edge = Edge().double()
    plain = copy.deepcopy(edge)
    x = batch(0)[0][:, :1].expand(-1, 4, -1, -1)
    ddp = DistributedDataParallel(edge)  # its hooks last as long as it
    ddp(x).square().mean().backward()
    plain(x).square().mean().backward()
    ours, theirs = ([p.grad for p in module.parameters() if p.grad is not None] for module in (edge, plain))
    return ours, [Ranks.of_process_group().mean(gradient) for gradient in theirs]


def test_a_mixed_op_inside_ddp(tmp_path: Path) -> None:
    for ours, theirs in on_ranks(2, edge_in_ddp, tmp_path):
        for gradient, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def in_fsdp() -> dict[str, Any]:
    """Shard cells and network; take a first-order alpha step and a weight step as the program would."""
    network = network_of(seed=0)
    plain = copy.deepcopy(network)
    mesh = init_device_mesh("cpu", (2,))
    for cell in network.cells:
        fully_shard(cell, mesh=mesh)
    fully_shard(network, mesh=mesh)
    ranks, (x, y) = Ranks.of_process_group(), batch(0)
    losses = [cross_entropy(model(x), y) for model in (network, plain)]
    for loss in losses:
        loss.backward()
    ours, theirs = (ranks.sum([a.grad / 2 for a in n.arch_parameters()]) for n in (network, plain))
    whole = [p.grad.full_tensor() for p in network.parameters()]
    expected = ranks.sum([p.grad / 2 for p in plain.parameters()])
    try:
        Architect(network)
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    return {
        "losses": losses,
        "pairs": [*zip(ours, theirs, strict=True), *zip(whole, expected, strict=True)],
        "refusal": refusal,
    }


def test_a_network_inside_fully_shard(tmp_path: Path) -> None:
    for found in on_ranks(2, in_fsdp, tmp_path):
        torch.testing.assert_close(*found["losses"], rtol=1e-12, atol=1e-12)
        for gradient, expected in found["pairs"]:
            torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
        assert "weights are sharded" in found["refusal"]


def differing() -> list[float]:
    """Architects of ranks with other seeds: together they begin with rank 0's numbers, alone with their own."""
    together, alone = network_of(dist.get_rank()), network_of(dist.get_rank())
    Architect(together)
    Architect(alone, ranks=ALONE)
    return [float(numbers_of(network)[0][0, 0]) for network in (together, alone)]


def test_alphas_are_the_first_ranks_unless_each_is_alone(tmp_path: Path) -> None:
    first, second = on_ranks(2, differing, tmp_path)
    assert first[0] == second[0]
    assert first[1] != second[1]
