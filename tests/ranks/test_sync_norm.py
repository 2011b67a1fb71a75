"""Batch norm over the rows of two ranks is nn.BatchNorm2d over all rows."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from spawned import on_ranks
from torch import Tensor, nn

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.sync_norm import SyncBatchNorm2d, synchronise


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Seven images far from zero, and factors that make a loss of the outputs and of their gradients."""
    generator = torch.Generator().manual_seed(0)
    x, a, b = (torch.randn(7, 3, 4, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    return 100 + x, a, b


def norm_of(affine: bool, momentum: float | None) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(3, affine=affine, momentum=momentum).double()
    if affine:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, -1.0, 2.0]))
            norm.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    return norm


def results(norm: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """Outputs in train and eval mode, gradients, gradients of a function of gradients, running statistics."""
    x = x.clone().requires_grad_()
    out = norm(x)
    first = torch.autograd.grad((out.sin() * a).sum(), [x, *norm.parameters()], create_graph=True)
    second = torch.autograd.grad((first[0] * b).sum(), x)[0]
    found = {"out": out, "dx": first[0], "second": second}
    found |= {f"sum {i}": gradient for i, gradient in enumerate(first[1:])}
    found["eval"] = norm.eval()(x)
    return {name: value.detach() for name, value in found.items()} | dict(norm.named_buffers())


def on_rank(affine: bool, momentum: float | None) -> dict[str, Tensor]:
    """This rank's rows: three of the first, four of the second."""
    rows = slice(0, 3) if dist.get_rank() == 0 else slice(3, 7)
    network = nn.Sequential(norm_of(affine, momentum))
    synchronise(network, Ranks.of_process_group())
    assert type(network[0]) is SyncBatchNorm2d
    return results(network[0], *(tensor[rows] for tensor in inputs()))


@pytest.mark.parametrize(("affine", "momentum"), [(True, 0.1), (False, None)])
def test_synchronised_batch_norm(affine: bool, momentum: float | None, tmp_path: Path) -> None:
    expected = results(norm_of(affine, momentum), *inputs())
    first, second = on_ranks(2, on_rank, tmp_path, affine, momentum)
    for name, whole in expected.items():
        if name.startswith("sum"):
            ours = first[name] + second[name]
        else:
            ours = torch.cat([first[name], second[name]]) if whole.dim() == 4 else first[name]
        torch.testing.assert_close(ours, whole, rtol=1e-9, atol=1e-9, msg=name)
    assert torch.equal(first["running_var"], second["running_var"])


def test_one_rank_keeps_its_batch_norms() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3))
    synchronise(network, ALONE)
    assert type(network[0]) is nn.BatchNorm2d
