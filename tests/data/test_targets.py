"""Targets in the shapes that people have, with and without a loss."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastdarts.data import ImageData
from fastdarts.data.targets import settled


def images_with(targets: Tensor, classes: tuple[str, ...] = ()) -> ImageData:
    return ImageData(torch.zeros(len(targets), 1, 2, 2), targets, classes, (0.0,), (1.0,))


INDICES = torch.tensor([2, 0, 1, 2])


@pytest.mark.parametrize(
    "targets",
    [
        INDICES,
        INDICES.int(),
        INDICES[:, None],
        INDICES.float(),
        INDICES.float()[:, None],
        F.one_hot(INDICES),
        F.one_hot(INDICES).float(),
        F.one_hot(INDICES).bool(),
    ],
    ids=["indices", "int32", "[y]", "floats", "[y] of floats", "one-hot", "one-hot floats", "one-hot bools"],
)
def test_without_a_loss_they_are_class_indices(targets: Tensor) -> None:
    data = settled(images_with(targets), None)
    assert (data.targets.dtype, data.targets.tolist()) == (torch.int64, [2, 0, 1, 2])
    assert data.classes == ("0", "1", "2")
    train = settled(images_with(targets, ("a", "b", "c")), None)
    assert train.classes == ("a", "b", "c")
    assert settled(images_with(targets[1:3]), None, train).classes == train.classes


def test_probabilities_stay() -> None:
    rows = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    assert torch.equal(settled(images_with(rows), None).targets, rows)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0.0, 1.5]), r"dataset\[1\]: target 1.5 is no class index.*mse_loss"),
        (torch.tensor([0.0, float("nan")]), r"dataset\[1\]: target nan"),
        (torch.tensor([[1, 0, 0], [1, 1, 0]]), r"dataset\[1\]: target \[1, 1, 0\].*binary_cross_entropy_with_logits"),
        (torch.zeros(2, 4, 4), r"dataset\[0\]: target \[4, 4\] is a map"),
    ],
)
def test_what_cross_entropy_cannot_read_is_named(targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settled(images_with(targets), None)


def test_class_indices_beyond_the_classes_are_named() -> None:
    with pytest.raises(ValueError, match=r"dataset\[2\]: class index 2 is not one of the 2 classes 0..1 \(a, b\)"):
        settled(images_with(torch.tensor([0, 1, 2]), ("a", "b")), None)
    with pytest.raises(ValueError, match=r"dataset\[0\]: class index -1"):
        settled(images_with(torch.tensor([-1, 1]), ("a", "b")), F.cross_entropy)


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def flattening(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.flatten(), targets.flatten())


def squeezing(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs[:, 0], targets)


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        (F.mse_loss, 1),
        (F.l1_loss, 1),
        (squared, 1),
        (torch.nn.SmoothL1Loss(), 1),
        (flattening, 0),
        (squeezing, 0),
        (F.binary_cross_entropy_with_logits, 1),  # refuses [N] with [N, 1]
    ],
)
def test_a_number_an_image_is_paired_with_its_output(loss: Any, columns: int) -> None:
    targets = torch.tensor([0.0, 1.0, 1.0, 0.25])
    data = settled(images_with(targets), loss)
    assert data.targets.shape == (4, 1) if columns else (4,)
    outputs = torch.randn(4, 1)
    single = torch.stack([loss(o[None], t[None]) for o, t in zip(outputs, data.targets, strict=True)]).mean()
    assert torch.isclose(loss(outputs, data.targets), single)


def test_targets_for_other_losses_stay() -> None:
    for targets in (torch.rand(3, 5), torch.rand(3, 2, 2), torch.tensor([0, 1, 2])):
        assert settled(images_with(targets), squared).targets is targets
