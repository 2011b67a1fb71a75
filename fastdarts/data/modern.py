"""Augment as recent trainings do, by torchvision's transforms: ops drawn for each image, and mixtures of images."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fastdarts.config.importing import importing

Transform = Callable[[Tensor], Tensor]
"""Change a batch of images [N, C, H, W], uint8, before crop, flip and normalisation; same shape and dtype."""
AutoAugment = Literal["none", "autoaugment", "randaugment", "trivialaugment"]


def auto_augment(name: AutoAugment) -> Transform | None:
    """Return what draws ops for each image of a batch; None for "none".

    "autoaugment" is AutoAugment with its policy for CIFAR-10 (arXiv:1805.09501), "randaugment" RandAugment
    (arXiv:1909.13719), "trivialaugment" TrivialAugment (arXiv:2103.10158). Random choices come from torch's global
    generator.
    """
    if name == "none":
        return None
    with importing("torchvision"):
        from torchvision.transforms import v2  # here, because importing it takes a second

    match name:
        case "autoaugment":
            augment: Any = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        case "randaugment":
            augment = v2.RandAugment()
        case "trivialaugment":
            augment = v2.TrivialAugmentWide()

    def apply(images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3) or images.dtype != torch.uint8:
            raise ValueError(
                f"auto_augment {name!r} needs uint8 images with 1 or 3 channels; got {images.dtype} "
                f"{list(images.shape[1:])} (C, H, W)"
            )
        return torch.stack([augment(image) for image in images.unbind()])

    return apply


def in_turn(*transforms: Transform | None) -> Transform | None:
    """Return the transforms after each other; None if there is none."""
    given = [transform for transform in transforms if transform is not None]
    if not given:
        return None

    def apply(images: Tensor) -> Tensor:
        for transform in given:
            changed = transform(images)
            if changed.shape != images.shape or changed.dtype != images.dtype:
                raise ValueError(
                    f"transform must keep shape and dtype; got {changed.dtype} {list(changed.shape)} of "
                    f"{images.dtype} {list(images.shape)}"
                )
            images = changed
        return images

    return apply


def mixing(mixup: float, cutmix: float, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return mixup (arXiv:1710.09412), CutMix (arXiv:1905.04899), or for each batch one of both; None for neither.

    Args:
        mixup, cutmix: parameter of the beta distribution of shares; 0 for none.
        classes: number of classes; mixed targets are probabilities [N, classes].
    """
    if not mixup and not cutmix:
        return None
    with importing("torchvision"):
        from torchvision.transforms import v2  # here, because importing it takes a second

    kinds = ((v2.MixUp, mixup), (v2.CutMix, cutmix))
    return v2.RandomChoice([kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha])
