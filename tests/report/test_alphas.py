"""The picture of op weights over the epochs, from alphas.npz alone."""

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import _pylab_helpers
from numpy.typing import NDArray
from PIL import Image

from fastdarts.primitives.table import CANDIDATES, PRIMITIVES
from fastdarts.report.alphas import GroupHistory, alphas_png, draw_alphas, op_weights, read_alphas
from fastdarts.report.pictures import write_picture
from fastdarts.spaces.darts.genotype import DARTS_V2, edges_of


def save_alphas(path: Path, epochs: int, steps: tuple[int, int] = (2, 2), primitives: Any = PRIMITIVES) -> Path:
    rng = np.random.default_rng(0)
    normal, reduce = (rng.normal(size=(epochs + 1, len(edges_of(n)), len(primitives))) for n in steps)
    np.savez(path, normal=normal, reduce=reduce, primitives=np.array(primitives))
    return path


@pytest.mark.parametrize(
    ("epochs", "steps", "primitives"),
    [(0, (1, 1), PRIMITIVES[3:4]), (1, (2, 1), tuple(CANDIDATES)), (300, (1, 3), PRIMITIVES), (5, (4, 4), PRIMITIVES)],
    ids=str,
)
def test_alphas(tmp_path: Path, epochs: int, steps: tuple[int, int], primitives: tuple[str, ...]) -> None:
    path = draw_alphas(save_alphas(tmp_path / "alphas.npz", epochs, steps, primitives))
    assert path == tmp_path / "alphas.png"
    with Image.open(path) as image:
        assert min(image.size) >= 400
        assert len(set(image.convert("L").tobytes())) > 50


def test_op_weights() -> None:
    alphas = np.array([[0.0, math.log(3)], [-math.inf, 5.0], [-math.inf, -math.inf], [math.nan, 0.0], [900.0, 900.0]])
    expected = [[0.25, 0.75], [math.nan, 1], [math.nan, math.nan], [math.nan, 1], [0.5, 0.5]]
    np.testing.assert_allclose(op_weights(alphas), expected, rtol=1e-15)


def groups_of(alphas: NDArray[np.float64]) -> list[GroupHistory]:
    """Both cells with these alphas."""
    ends = edges_of(1)
    return [GroupHistory(title, op_weights(alphas), ends, None) for title in ("normal cell", "reduction cell")]


def test_masked_alphas_are_drawn() -> None:
    alphas = np.zeros((4, 2, len(PRIMITIVES)))
    alphas[2:, :, 0] = -math.inf
    alphas[1:, 1] = -math.inf
    with np.errstate(all="raise"):
        drawn = alphas_png(groups_of(alphas), PRIMITIVES)
    assert drawn.startswith(b"\x89PNG")
    assert alphas_png(groups_of(np.full_like(alphas, -math.inf)), PRIMITIVES).startswith(b"\x89PNG")


def test_drawing_leaves_matplotlib_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    write_picture(DARTS_V2, tmp_path)
    draw_alphas(save_alphas(tmp_path / "alphas.npz", 2))
    assert dict(mpl.rcParams) == before
    assert not _pylab_helpers.Gcf.figs


def test_bad_alphas(tmp_path: Path) -> None:
    path = tmp_path / "alphas.npz"
    with pytest.raises(FileNotFoundError, match=r"alphas\.npz"):
        read_alphas(path)
    np.save(tmp_path / "alphas.npy", np.zeros(3))
    for content in (b"", b"no archive", (tmp_path / "alphas.npy").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"alphas\.npz is not a readable"):
            read_alphas(path)
    good = {"normal": np.zeros((2, 14, 8)), "reduce": np.zeros((2, 14, 8)), "primitives": np.array(PRIMITIVES)}
    for change, message in (
        ({"reduce": None}, r"alphas\.npz: the array 'reduce' is missing"),
        ({"normal": np.zeros((2, 13, 8))}, r"'normal' has 13 edges"),
        ({"normal": np.zeros((2, 14, 7))}, r"8 primitives\]; got float64 \[2, 14, 7\]"),
        ({"normal": np.zeros((0, 14, 8))}, r"got float64 \[0, 14, 8\]"),
        ({"reduce": np.full((2, 14, 8), "x")}, r"'reduce' must be numbers"),
        (
            {"weights_normal": np.zeros((2, 14, 7))},
            r"'weights_normal' must be numbers \[2, 14, 8\]; got .*14, 7",
        ),
        ({"edges_reduce": np.zeros((2, 13))}, r"'edges_reduce' must be numbers \[2, 14\]; got float64 \[2, 13\]"),
        ({"ends_normal": np.zeros((14, 3))}, r"'ends_normal' must be numbers \[14, 2\]; got float64 \[14, 3\]"),
        ({"groups": np.array(["normal", "head"])}, r"the array 'head' is missing; it holds normal, reduce, primitives"),
    ):
        np.savez(path, **{name: value for name, value in (good | change).items() if value is not None})
        with pytest.raises(ValueError, match=message):
            read_alphas(path)


def test_groups_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Groups have any names, edges where they have ends, and the softmax where op weights are missing."""
    path = tmp_path / "alphas.npz"
    layers, cell = np.zeros((3, 7, 2)), np.full((3, 3, 2), -math.inf)
    cell[:, :, 1] = 0.5
    np.savez(
        path,
        groups=np.array(["layers", "cell"]),
        primitives=np.array(["wide", "skip_connect"]),
        layers=layers,
        title_layers=np.array("depths of the layers"),
        weights_layers=layers + 0.25,
        cell=cell,
        ends_cell=np.array([(0, 1), (0, 2), (1, 2)]),
        edges_cell=np.full((3, 3), 0.5),
    )
    (first, second), primitives = read_alphas(path)
    assert primitives == ["wide", "skip_connect"]
    assert (first.title, first.ends, first.row_weights) == ("depths of the layers", [], None)
    assert (first.weights == 0.25).all()
    assert (second.title, second.ends) == ("cell", [(0, 1), (0, 2), (1, 2)])
    assert np.isnan(second.weights[:, :, 0]).all()
    assert (second.weights[:, :, 1] == 1).all()
    assert second.row_weights is not None
    assert (second.row_weights == 0.5).all()
    with Image.open(draw_alphas(path)) as image:  # rows without ends: six in a line
        assert min(image.size) >= 400


def test_files_of_before_have_darts_cells(tmp_path: Path) -> None:
    groups, primitives = read_alphas(save_alphas(tmp_path / "alphas.npz", 1, (2, 4)))
    assert [(group.title, group.ends) for group in groups] == [
        ("normal cell", edges_of(2)),
        ("reduction cell", edges_of(4)),
    ]
    assert primitives == list(PRIMITIVES)


def test_ops_of_a_user_are_drawn(tmp_path: Path) -> None:
    path = save_alphas(tmp_path / "alphas.npz", 1, primitives=("none", "jump"))
    assert read_alphas(path)[1] == ["none", "jump"]
    assert alphas_png(*read_alphas(path)).startswith(b"\x89PNG")
