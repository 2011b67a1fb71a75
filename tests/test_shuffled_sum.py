"""The sum with channel shuffle of PC-DARTS' nodes: opcheck, derivatives, any sizes and layouts, wrong arguments."""

import re

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastdarts import extension
from fastdarts.shuffled_sum import plain, shuffled_sum

pytestmark = pytest.mark.skipif(extension.UNAVAILABLE is not None, reason="needs the extension, which is not built")


def arguments(K: int, size: int, terms: int = 3, dtype: torch.dtype = torch.float64) -> tuple[list[Tensor], ...]:
    """mixed, passing and factors, the images as slices of channels as in a cell."""
    states = [torch.randn(2, K * size + 1, 3, 5).contiguous(memory_format=torch.channels_last) for _ in range(terms)]
    mixed = list(torch.randn(2, terms * size, 3, 5).to(dtype).chunk(terms, dim=1))
    return mixed, [x.to(dtype)[:, 1 + size :] for x in states], [torch.randn(terms).to(dtype)]


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [t.detach().requires_grad_() for t in tensors]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("K", "size"), [(4, 4), (4, 8), (4, 16), (2, 4), (3, 5), (8, 1)])
def test_values_and_gradients(K: int, size: int, dtype: torch.dtype) -> None:
    """As in float64, rounded once."""
    mixed, passing, (factors,) = arguments(K, size, dtype=dtype)
    ours = [leaves(mixed), leaves(passing), leaves([factors])]
    exact = [[t.detach().double().requires_grad_() for t in group] for group in ours]
    y, want = shuffled_sum(ours[0], ours[1], ours[2][0]), plain(exact[0], exact[1], exact[2][0])
    g = torch.randn_like(y)
    got = [y, *torch.autograd.grad(y, [*ours[0], *ours[1], *ours[2]], g)]
    true = [want, *torch.autograd.grad(want, [*exact[0], *exact[1], *exact[2]], g.double())]
    eps = torch.finfo(dtype).eps
    for a, b in zip(got, true, strict=True):
        assert a.dtype == dtype
        # A sum of up to 480 products in the type computed in, then one rounding.
        compute = eps if dtype == torch.float64 else torch.finfo(torch.float32).eps
        torch.testing.assert_close(a.double(), b, rtol=eps, atol=480 * compute)


def test_opcheck() -> None:
    mixed, passing, (factors,) = arguments(2, 3, dtype=torch.float32)
    call = (leaves(mixed), leaves(passing), factors.requires_grad_())
    torch.library.opcheck(torch.ops.fastdarts.shuffled_sum.default, call)
    g = torch.randn(2, 6, 3, 5)
    for need in ((True, True), (False, True), (True, False)):
        back = (g, passing, factors.detach(), *need)
        torch.library.opcheck(torch.ops.fastdarts.shuffled_sum_backward.default, back)


def test_gradcheck() -> None:
    mixed, passing, (factors,) = arguments(2, 2, terms=2)

    def call(factors: Tensor, *images: Tensor) -> Tensor:
        return shuffled_sum(images[:2], images[2:], factors)

    inputs = (factors.requires_grad_(), *leaves(mixed), *leaves(passing))
    assert gradcheck(call, inputs, fast_mode=True)
    assert gradgradcheck(call, inputs, fast_mode=True)


X = torch.zeros(2, 2, 3, 3)


@pytest.mark.parametrize(
    ("mixed", "passing", "factors", "message"),
    [
        ([], [X], torch.ones(1), "must hold [N, C, H, W], not empty"),
        ([X[:0]], [X], torch.ones(1), "must hold [N, C, H, W], not empty"),
        ([X, X[:1]], [X], torch.ones(1), "mixed, and passing, must be alike"),
        ([X], [X.double()], torch.ones(1), "mixed, and passing, must be alike"),
        ([X], [X[:, :, :2]], torch.ones(1), "mixed and passing differ in size"),
        ([X], [X[:, :1]], torch.ones(1), "1 channels are no whole groups of 2"),
        ([X], [X], torch.ones(2), "factors must be [1]"),
    ],
)
def test_wrong_arguments(mixed: list[Tensor], passing: list[Tensor], factors: Tensor, message: str) -> None:
    with pytest.raises((ValueError, IndexError), match=re.escape(message)):
        torch.ops.fastdarts.shuffled_sum(mixed, passing, factors)
