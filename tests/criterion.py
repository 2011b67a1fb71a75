"""When a fast answer is as good as a plain one: its error against float64 is at most twice the plain modules' own.

A single error is a draw of chance, so "the plain modules' own" also counts what one rounding of every input does to the
true answer: no algorithm in that precision can promise less. Beside the largest error the root mean square is compared,
since a ReLU or max-pool that switches (its input within rounding of the kink) moves single elements in any computation.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Results = Mapping[str, Tensor]


def rounded_at_random(t: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """t with every element changed by up to half of eps, relatively."""
    return t * (1 + eps * (torch.rand(t.shape, generator=generator, dtype=t.dtype) - 0.5))


def assert_no_worse(
    ours: Results, plain: Results, true: Results, moved: list[Results], eps: float, floor: float = 0.0
) -> None:
    """ours and plain: results in some precision of unit rounding eps; true: in float64; moved: of rounded inputs,
    in float64 or by the plain modules in their precision; floor: an error of the inputs' gradients that always passes.

    In float64 the plain modules are the truth and show no error of their own, so that only the rounded inputs speak:
    there sums of some hundred terms may lose ten times as much, which is still 1e-13 or so.
    """
    slack = 2 if eps > torch.finfo(torch.float64).eps else 10
    assert set(ours) == set(plain) == set(true)
    for name, exact in true.items():
        assert ours[name].shape == exact.shape, f"{name}: shape {tuple(ours[name].shape)}, not {tuple(exact.shape)}"
        if exact.numel() == 0:
            continue
        assert ours[name].isfinite().all(), f"{name} is not finite"
        scale = exact.abs().max().item()
        if name.endswith("running_mean"):  # the mean of numbers that cancel is rounded as they are
            scale = max(scale, true[name.replace("running_mean", "running_var")].max().item() ** 0.5)
        for kind, size in SIZES.items():
            error = size(ours[name].double() - exact)
            errors = [size(other[name].double() - exact) for other in (plain, *moved)]
            own = max(e for e in errors if math.isfinite(e))  # plain modules that fail are no yardstick
            allowed = slack * own + 4 * eps * scale + (floor if name.startswith("d input") else 0.0)
            assert error <= allowed, f"{name}: {kind} {error:.2e}, plain {own:.2e}, scale {scale:.2e}, eps {eps:.1e}"


def assert_no_worse_than_plain(ours: Tensor, plain: Tensor, true: Tensor, dtype: torch.dtype, name: str) -> None:
    """For channels of variance 0, where rounding an input has no yardstick: the plain modules' error alone, and what
    batch norm makes of rounding in the type that is computed in: 316 times as much in the output, which a gradient
    multiplies again. In float64 the plain modules are the truth, and their own rounding counts as ours."""
    error, own = ((t.double() - true).abs().max().item() for t in (ours, plain))
    scale = true.abs().max().item()
    computed = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * (316**2 if dtype == torch.float64 else 316)
    allowed = 2 * own + 4 * torch.finfo(dtype).eps * scale + 50 * computed * max(1.0, scale)
    assert error <= allowed, f"{name}: error {error:.2e}, plain {own:.2e}, scale {scale:.2e}, allowed {allowed:.2e}"


SIZES: dict[str, Callable[[Tensor], float]] = {
    "largest error": lambda t: t.abs().max().item(),
    "rms error": lambda t: t.square().mean().sqrt().item(),
}


def pooled(found: Results, true: Results) -> Results:
    """The gradients of all weights as one tensor, and all buffers as one, each relative to its true size.

    For 16-bit cells: of some two hundred small gradients a few meet a kink in one computation and not in the other.
    """
    kinds: dict[str, list[Tensor]] = {}
    for name, exact in true.items():
        if exact.is_floating_point():
            kind = "weights" if name.endswith(".weight") else "buffers" if "running" in name else name
            size = exact.square().mean().sqrt().item() if kind != name else 1.0
            kinds.setdefault(kind, []).append(found[name].double().flatten() / (size or 1.0))
    return {kind: torch.cat(parts) for kind, parts in kinds.items()}
