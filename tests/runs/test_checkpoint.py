"""Checkpoint files: what comes back, and what is refused."""

import pytest
import torch

from fastdarts.runs import checkpoint


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    state = {
        "weights": {"a": torch.arange(1000.0)},
        "epoch": 3,
        "history": [[torch.ones(2)]],
        "out": None,
        "size": (1, 2),
    }
    checkpoint.save(path, "search", state)
    return path


def test_round_trip(path):
    state = checkpoint.load(path, "search")
    assert torch.equal(state["weights"]["a"], torch.arange(1000.0))
    assert (state["epoch"], state["out"], state["size"]) == (3, None, (1, 2))
    torch.load(path, weights_only=True)


@pytest.mark.parametrize("keep", [0, 300, -10])
def test_truncated(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged or not a checkpoint"):
        checkpoint.load(path, "search")


def test_one_flipped_bit_in_a_weight(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(500.0, 504.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged.*checksum"):
        checkpoint.load(path, "search")


@pytest.mark.parametrize("foreign", [{"state_dict": 1}, [1], torch.ones(2)])
def test_foreign(path, foreign):
    torch.save(foreign, path)
    with pytest.raises(ValueError, match=f"checkpoint {path} is not a checkpoint of fastdarts"):
        checkpoint.load(path, "search")


def test_foreign_objects_are_not_unpickled(path):
    torch.save({"fastdarts": "search", "version": 1, "network": torch.nn.Linear(1, 1)}, path)
    with pytest.raises(ValueError, match=f"checkpoint {path} is damaged or not a checkpoint"):
        checkpoint.load(path, "search")


def test_other_kind_version_and_none_at_all(path, tmp_path):
    with pytest.raises(ValueError, match="is a checkpoint of 'search'; wanted one of 'evaluation'"):
        checkpoint.load(path, "evaluation")
    checkpoint.save(path, "search", {"version": 99})
    with pytest.raises(ValueError, match="has format 99; this release reads format 1"):
        checkpoint.load(path, "search")
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "none.pt", "search")


def test_random_state_continues():
    state = checkpoint.random_state()
    first = torch.rand(3)
    checkpoint.set_random_state(state)
    assert torch.equal(torch.rand(3), first)
