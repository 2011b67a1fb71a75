"""The table of tile shapes and what autotune finds."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need Triton")

from fastdarts.kernels import autotune, tiles

KEY = (16, 1024, "torch.bfloat16")


@pytest.fixture(autouse=True)
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTDARTS_TILES", str(tmp_path / "tiles.json"))
    monkeypatch.setattr(tiles, "device_name", lambda: "a GPU")
    monkeypatch.setattr(tiles, "found", None)


@pytest.mark.parametrize("name", tiles.SHIPPED)
@pytest.mark.parametrize("channels", [1, 16, 48, 64, 256])
def test_shipped_tiles_are_powers_of_two_that_a_matrix_instruction_takes(name: str, channels: int) -> None:
    tile = tiles.tile(channels, 1024, torch.bfloat16, name)
    assert tile.pixels * tile.channels == tiles.SHIPPED[name][0]
    for n in (tile.pixels, tile.channels):
        assert n >= 16
        assert n & (n - 1) == 0


def test_autotune_takes_the_fastest_shape_and_the_table_knows_it_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure() -> float:
        shape = list((tiles.found or {}).values())[-1]  # of the pass being tried
        if shape == (1024, 4):
            raise RuntimeError("does not fit")
        return abs(shape[0] - 2048) + shape[1]

    best = autotune.tune(KEY, measure)
    assert set(best.values()) == {(2048, 4)}
    autotune.store(tiles.file(), "a GPU", best)
    autotune.store(tiles.file(), "another", {("mix", *KEY): (8192, 8)})
    monkeypatch.setattr(tiles, "found", None)
    assert tiles.tile(16, 1024, torch.bfloat16, tiles.JOIN) == tiles.Tile(128, 16, 4)
    assert tiles.tile(16, 256, torch.bfloat16, tiles.JOIN) == tiles.Tile(128, 16, 8)  # another image: as shipped
    assert tiles.load(tiles.file(), "another") == {("mix", *KEY): (8192, 8)}


@pytest.mark.parametrize("content", ["[]", "{", '{"a GPU": [[1]]}'])
def test_a_file_that_holds_no_tiles_is_named(content: str) -> None:
    tiles.file().write_text(content)
    with pytest.raises(ValueError, match=r"tiles\.json holds no tiles"):
        tiles.tile(16, 1024, torch.bfloat16, tiles.MIX)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to tune for")
def test_autotune_says_that_it_needs_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert autotune.main([]) == 2
    assert "needs a CUDA device" in capsys.readouterr().err
