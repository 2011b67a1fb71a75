"""Use a trained network: load it from its run's folder with all that its images and answers need."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastdarts.data.augment import Augment
from fastdarts.data.augment_imagenet import ImageNetAugment
from fastdarts.data.decoding import Decoder
from fastdarts.data.formats import open_image
from fastdarts.data.pixels import FULL_RANGE, GreyRange, resized
from fastdarts.runs import checkpoint
from fastdarts.runs.device import choose_device
from fastdarts.spaces.features import Backbone
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.registry import read_architecture, space_of
from fastdarts.spaces.space import material_of

AnyImage = str | Path | Image.Image | np.ndarray | Tensor


class Prediction(NamedTuple):
    """Hold what a network says of an image.

    Attributes:
        label: index of the most probable class.
        name: its name.
        probability: its probability, 0..1.
        probabilities: of all classes, [classes], on the CPU.
    """

    label: int
    name: str
    probability: float
    probabilities: Tensor


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Hold a network in eval mode, and how its images are made.

    Attributes:
        network: takes the results of `transform` as a batch.
        architecture: what it was built of.
        options: the arguments of `Space.discrete` that it was built with.
        classes: a name per class index; empty if the targets were no classes.
        mean, std: per channel, of images scaled to 0..1; 0 and 1 for a network of float images.
        image_size: (H, W) to which images are resized.
        takes_bytes: False for a network of float images, which it takes as they are.
        crops: take the centre, 7/8 of the sides, as ImageNet's networks do.
        grey_range: of 16-bit images, as in training.
    """

    network: DiscreteNetwork
    architecture: Any
    options: Mapping[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: tuple[int, int]
    takes_bytes: bool = True
    crops: bool = False
    grey_range: GreyRange = FULL_RANGE

    @property
    def device(self) -> torch.device:
        """Return the device of the network."""
        return next(self.network.parameters()).device

    def pixels(self, image: AnyImage) -> Tensor:
        """Return an image as the network's training data had it, before normalisation: [C, H, W] on the CPU.

        Args:
            image: a file's path, a PIL image, an array [H, W] or [H, W, C], or a tensor [H, W] or [C, H, W]; arrays and
                tensors are uint8, or float for a network of float images.

        Raises: ValueError or TypeError for an image that does not fit, FileNotFoundError for a missing file.
        """
        decode = Decoder(len(self.mean) == 1, self.image_size, self.grey_range)
        if isinstance(image, str | Path):
            if not Path(image).is_file():
                raise FileNotFoundError(f"there is no image {image}")
            return open_image(Path(image), decode)
        if isinstance(image, Image.Image):
            return decode(image)
        if isinstance(image, np.ndarray):
            image = torch.from_numpy(np.ascontiguousarray(image))
            image = image.permute(2, 0, 1) if image.dim() == 3 else image
        if not isinstance(image, Tensor):
            raise TypeError(f"image must be a path, PIL image, array or tensor; got {type(image).__name__}")
        image = image[None] if image.dim() == 2 else image
        if image.dim() != 3 or len(image) != len(self.mean):
            raise ValueError(f"image must have {len(self.mean)} channels; got {list(image.shape)} (C, H, W)")
        if (image.dtype == torch.uint8) != self.takes_bytes:
            raise TypeError(f"image must be {'uint8' if self.takes_bytes else 'floating'}; got {image.dtype}")
        if self.takes_bytes:
            return resized(image.cpu(), self.image_size)
        if image.shape[1:] != self.image_size:
            raise ValueError(f"float images must be {self.image_size} (H, W); got {tuple(image.shape[1:])}")
        return image.float().cpu()

    def normalise(self, images: Tensor) -> Tensor:
        """Return a batch [N, C, H, W] of results of `pixels` as the network takes it."""
        if self.crops:
            return ImageNetAugment(self.mean, self.std, self.image_size, device=images.device).normalise(images)
        return Augment(self.mean, self.std, device=images.device).normalise(images)

    def transform(self, image: AnyImage) -> Tensor:
        """Return an image as the network takes it, normalised: [C, H', W'] on the CPU. See `pixels`."""
        return self.normalise(self.pixels(image)[None])[0]

    @torch.inference_mode()
    def logits(self, images: Iterable[AnyImage], batch_size: int = 64) -> Tensor:
        """Return the network's outputs [N, classes], float32 on the CPU.

        Args:
            images: see `pixels`.
            batch_size: images that are computed at a time.
        """
        outputs: list[Tensor] = []
        waiting: list[Tensor] = []

        def compute() -> None:
            outputs.append(self.network(self.normalise(torch.stack(waiting).to(self.device))).float().cpu())
            waiting.clear()

        for image in images:
            waiting.append(self.pixels(image))
            if len(waiting) == batch_size:
                compute()
        if waiting:
            compute()
        if not outputs:
            raise ValueError("images must hold one image or more; got none")
        return torch.cat(outputs)

    def predict(self, images: AnyImage | Iterable[AnyImage], batch_size: int = 64) -> list[Prediction]:
        """Return what the network says of each image.

        Args:
            images: one image, or several; see `pixels`. A tensor [N, C, H, W] holds several.
            batch_size: images that are computed at a time.

        Raises: ValueError if the network was not trained on classes; as `pixels`.
        """
        if not self.classes:
            raise ValueError("the network was not trained on classes; take logits()")
        several = not isinstance(images, str | Path | Image.Image) and not (
            isinstance(images, np.ndarray | Tensor) and images.ndim < 4
        )
        rows = self.logits(images if several else [images], batch_size).softmax(1)  # type: ignore[arg-type,list-item]
        labels = rows.argmax(1).tolist()
        return [
            Prediction(label, self.classes[label], float(row[label]), row)
            for label, row in zip(labels, rows, strict=True)
        ]

    def backbone(self, out_indices: Sequence[int] | None = None) -> Backbone:
        """Return the network as timm's `features_only` gives networks; see `Backbone`."""
        return Backbone(self.network, self.transform_shape, out_indices)

    @property
    def transform_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, H', W') of a transformed image."""
        blank = torch.zeros(1, len(self.mean), *self.image_size, dtype=torch.uint8 if self.takes_bytes else None)
        channels, height, width = self.normalise(blank).shape[1:]
        return channels, height, width


def load(run: str | Path, device: str = "auto") -> TrainedNetwork:
    """Load the network that an evaluation has trained.

    Args:
        run: the folder of a finished evaluation.
        device: auto (CUDA where there is some), cpu, cuda or cuda:N.

    Raises: FileNotFoundError or ValueError unless a finished evaluation of images is there.
    """
    folder = Path(run)
    saved = checkpoint.load(folder / "checkpoint.pt", "evaluation")
    if not (folder / "result.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished evaluation: it has no result.json; resume it first")
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    config, weights = saved["config"], saved.get("average") or saved["network"]
    architecture = read_architecture(saved["genotype"])
    if material_of(space_of(architecture)) == "text":
        raise ValueError(f"{folder} holds a language model; only networks for images are loaded and exported")
    options = {
        "C": config["init_channels"],
        "num_classes": len(weights["classifier.weight"]),
        "layers": config["layers"],
        "auxiliary": config["auxiliary"],
        "in_channels": result["image_shape"][0],
        "stem": config["stem"],
    }
    network = space_of(architecture).discrete(architecture, **options)
    network.load_state_dict(weights)
    range_ = result.get("grey_range")
    return TrainedNetwork(
        network=network.eval().to(choose_device(device)),
        architecture=architecture,
        options=options,
        classes=tuple(result["classes"]),
        mean=tuple(result["mean"]),
        std=tuple(result["std"]),
        image_size=tuple(result.get("image_size") or saved["config"]["image_size"] or result["image_shape"][1:]),
        takes_bytes=result.get("image_dtype", "uint8") == "uint8",
        crops=saved["config"]["augment"] == "imagenet",
        grey_range=GreyRange(*range_) if range_ else FULL_RANGE,
    )
