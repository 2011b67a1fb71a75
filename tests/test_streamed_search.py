"""A search reads streams: the same as from memory, also when it is killed in an epoch; on a part of large images."""

from pathlib import Path
from typing import Any

import pytest
import torch
from streamed_files import write_folder

from fastdarts.runs.keeper import Keeper
from fastdarts.search import SearchConfig, search

SMALL: dict[str, Any] = {
    "dataset": "imagefolder",
    "image_size": (8, 8),
    "epochs": 2,
    "batch_size": 6,
    "init_channels": 2,
    "layers": 1,
    "order": 1,
    "crop_padding": 1,
    "device": "cpu",
    "workers": 1,
}


class Killed(Exception):
    pass


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdarts.search._write_results", lambda *_: None)


def test_a_search_on_streams_is_that_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the second epoch and resumed, it also has the numbers of the one that was not."""
    images = write_folder(tmp_path / "images", 36)
    kept = search(SearchConfig(**SMALL, data=images, stream="never", out=tmp_path / "kept"))
    streamed = SearchConfig(**SMALL, data=images, stream="always", out=tmp_path / "streamed", save_every_steps=1)
    after_step, steps = Keeper.after_step, 0

    def killed(self: Keeper) -> None:
        nonlocal steps
        after_step(self)
        steps += 1
        if steps == 5:  # of three an epoch
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "after_step", killed)
        with pytest.raises(Killed):
            search(streamed)
    mean = kept.metrics[-1]["train_loss"]
    again = search(SearchConfig(**SMALL, data=images, stream="always", out=tmp_path / "streamed", resume=True))
    assert again.metrics[-1]["train_loss"] == mean
    assert all(torch.equal(again.alphas[name], alpha) for name, alpha in kept.alphas.items())


def test_a_fraction_of_large_images(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 60)
    config = SearchConfig(
        **SMALL | {"image_size": (64, 48), "epochs": 1},
        data=images,
        stem="imagenet",
        search_fraction=0.5,
        train_portion=0.8,
        out=tmp_path / "out",
    )
    found: list[torch.Size] = []

    def look(metrics: dict[str, Any], network: Any) -> None:
        found.append(network.stem(torch.zeros(1, 3, 64, 48)).shape)

    search(config, callbacks=[look])
    assert found == [(1, 6, 8, 6)]
    with pytest.raises(ValueError, match="stem 'imagenet' is not offered by space 'nasbench201'"):
        SearchConfig(space="nasbench201", stem="imagenet")
