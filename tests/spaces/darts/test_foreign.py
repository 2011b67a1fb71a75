"""Genotypes as other code prints and holds them."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from fastdarts import DARTS_V2, EvalNetwork, Genotype
from fastdarts.spaces.darts import published
from fastdarts.spaces.darts.genotype import PUBLISHED
from fastdarts.spaces.darts.published import CELLS
from fastdarts.spaces.darts.sizes import size_of

Foreign = namedtuple("Foreign", "normal normal_concat reduce reduce_concat connectN")
PRINTED = f"Genotype(normal={DARTS_V2.normal}, normal_concat=range(2, 6), reduce={DARTS_V2.reduce}, " + (
    "reduce_concat=range(2, 6))"
)


@pytest.mark.parametrize(
    "text",
    [
        PRINTED,
        f"2019-01-01 00:00:00,000 genotype = {PRINTED}\n",
        PRINTED.replace("Genotype", "genotypes.Genotype"),
        PRINTED.replace("range(2, 6)", "[np.int64(2), np.int64(3), np.int64(4), np.int64(5)]"),
        PRINTED.replace("range(2, 6)", "array([2, 3, 4, 5])"),
        PRINTED.replace("range(2, 6)", "tensor([2, 3, 4, 5], device='cuda:0')").replace(", 1)", ", tensor(1))"),
        PRINTED.replace("range(2, 6)", "np.arange(2, 6)").replace(", 1)", ", array(1, dtype=int32))"),
        PRINTED[:-1] + ", connectN=None)",
        PRINTED.replace("), ", ", 0.25), ").replace("range(2, 6, 0.25)", "range(2, 6)"),
        DARTS_V2.to_json(),
    ],
)
def test_texts(text: str, tmp_path: Path) -> None:
    assert Genotype.load(text if text.lstrip()[:1] in "G{g" else text.partition("= ")[2]) == DARTS_V2
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "file").write_text(text, encoding=encoding)
        assert Genotype.load(tmp_path / "file") == DARTS_V2


def test_a_logs_last_and_one_of_several_by_name(tmp_path: Path) -> None:
    other = PRINTED.replace("dil_conv_3x3", "sep_conv_5x5")
    file = tmp_path / "log.txt"
    file.write_text(f"epoch 1 genotype = {other}\nepoch 2 genotype = {PRINTED}\n")
    assert Genotype.load(file) == DARTS_V2
    file.write_text(f"FIRST = {PRINTED}\nSECOND = {other}\n")
    with pytest.raises(ValueError, match=f"{file}: it has several genotypes.*FILE:NAME: FIRST, SECOND"):
        Genotype.load(file)
    assert Genotype.load(f"{file}:FIRST") == DARTS_V2
    with pytest.raises(ValueError, match="no genotype called 'THIRD'"):
        Genotype.load(f"{file}:THIRD")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (PRINTED.replace("range(2, 6)", "__import__('os').getcwd()"), "made of literals; got"),
        (PRINTED.replace("range(2, 6)", "range(10**9)"), "made of literals"),
        (PRINTED.replace("range(2, 6)", "open('x')"), "made of literals"),
        (PRINTED[:-1], "no closing parenthesis"),
        ("Genotype(normal=" + "[" * 5000 + "]" * 5000 + ")", "cannot be read"),
        ("Genotype(normal=[])", "lacks normal_concat, reduce, reduce_concat"),
        ("print(1)", "no Genotype"),
    ],
)
def test_texts_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Genotype.load(text)


def test_objects_of_other_code() -> None:
    numbers = [(op, np.int64(state)) for op, state in DARTS_V2.normal]
    nested = tuple(tuple(DARTS_V2.nodes("reduce")[node]) for node in range(4))
    foreign = Foreign(numbers, range(2, 6), nested, np.arange(2, 6), None)
    genotype = Genotype.of(foreign)
    assert genotype == Genotype(
        DARTS_V2.normal, [2, 3, 4, 5], [DARTS_V2.nodes("reduce")[node] for node in range(4)], [2, 3, 4, 5]
    )
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.of(foreign._asdict()) == genotype
    assert Genotype.of(DARTS_V2._replace(normal_concat=range(2, 6))) == DARTS_V2  # type: ignore[arg-type]
    EvalNetwork(foreign, C=2, layers=1)  # type: ignore[arg-type]
    assert Genotype.of("DARTS_V2") is DARTS_V2
    EvalNetwork(PRINTED, C=2, layers=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int lacks normal"):
        Genotype.of(3)


def test_fairdarts_triples() -> None:
    """(primitive, state, predecessor): the one of FairDARTS_a."""
    normal = [("sep_conv_3x3", 2, 0), ("sep_conv_5x5", 2, 1), ("max_pool_3x3", 4, 0), ("sep_conv_3x3", 5, 0)]
    published = PUBLISHED["FAIRDARTS_A"]
    foreign = published._replace(normal=normal, normal_concat=range(2, 6))  # type: ignore[arg-type]
    assert Genotype.of(foreign) == published


def test_a_runs_folder_and_names_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no genotype\.json; its search has not ended"):
        Genotype.load(tmp_path)
    (tmp_path / "genotype.json").write_text(DARTS_V2.to_json(), encoding="utf-8-sig")
    assert Genotype.load(tmp_path) == DARTS_V2
    for name in ("darts_v2", "DARTS-v2", "Darts", "dartsv2"):
        assert Genotype.load(name) is DARTS_V2
    assert Genotype.load("PCDARTS") is PUBLISHED["PC_DARTS_CIFAR"]
    assert Genotype.load("FairDARTS_a") is PUBLISHED["FAIRDARTS_A"]


# Million multiply-adds and million parameters: of FairDARTS' genotypes.py for its own cells (but for C with the
# auxiliary head's 0.475), NASNet, ENAS, GDAS and SNAS; of the papers' tables for the others.
SIZES = {
    "FAIRDARTS_A": (373, 2.83 - 0.475),
    "FAIRDARTS_B": (536, 3.88 - 0.475),
    "FAIRDARTS_C": (400, 2.59),
    "FAIRDARTS_D": (532, 3.84 - 0.475),
    "FAIRDARTS_E": (414, 3.12 - 0.475),
    "FAIRDARTS_F": (497, 3.62 - 0.475),
    "FAIRDARTS_G": (453, 3.375 - 0.475),
    "NASNET_A": (608, 3.83),
    "ENAS": (627, 4.02),
    "GDAS_V1": (519, 3.36),
    "SNAS_MILD": (422, 2.66),
    "DARTS_V2": (528, 3.3),
    "PC_DARTS_CIFAR": (558, 3.63),
    "P_DARTS": (532, 3.43),
}


@pytest.mark.parametrize("name", ["FAIRDARTS_A", "NASNET_A", "ENAS", "GDAS_V1", "SNAS_MILD", "P_DARTS"])
def test_published_cells_have_the_size_of_their_code(name: str) -> None:
    check_size(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_all_published_cells_have_the_size_of_their_code(name: str) -> None:
    check_size(name)


def check_size(name: str) -> None:
    multiply_adds, parameters = SIZES[name]
    size = size_of(PUBLISHED[name])
    assert published.SIZES[name] == size
    assert size.multiply_adds / 1e6 == pytest.approx(multiply_adds, rel=0.01)
    assert size.parameters / 1e6 == pytest.approx(parameters, abs=0.06)


def test_published_cells_are_whole() -> None:
    for name, genotype in PUBLISHED.items():
        assert Genotype.from_json(genotype.to_json()) == genotype.validated()
        assert CELLS[name].source
