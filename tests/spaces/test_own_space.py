"""A space that is defined here alone, by what the package offers to users: found, searched, resumed, reported."""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_search import tiny_config, tiny_images
from torch import Tensor, nn

from fastdarts.evaluate import EvalConfig, evaluate
from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.primitives.modules import build
from fastdarts.report.alphas import read_alphas
from fastdarts.search import search
from fastdarts.spaces import registry
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.space import Feature
from fastdarts.spaces.supernet import Mixes, Supernet

OPS = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3")
DEPTH = 8
GROUPS = {"depths": Group("ops of the layers", (OPS,) * DEPTH)}


@dataclass(frozen=True)
class Chain:
    """One op a layer."""

    ops: tuple[str, ...]
    space = "chain"

    def to_json(self) -> str:
        return json.dumps({"space": self.space, "ops": list(self.ops)})


class ChainSupernet(Supernet):
    """A stem, layers that mix their ops one after another, a classifier."""

    def __init__(self, C: int, num_classes: int, layers: int, in_channels: int, backend: str) -> None:
        super().__init__(GROUPS)
        self.stem = nn.Conv2d(in_channels, C, 3, padding=1)
        self.layers = nn.ModuleList(MixedOp(C, 1, OPS, backend) for _ in range(DEPTH))
        self.classifier = nn.Linear(C, num_classes)
        self.make_alphas()

    def forward(self, x: Tensor) -> Tensor:
        mix = self.op_weights()["depths"]
        x = self.stem(x)
        for row, layer in enumerate(self.layers):
            x = layer(x, mix.weights[row], None if mix.active is None else mix.active[row])
        return self.classifier(x.mean((2, 3)))

    def mixed_ops(self, group: str) -> list[list[MixedOp]]:
        return [list(self.layers)]

    def derive(self, scores: Mapping[str, Tensor], choice: Choice = Choice()) -> Chain:  # noqa: B008 - frozen
        ranked = choice.ranked("depths", scores["depths"])
        return Chain(tuple(OPS[column] for column in ranked.argmax(1).tolist()))

    def mixes_of(self, architecture: Chain) -> Mixes:
        columns = [OPS.index(op) for op in architecture.ops]
        return {"depths": Mix(torch.eye(len(OPS))[columns].to(self.alphas["depths"]), [[c] for c in columns])}

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> Chain:
        return Chain(tuple(OPS[c] for c in torch.randint(len(OPS), (DEPTH,), generator=generator).tolist()))


class ChainNetwork(DiscreteNetwork):
    """The chosen ops one after another."""

    def __init__(self, architecture: Chain, C: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.body = nn.Sequential(
            nn.Conv2d(in_channels, C, 3, padding=1), *(build(name, C, 1) for name in architecture.ops)
        )
        self.classifier = nn.Linear(C, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).mean((2, 3)))


class ChainSpace:
    """A space without cells: rows that are no edges."""

    name = "chain"
    title = "eight layers with an op each"
    groups = GROUPS
    features = frozenset[Feature]({"skip connections"})

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {"init_channels": 2}

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        return {"init_channels": 6}

    def arguments(self) -> dict[str, Any]:
        return {}

    def supernet(self, **arguments: Any) -> ChainSupernet:
        return ChainSupernet(**arguments)

    def discrete(self, architecture: Chain, **options: Any) -> ChainNetwork:
        return ChainNetwork(architecture, options["C"], options["num_classes"], options["in_channels"])

    def from_json(self, text: str) -> Chain:
        return Chain(tuple(json.loads(text)["ops"]))

    def from_text(self, text: str) -> Chain | None:
        return Chain(tuple(text.split(">"))) if ">" in text else None

    def numbers(self, architecture: Chain) -> dict[str, float]:
        return {"skips_depths": architecture.ops.count("skip_connect"), "dense_layers": 3}

    def svg(self, architecture: Chain) -> str:
        return f'<svg xmlns="http://www.w3.org/2000/svg"><text>{" > ".join(architecture.ops)}</text></svg>'

    def png(self, architecture: Chain) -> bytes:
        return b"\x89PNG of " + "".join(architecture.ops).encode()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    registry.register_space("chain", ChainSpace)
    yield
    del registry._FACTORIES["chain"]


