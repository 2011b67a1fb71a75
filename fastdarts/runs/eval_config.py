"""Options of the training of a discrete network, with the paper's values as presets."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastdarts.config.formats import read_values
from fastdarts.config.options import Config, option
from fastdarts.config.search_options import LARGEST_SEED, Dataset, TextDataset
from fastdarts.runs.space_options import choose_dataset, notes, settle_space_options
from fastdarts.spaces import registry
from fastdarts.spaces.space import evaluation_options_of
from fastdarts.tasks.faults import Faults

IMAGE_ONLY = (
    *("image_size", "test_portion", "augment", "crop_padding", "flip", "cutout", "stem", "init_channels", "layers"),
    *("auxiliary", "drop_path", "schedule", "lr_decay", "auxiliary_weight", "label_smoothing", "export", "recipe"),
    *("init_from", "stream", "workers", "auto_augment", "mixup", "cutmix", "warmup_epochs", "class_weights"),
    *("ema_epochs", "cost", "faults", "fault_weight"),
)
"""Options without a meaning for texts."""

_CIFAR: dict[str, Any] = {  # Liu et al., section 3.2
    "image_size": None,
    "augment": "cifar",
    "crop_padding": 4,
    "flip": True,
    "cutout": 16,
    "stem": "cifar",
    "init_channels": 36,
    "layers": 20,
    "auxiliary": True,
    "drop_path": 0.2,
    "epochs": 600,
    "batch_size": 96,
    "lr": 0.025,
    "schedule": "cosine",
    "weight_decay": 3e-4,
    "label_smoothing": 0.0,
    "warmup_epochs": 0,
    "auto_augment": "none",
    "mixup": 0.0,
    "cutmix": 0.0,
    "ema_epochs": 0.0,
    "faults": None,
    "fault_weight": 0.0,
    "save_every_steps": 0,
    "momentum": 0.9,
    "grad_clip": 5.0,
    "space_options": {},
}
_UNFLIPPED = _CIFAR | {"flip": False}  # a mirrored digit is another sign
_SMALL = _UNFLIPPED | {
    "crop_padding": 1,
    "cutout": 0,
    "init_channels": 8,
    "layers": 5,
    "drop_path": 0.1,
    "epochs": 20,
    "batch_size": 64,
    "lr": 0.1,
}
_TEXT = _CIFAR | {  # section A.2.2; their training stops when the loss does, after about 3,600 epochs
    "augment": "cifar",
    "auxiliary": False,
    "drop_path": 0.0,
    "epochs": 3600,
    "batch_size": 64,
    "lr": 20.0,
    "weight_decay": 8e-7,
    "momentum": 0.0,
    "grad_clip": 0.25,
}
_IMAGENET = _CIFAR | {  # section 3.3, "mobile setting"
    "image_size": (256, 256),
    "augment": "imagenet",
    "crop_padding": 0,
    "cutout": 0,
    "stem": "imagenet",
    "init_channels": 48,
    "layers": 14,
    "drop_path": 0.0,
    "epochs": 250,
    "batch_size": 128,
    "lr": 0.1,
    "schedule": "exponential",
    "weight_decay": 3e-5,
    "label_smoothing": 0.1,
    "save_every_steps": 1000,
}
_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "paper": {},
    "modern": {
        "cutout": 0,  # TrivialAugment and CutMix take its place
        "schedule": "cosine",
        "warmup_epochs": 5,
        "label_smoothing": 0.1,
        "auto_augment": "trivialaugment",
        "mixup": 0.2,
        "cutmix": 1.0,
        "ema_epochs": 5.0,
    },
}
_SIZES = ("stem", "init_channels", "layers")  # which a network has in common with the one whose weights it takes


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Config):
    """Everything that decides a training from scratch but the genotype. Defaults are the paper's for CIFAR-10 (Liu et
    al., ICLR 2019, section 3.2), but for `digits`, whose small preset ends within minutes on a CPU, and `imagenet`.

    Raises: ValueError or TypeError that names the field, what came and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "digits": _SMALL,
        "mnist": _UNFLIPPED,
        "fashionmnist": _CIFAR,
        "cifar10": _CIFAR,
        "cifar100": _CIFAR,
        "svhn": _UNFLIPPED,
        "imagefolder": _CIFAR,
        "imagenet": _IMAGENET,
        "custom": _CIFAR,
        "pydoc": _TEXT | {"epochs": 10, "batch_size": 32},
        "ptb": _TEXT,
        "wikitext2": _TEXT | {"weight_decay": 5e-7},
        "textfolder": _TEXT,
    }

    dataset: Literal[Dataset, "imagenet", TextDataset] = option(
        "data",
        "data set and its preset; imagenet: an image folder with the paper's values for ImageNet; custom: given to "
        "evaluate() from Python. Texts, for recurrent cells: pydoc, ptb, wikitext2, textfolder",
    )
    recipe: Literal["paper", "modern"] = option(
        "training",
        "paper: the paper's values; modern: TrivialAugment, mixup, CutMix, label smoothing, warm-up and an average of "
        "the weights instead of cutout",
        "paper",
    )
    init_from: Path | None = option(
        "network",
        "begin with the weights of this finished evaluation, and with a new classifier if the classes are other ones",
        None,
        metavar="RUN",
    )
    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option("data", "resize images to this", metavar="SIZE|HxW", at_least=1)
    test_portion: float = option(
        "data",
        "of an image folder without a test part, the share of each class that is set aside as one",
        0.2,
        at_least=0,
        below=1,
    )
    stream: Literal["auto", "always", "never"] = option(
        "data",
        "of an image folder: decode images when they are needed; auto: where memory cannot hold them all",
        "auto",
    )
    workers: int | None = option(
        "data",
        "processes that decode, for each stream of images (default: one a CPU, at most 16)",
        None,
        metavar="N",
        at_least=1,
    )
    augment: Literal["cifar", "imagenet"] = option(
        "data", "cifar: crop, flip, cutout; imagenet: resized crop of 7/8 of the sides, flip, colour jitter"
    )
    crop_padding: int = option("data", "random crops out of images padded by this many pixels", at_least=0)
    flip: bool = option("data", "mirror half of the images")
    cutout: int = option("data", "side of the square that is blanked in each image, in pixels", at_least=0)
    auto_augment: Literal["none", "autoaugment", "randaugment", "trivialaugment"] = option(
        "data", "ops drawn for each image by torchvision, before crop and flip"
    )
    mixup: float = option("data", "mix pairs of images; parameter of the shares' distribution (0: off)", at_least=0)
    cutmix: float = option("data", "paste rectangles of other images, likewise (0: off)", at_least=0)

    space: str = option("network", "search space of the genotype, which sets defaults", "darts", metavar="NAME")
    space_options: dict[str, Any] = option("network", "the space's own, see below", metavar="NAME=VALUE")
    stem: Literal["cifar", "imagenet"] = option("network", "first layers; imagenet divides the image's sides by 8")
    init_channels: int = option("network", "channels C of the first cells; even with stem imagenet", at_least=2)
    layers: int = option("network", "number of cells", at_least=1)
    auxiliary: bool = option("network", "train with a second classifier behind the cell at two thirds")
    drop_path: float = option(
        "network", "probability of dropping an op in the last epoch, rising from 0", at_least=0, below=1
    )
    sync_batch_norm: bool = option(
        "network", "with several processes, batch norm by the rows of all of them (no kernel does that)", False
    )

    backend: Literal["auto", "fused", "reference"] = option("network", "how cells are computed", "auto")

    epochs: int = option("training", "passes over all training images", at_least=1)
    batch_size: int = option("training", "images in a step", at_least=2)
    lr: float = option("training", "learning rate of SGD in epoch 0", above=0)
    schedule: Literal["cosine", "exponential"] = option("training", "lr: cosine to 0, or times lr_decay each epoch")
    warmup_epochs: int = option("training", "epochs in which lr rises to its value, before the schedule", at_least=0)
    lr_decay: float = option("training", "factor of the exponential schedule", 0.97, above=0, at_most=1)
    momentum: float = option("training", "momentum of SGD", at_least=0, below=1)
    weight_decay: float = option("training", "L2 of the weights", at_least=0)
    grad_clip: float = option("training", "largest norm of the gradient", above=0)
    auxiliary_weight: float = option("training", "weight of the auxiliary classifier's loss", 0.4, at_least=0)
    label_smoothing: float = option("training", "share of the target spread over all classes", at_least=0, below=1)
    class_weights: bool = option("training", "weigh each class in the loss by the inverse of its images' number", False)
    ema_epochs: float = option(
        "training", "measure and keep an average of the weights over about so many epochs (0: the weights)", at_least=0
    )

    faults: str | None = option(
        "training",
        "measure the network under faults of this rate and others: mibb (bit flips in maps), adsaf (stuck weights), "
        "gaussian or saltpepper",
        metavar="KIND:RATE",
    )
    fault_weight: float = option(
        "training",
        "share of the training loss that is measured under the faults (fault training)",
        at_least=0,
        at_most=1,
    )

    seed: int = option(
        "run", "seed of weights, data order, augmentation and drop path", 0, at_least=0, at_most=LARGEST_SEED
    )
    device: str = option("run", "auto (CUDA if available), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    amp: bool = option("run", "compute in bfloat16 where that is safe (autocast)", False)
    cuda_graphs: bool = option("run", "on CUDA, capture a step once and replay it", True)
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    out: Path | None = option(
        "run", "folder of the results (default: runs/evaluation-DATASET-TIME)", None, metavar="DIR"
    )
    resume: bool = option("run", "continue the training in --out", False)
    save_every_steps: int = option("run", "checkpoint every N steps too (0: each epoch only)", metavar="N", at_least=0)
    test_only: bool = option("run", "do not train: measure the weights in --checkpoint", False)
    checkpoint: Path | None = option(
        "run",
        "for --test-only: a run's checkpoint.pt, or a state_dict (as of the original code)",
        None,
        metavar="FILE",
    )
    cost: Path | None = option(
        "run",
        "a table that fastdarts latency wrote: print the found network's cost by it beside the latency measured",
        None,
        metavar="FILE",
    )
    export: Path | None = option(
        "run", "write the trained network as FILE.pt2 (torch.export) and FILE.onnx", None, metavar="FILE"
    )

    def preset(self) -> Mapping[str, Any]:
        values = {**super().preset(), **registry.find(self.space).evaluation_defaults(self.dataset)}
        before: Mapping[str, Any] = {}
        if self.init_from is not None and (Path(self.init_from) / "config.json").is_file():  # gone when resumed, maybe
            before = read_values(Path(self.init_from) / "config.json")
        return {**values, **_RECIPES[self.recipe], **{name: before[name] for name in _SIZES if name in before}}

    def recipe_line(self) -> str:
        """Return what the recipe changes of the data set's values, in words; empty for the paper's."""
        plain = dataclasses.replace(self, recipe="paper").preset()
        changes = [
            f"{name.replace('_', '-')} {getattr(self, name)} (paper: {plain[name]})"
            for name in _RECIPES[self.recipe]
            if getattr(self, name) != plain[name]
        ]
        return f"recipe {self.recipe}: {', '.join(changes)}" if changes else ""

    def help_notes(self) -> str:
        options = evaluation_options_of(registry.find(self.space))
        return "\n".join(notes(f"space options of {self.space}:", options, self.space_options))

    def __post_init__(self) -> None:
        choose_dataset(self, self.presets)
        super().__post_init__()
        settle_space_options(self, evaluation_options_of(registry.find(self.space)), IMAGE_ONLY)
        if self.augment == "imagenet" and (self.crop_padding or self.cutout):
            raise ValueError("crop_padding and cutout must be 0 with augment 'imagenet'; they belong to 'cifar'")
        if self.faults is not None:
            Faults.read(self.faults)
        elif self.fault_weight:
            raise ValueError("fault_weight needs faults, such as faults=mibb:1e-4")
        if self.test_only and self.resume:
            raise ValueError("resume continues a training; it cannot go with test_only")
        if self.test_only != (self.checkpoint is not None):
            raise ValueError("test_only and checkpoint go together; to continue a training give resume and out")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the training to continue")
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be below epochs = {self.epochs}; got {self.warmup_epochs}")
        if self.init_from is not None and self.test_only:
            raise ValueError("init_from begins a training; it cannot go with test_only")
