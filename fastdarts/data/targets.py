"""Targets and the loss that reads them: what fits is made to fit, what does not is said before any work."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from fastdarts.data.images import ImageData, ImageSet

Loss = Callable[[Tensor, Tensor], Tensor]

_TRIALS = 8


def settled(data: ImageData, loss: Loss | None, train: ImageSet | None = None) -> ImageData:
    """Return the data with targets that the loss reads as they are meant.

    Without a loss (cross entropy) [y], one-hot rows and whole numbers as floats become class indices; rows that sum to
    1 stay, as probabilities. With one, a number an image [N] becomes [N, 1] where the loss would otherwise mix each
    output with every target.

    Args:
        data: on the CPU.
        loss: the user's, or None.
        train: for further data the training data.

    Raises: ValueError that names the item that cannot be used.
    """
    targets = data.targets if loss is not None else _class_indices(data.targets)
    if loss is not None and targets.is_floating_point() and targets.dim() == 1:
        targets = _paired(targets, loss)
    classes = data.classes
    if loss is None and not targets.is_floating_point() and (targets is not data.targets or not classes):
        columns = data.targets.shape[1] if data.targets.dim() == 2 else 1
        count = columns if columns > 1 else int(targets.max()) + 1
        classes = train.classes if train is not None else classes or tuple(map(str, range(count)))
    if classes and targets.dim() == 1 and not targets.is_floating_point():
        wrong = ((targets < 0) | (targets >= len(classes))).nonzero()
        if len(wrong):
            index = int(wrong[0])
            raise ValueError(
                f"dataset[{index}]: class index {int(targets[index])} is not one of the {len(classes)} classes "
                f"0..{len(classes) - 1} ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
            )
    return replace(data, targets=targets, classes=classes)


def _class_indices(targets: Tensor) -> Tensor:
    """Return targets for cross entropy: class indices [N], or probabilities [N, classes]."""
    if targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.dim() == 1:
        if not targets.is_floating_point():
            return targets if targets.dtype == torch.int64 else targets.long()
        wrong = ((targets != targets.round()) | (targets < 0) | ~targets.isfinite()).nonzero()
        if not len(wrong):
            return targets.long()
        index = int(wrong[0])
        raise ValueError(
            f"dataset[{index}]: target {float(targets[index]):.6g} is no class index, which cross entropy needs; for "
            "numbers give a loss, such as torch.nn.functional.mse_loss"
        )
    if targets.dim() == 2:
        rows = targets.float()
        if bool((((rows == 0) | (rows == 1)).all(1) & (rows.sum(1) == 1)).all()):
            return rows.argmax(1)
        wrong = ((rows < 0).any(1) | ((rows.sum(1) - 1).abs() > 1e-3) | rows.isnan().any(1)).nonzero()
        if not len(wrong):
            return rows
        index = int(wrong[0])
        raise ValueError(
            f"dataset[{index}]: target {_shown(targets[index])} is neither one-hot nor probabilities that sum to 1; "
            "for several labels an image give a loss, such as torch.nn.functional.binary_cross_entropy_with_logits"
        )
    raise ValueError(
        f"dataset[0]: target {list(targets.shape[1:])} is a map, and the network has one output a class for an image; "
        "give a class index, or a loss that reads such targets"
    )


def _shown(row: Tensor) -> str:
    values = ", ".join(f"{value:.4g}" for value in row[:6].tolist())
    return f"[{values}{', ...' if len(row) > 6 else ''}]"


def _paired(targets: Tensor, loss: Loss) -> Tensor:
    """Return targets [N] or [N, 1], whichever the loss pairs with outputs [N, 1]; [N] where it tells no difference.

    A loss that broadcasts [N, 1] against [N] takes the mean over all pairs, which no change of the targets' order
    changes: so it is told from one that flattens its arguments itself.
    """
    some = targets.unique()[:_TRIALS]
    if len(some) < 2 or _pairs_up(loss, some):
        return targets
    return targets[:, None] if _pairs_up(loss, some[:, None]) else targets


def _pairs_up(loss: Loss, targets: Tensor) -> bool:
    """True if the loss depends on which target belongs to which output."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.rand(len(targets), 1, generator=generator).to(targets.device)
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            first, second = (float(loss(outputs, part)) for part in (targets, targets.roll(1, 0)))
    except Exception:  # a loss that does not take such shapes
        return False
    return abs(first - second) > 1e-5 * max(abs(first), abs(second))