def test_it_is_found_by_its_name() -> None:
    assert "chain" in registry.names()
    assert isinstance(registry.find("chain"), ChainSpace)
    found = registry.load_architecture(">".join([*OPS, *OPS, "skip_connect", "skip_connect"]))
    assert isinstance(found, Chain)
    assert isinstance(registry.space_of(found), ChainSpace)
    assert registry.read_architecture(found.to_json()) == found
    for taken in ("chain", "darts", "s5"):
        with pytest.raises(ValueError, match=f"space '{taken}' is registered already"):
            registry.register_space(taken, ChainSpace)
    with pytest.raises(ValueError, match="got 'chian'; did you mean 'chain'"):
        registry.find("chian")


def test_a_search_that_goes_on_and_its_report(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    def config(name: str, **fields: Any) -> Any:
        return tiny_config(tmp_path / name, space="chain", deterministic=True, **fields)

    whole = search(config("whole"), train=tiny_images())
    search(config("parts"), train=tiny_images(), callbacks=[lambda *_: True])
    resumed = search(config("parts", resume=True), train=tiny_images())
    assert "expected: about" in caplog.text
    assert "are not trained" not in caplog.text
    assert list(whole.alphas) == ["depths"]
    assert torch.equal(resumed.alphas["depths"], whole.alphas["depths"])
    assert resumed.genotype == whole.genotype
    out = resumed.out_dir
    assert registry.load_architecture(str(out / "genotype.json")) == whole.genotype

    (group,), primitives = read_alphas(out / "alphas.npz")
    assert (group.title, group.ends, primitives) == ("ops of the layers", [], list(OPS))
    assert group.weights.shape == (3, DEPTH, len(OPS))
    page = (out / "report.html").read_text()
    shown = ("skips, ops of the layers", "dense layers", " > ".join(whole.genotype.ops).replace(">", "&gt;"))
    assert all(text in page or text.replace("&gt;", ">") in page for text in shown)
    assert (out / "cells.png").read_bytes().startswith(b"\x89PNG of ")
    assert (out / "alphas.png").stat().st_size > 1000
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"skips_depths", "dense_layers", "entropy_depths"} <= last.keys()


@pytest.mark.parametrize("name", ["gdas", "fairdarts", "snas", "random", "sdarts-rs", "darts-plus"])
def test_methods_that_need_no_cells(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.search._write_results", lambda *_: None)
    options = {"cells": 2} if name == "random" else {}
    result = search(
        tiny_config(tmp_path, space="chain", method=name, epochs=1, method_options=options), train=tiny_images()
    )
    assert isinstance(result.genotype, Chain)
    assert result.alphas["depths"].isfinite().all()


@pytest.mark.parametrize(
    ("name", "what"),
    [("daas", "edges"), ("pc-darts", "edges"), ("darts-minus", "auxiliary ops"), ("p-darts", "depth")],
)
def test_methods_that_need_more_say_what(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"method '{name}' needs {what}, which space 'chain' does not have"):
        tiny_config(tmp_path, space="chain", method=name, epochs=3)
    with pytest.raises(
        ValueError, match="drop_path needs edges that can drop samples, which space 'chain' does not have"
    ):
        tiny_config(tmp_path, space="chain", method="robustdarts", method_options={"drop_path": 0.1})


def test_what_was_found_is_trained(tmp_path: Path) -> None:
    architecture = Chain((OPS * 3)[:DEPTH])
    config = EvalConfig(space="chain", dataset="cifar10", out=tmp_path, epochs=1, batch_size=16, device="cpu", cutout=0)
    assert config.init_channels == 6
    images = tiny_images()
    trained = evaluate(architecture, config, images, images.subset(torch.arange(9)))
    assert trained.parameters == trained.parameters_with_auxiliary > 0
    assert " > ".join(architecture.ops) in (tmp_path / "report.html").read_text()
