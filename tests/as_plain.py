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


class ExactNorm(nn.BatchNorm2d):
    """Normalise as the formula says, (x - mean) * rstd, with moments about the first value: exact for constants.

    PyTorch's own on CPUs computes x * rstd - mean * rstd, which loses digits where a mean is large against the
    deviation: in float64, where the plain modules would be the truth, it is then further from it than the kernels.
    """

    factor = 0.0
    """The largest rstd * weight so far."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            about = x - x[:1, :, :1, :1].detach()
            centred = about - about.mean((0, 2, 3), keepdim=True)
            variance = centred.square().mean((0, 2, 3), keepdim=True)
            self._track((x - centred).detach(), variance.detach(), x.numel() // x.shape[1])
        else:
            centred = x - self.running_mean[:, None, None]
            variance = self.running_var[:, None, None]
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight[:, None, None]
        self.factor = max(self.factor, scale.detach().abs().max().item())
        return centred * scale + (self.bias[:, None, None] if self.affine else 0)

    @torch.no_grad()
    def _track(self, means: Tensor, variance: Tensor, values: int) -> None:
        self.num_batches_tracked += 1
        self.running_mean.lerp_(means.mean((0, 2, 3)), self.momentum)
        self.running_var.lerp_(variance.flatten() * values / max(values - 1, 1), self.momentum)


def exactly(module: nn.Module) -> nn.Module:
    """A copy in float64 with exact batch norms."""
    twin = copy.deepcopy(module).double()
    for part in twin.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = ExactNorm
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

    In bfloat16 the arithmetic between what is stored is float32. A batch norm there makes rstd * (g - mean(g)) of its
    gradient g; where a channel is constant (rstd 316) and a max-pool leads both parts to one pixel, the truth is 0, and
    with two values the plain modules find it, since -a rounds as a does. What float32 leaves of terms of that size, a
    rounding each of product, mean, sum and the next stage's, is no fault: 4 * eps * rstd * |g|.
    """
    eps, generator = torch.finfo(g.dtype).eps, torch.Generator().manual_seed(1)
    exact, moved = exactly(plain), []
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
    floor = 0.0
    if g.dtype == torch.bfloat16:
        factors = [part.factor for part in exact.modules() if isinstance(part, ExactNorm)]
        floor = 4 * torch.finfo(torch.float32).eps * max(factors, default=0.0) * g.abs().max().item()
    assert_no_worse(ours, plainly, truth, moved, eps, floor)
