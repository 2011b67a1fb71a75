"""Modules through the kernels against their plain twins: outputs, gradients and buffers by the rule of `criterion`."""

import copy

import torch
from criterion import Results, assert_no_worse, pooled, rounded_at_random
from torch import Tensor, nn


def with_backend(module: nn.Module, backend: str) -> nn.Module:
    twin = copy.deepcopy(module)
    for part in twin.modules():
        if hasattr(part, "backend"):
            part.backend = backend
    return twin


def run(module: nn.Module, inputs: list[Tensor], g: Tensor) -> Results:
    """Output, gradients and buffers of a module, bfloat16 under autocast."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16, enabled=inputs[0].dtype == torch.bfloat16):
        y = module(*leaves)
    named = {f"input {i}": leaf for i, leaf in enumerate(leaves)} | dict(module.named_parameters())
    wanted = list(named.values())
    if not y.requires_grad:  # no op ran
        y = y + 0 * wanted[0].sum()
    grads = torch.autograd.grad(y, wanted, g.to(y.dtype), allow_unused=True, materialize_grads=True)
    found = {f"d {name}": grad for name, grad in zip(named, grads, strict=True)}
    return {"y": y.detach(), **found, **{name: buffer.clone() for name, buffer in module.named_buffers()}}


def assert_as_good(ours: Results, plain: nn.Module, inputs: list[Tensor], g: Tensor, roundings: int = 2) -> None:
    """Compare what `run` found with the kernels to what the same module's plain modules compute.

    Args:
        ours: the results with the kernels.
        plain: the module with backend "reference".
        inputs, g: the arguments of `run`.
        roundings: how often all inputs, parameters, statistics and g are rounded at random, which shows the error that
            no computation can avoid.
    """
    eps, generator = torch.finfo(g.dtype).eps, torch.Generator().manual_seed(1)
    exact, moved = copy.deepcopy(plain).double(), []
    for _ in range(roundings):
        other = copy.deepcopy(exact)
        with torch.no_grad():
            for t in (*other.parameters(), *(b for b in other.buffers() if b.is_floating_point())):
                t.copy_(rounded_at_random(t, eps, generator))
        *at, g_at = (rounded_at_random(x.double(), eps, generator) for x in (*inputs, g))
        # Also in the module's own precision: the error of the plain modules in a single sum is a draw of chance.
        lower = copy.deepcopy(plain)
        lower.load_state_dict(other.state_dict())
        moved.append(run(lower, [a.to(x.dtype) for a, x in zip(at, inputs, strict=True)], g_at.to(g.dtype)))
        moved.append(run(other, at, g_at))
    truth, plainly = run(exact, [x.double() for x in inputs], g.double()), run(plain, inputs, g)
    if g.dtype == torch.bfloat16:
        ours, plainly, *moved, truth = (pooled(found, truth) for found in (ours, plainly, *moved, truth))
    assert_no_worse(ours, plainly, truth, moved, eps)
