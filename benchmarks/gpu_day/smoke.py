"""The cells of the smoke test, and the sizes of each launch's numbers by which a wrong kernel is named."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kernel_cases import Case, Results, fused, make_case, plain

from benchmarks.gpu_day.day import Geometry
from benchmarks.gpu_day.recording import Launch, each_launch, nan_in_new_memory

SAMPLES = 256  # numbers of each tensor that are compared
Sample = list[torch.Tensor]


def cases(geometry: Geometry) -> dict[str, Case]:
    """Return a cell of each size and stride, in bfloat16, from fixed numbers."""
    found = {}
    for name, (C, size, images) in geometry.smoke.items():
        for stride in (1, 2):
            torch.manual_seed(0)
            shape = (images, size * stride, size * stride)
            case = make_case(geometry.primitives, inputs=2, nodes=2, stride=stride, C=C, size=shape)
            found[f"{name}, stride {stride}"] = case.to(torch.bfloat16)
    return found


def too_far(ours: Results, case: Case) -> dict[str, float]:
    """Return the results whose error is more than is allowed, as multiples of that.

    Allowed are twice the error of the plain formulas in the case's type, or of the truth from states that another
    rounding to it gave (a relu or a maximum that switches moves a gradient far), and a few roundings of the largest.
    """
    dtype = case.states[0].dtype
    true, theirs, eps = plain(case, torch.float64), plain(case, dtype), torch.finfo(dtype).eps
    nudged = [state * (1 + eps / 2 * torch.randn_like(state).sign()) for state in case.to(torch.float64).states]
    moved = plain(replace(case, states=nudged), torch.float64)
    found = {}
    for name, t in true.items():
        mine, *others = ((other[name].double() - t).abs().max().item() for other in (ours, theirs, moved))
        allowed = 2 * max(others) + (8 if max(others) else 64) * eps * t.abs().max().item()
        if not mine <= allowed:
            found[name] = mine / max(allowed, 1e-30)
    return found


def sample(launch: Launch) -> Sample:
    """Return some numbers of each of a launch's floating tensors, in float32 on the CPU, from all over it."""
    found = []
    for t in launch.tensors:
        if t.is_floating_point() and t.numel():
            at = torch.arange(SAMPLES, dtype=torch.float64).mul(t.numel() / SAMPLES).long()
            dense = t.permute(0, 2, 3, 1) if t.dim() == 4 else t
            found.append(dense.reshape(-1)[at.to(t.device)].float().cpu())
    return found


def samples(case: Case) -> list[tuple[str, Sample]]:
    """Return kernel name and sample of each launch of a case's forward and backward."""
    found: list[tuple[str, Sample]] = []
    with nan_in_new_memory(), each_launch(lambda launch: found.append((launch.name, sample(launch)))):
        fused(case)
    return found


def first_difference(ours: list[tuple[str, Sample]], reference: list[tuple[str, Sample]]) -> str | None:
    """Return the first launch whose numbers are not those of the reference, and how far apart they are.

    Roundings of bfloat16 add up over a cell's kernels to a few percent of a tensor's spread; a kernel that is wrong is
    off by as much as the numbers themselves.
    """
    for i, ((name, mine), (other, theirs)) in enumerate(zip(ours, reference, strict=True)):
        if name != other:
            return f"launch {i} is {name}, in the reference {other}"
        for k, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            if (a.isfinite() != b.isfinite()).any():
                return f"launch {i}, {name}, tensor {k}: other numbers are finite"
            a, b = a.nan_to_num(), b.nan_to_num()
            error, spread = (a - b).square().mean().sqrt().item(), b.square().mean().sqrt().item()
            if error > 0.1 * spread:
                return f"launch {i}, {name}, tensor {k}: off by {error:.2e} of {spread:.2e}"
    return None


def save(geometry: Geometry, path: Path) -> None:
    """Write every case's samples, by the kernels in Triton's interpreter."""
    torch.save({name: samples(case) for name, case in cases(geometry).items()}, path)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
