"""Products in bfloat16 whose pixels and channels do not fill whole registers: as good as plain modules, equal bits."""

import pytest
import torch
from as_plain import assert_as_good, run, with_backend

from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.ops import operators
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.cell import Cell

pytestmark = pytest.mark.skipif(
    operators.unavailable(torch.device("cpu"), torch.float32) is not None,
    reason="needs fastdarts._C, which is not built",
)
NAMES = (*PRIMITIVES, "nor_conv_1x1")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("images", "C", "size"),
    [
        (2, 16, (8, 8)),
        (3, 24, (5, 7)),
        (2, 40, (4, 9)),
        (2, 64, (3, 3)),
        (2, 80, (2, 9)),
        (7, 100, (1, 1)),
        (1, 4, (17, 16)),
    ],
)
def test_edge(images: int, C: int, size: tuple[int, int], stride: int) -> None:
    plain = MixedOp(C, stride, NAMES, "reference")
    x, row = torch.randn(images, C, *size).bfloat16(), torch.randn(len(NAMES)).softmax(-1)
    g = torch.randn(images, C, *(-(-n // stride) for n in size)).bfloat16()
    ours = run(with_backend(plain, "fused"), [x, row], g)
    assert_as_good(ours, plain, [x, row], g)


@pytest.mark.parametrize(("C", "inputs", "size"), [(16, 64, (8, 8)), (36, 100, (5, 6)), (48, 16, (3, 7))])
def test_projections(C: int, inputs: int, size: tuple[int, int]) -> None:
    """Both kinds of preprocessing, of inputs with more channels than the cell and with fewer."""
    plain = Cell(1, 1, inputs, inputs, C, False, True, NAMES, "reference")
    states = [torch.randn(3, inputs, 2 * size[0], 2 * size[1] - 1).bfloat16(), torch.randn(3, inputs, *size).bfloat16()]
    rows = torch.randn(2, len(NAMES)).softmax(-1)
    g = torch.randn(3, C, *size).bfloat16()
    ours = run(with_backend(plain, "fused"), [*states, rows], g)
    assert_as_good(ours, plain, [*states, rows], g)


def test_equal_bits() -> None:
    edge = MixedOp(40, 1, NAMES, "fused")
    x, row = torch.randn(4, 40, 9, 7).bfloat16(), torch.randn(len(NAMES)).softmax(-1)
    g = torch.randn(4, 40, 9, 7).bfloat16()
    first, second = (run(edge, [x, row], g) for _ in range(2))
    for name, value in first.items():
        assert "running" in name or "tracked" in name or torch.equal(value, second[name]), name
