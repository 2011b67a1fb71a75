"""Options of a search, with the values of the DARTS paper as presets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from fastdarts.config.options import Config, option

LARGEST_SEED = 2**63 - 1
"""Limits the seed of any run. Torch's generators take twice as much, so that an offset can be added."""


_PAPER: dict[str, Any] = {
    "method_options": {},
    "select_options": {},
    "epochs": 50,
    "batch_size": 64,
    "init_channels": 16,
    "layers": 8,
    "lr": 0.025,
    "lr_min": 0.001,
    "order": 2,
    "weight_decay": 3e-4,
    "momentum": 0.9,
    "grad_clip": 5.0,
    "arch_lr": 3e-4,
    "arch_beta1": 0.5,
    "space_options": {},
    "alpha_warmup": 0.0,
    "max_skips": None,
    "crop_padding": 4,
    "flip": True,
    "cutout": 0,
    "auto_augment": "none",
    "arch_weight_decay": 1e-3,
    "faults": None,
    "fault_weight": 0.5,
    "cost": None,
}


_SMALL = _PAPER | {
    "epochs": 6,
    "batch_size": 48,
    "init_channels": 4,
    "layers": 3,
    "lr": 0.05,
    "arch_lr": 0.03,
    "crop_padding": 1,
    "flip": False,
}


SMALL_DATA: dict[str, Any] = {"batch_size": 16, "arch_lr": 3e-3}
"""With a thousand images the paper's values make 400 steps, in which its rate hardly moves an alpha: these make 1,550
steps of ten times its size."""

_UNFLIPPED = _PAPER | {"flip": False}  # a mirrored digit is another sign


_TEXT = _PAPER | {  # Liu et al., section A.1.2
    "batch_size": 256,
    "lr": 20.0,
    "lr_min": 20.0,
    "momentum": 0.0,
    "weight_decay": 5e-7,
    "grad_clip": 0.25,
    "arch_lr": 3e-3,
    "arch_beta1": 0.9,
}
_SMALL_TEXT = _TEXT | {"epochs": 4, "batch_size": 32, "lr": 5.0, "lr_min": 0.5, "arch_lr": 1e-2}

Dataset = Literal["digits", "mnist", "fashionmnist", "cifar10", "cifar100", "svhn", "imagefolder", "custom"]
TextDataset = Literal["pydoc", "ptb", "wikitext2", "textfolder"]


@dataclass(frozen=True, kw_only=True)
class SearchOptions(Config):
    """Everything that decides a search. Defaults are those of the method's paper (DARTS: Liu et al., ICLR 2019, section
    A.1), but for `digits`, whose small preset ends within minutes on a CPU.

    Raises: ValueError or TypeError that names the field, what came and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "digits": _SMALL,
        "mnist": _UNFLIPPED,
        "fashionmnist": _PAPER,
        "cifar10": _PAPER,
        "cifar100": _PAPER,
        "svhn": _UNFLIPPED,
        "imagefolder": _PAPER,
        "custom": _PAPER,
        "pydoc": _SMALL_TEXT,
        "ptb": _TEXT,
        "wikitext2": _TEXT,
        "textfolder": _TEXT,
    }

    dataset: Literal[Dataset, TextDataset] = option(
        "data",
        "data set and its preset; custom: given to search() from Python. Texts, for space recurrent: pydoc (Python's "
        "own documentation), ptb, wikitext2, textfolder",
    )
    small_data: bool = option(
        "data", "defaults for a thousand images or so: smaller batches and a higher rate of the alphas", False
    )
    method: str = option(
        "method", "search method: a name, or MODULE:CLASS of your own", "darts", metavar="NAME", names_code=True
    )
    method_options: dict[str, Any] = option("method", "the method's own, see below", metavar="NAME=VALUE")
    space: str = option("method", "search space", "darts", metavar="NAME")
    space_options: dict[str, Any] = option("method", "the space's own, see below", metavar="NAME=VALUE")
    benchmark: Path | None = option(
        "method",
        "report the found cell's accuracy: from a NATS-Bench file (space nasbench201), or predicted by a folder of "
        "models of NAS-Bench-301 (space darts)",
        None,
        metavar="FILE|DIR",
    )
    primitives: tuple[str, ...] | None = option(
        "method", "candidate ops of every edge (default: the space's)", None, metavar="NAME"
    )
    cost: str | None = option(
        "cost",
        "put the found network's cost into the loss of the alphas: flops or params of the search network, or a table "
        "that fastdarts latency wrote",
        metavar="flops|params|FILE",
    )
    cost_form: Literal["add", "multiply", "limit"] = option(
        "cost",
        "add: loss + weight (cost / target - 1); multiply: 0.2 loss (log cost / log target)^weight; limit: add, but no "
        "reward below the target",
        "add",
    )
    cost_weight: float | None = option(
        "cost", "weight of the cost (default: 0.1; multiply: 0.3)", None, at_least=0, metavar="X"
    )
    cost_target: float | None = option(
        "cost",
        "the wanted cost, in the table's unit (default: that of equal shares of all ops)",
        None,
        above=0,
        metavar="X",
    )
    max_skips: int | None = option(
        "method", "skip connections that the normal cell may have (default: any number)", metavar="N", at_least=0
    )
    op_dropout: float = option(
        "method",
        "drop ops at random; the probability that all ops with weights, or all without, of an edge would be (DropNAS)",
        0.0,
        at_least=0,
        below=1,
    )
    prune_below: float = option(
        "method", "end each epoch without the ops that weigh less; a limit that rises to this", 0.0, at_least=0, below=1
    )

    select: Literal["derive", "pt"] = option(
        "method",
        "derive: the cells are those of the method; pt: afterwards choose the ops whose removal costs most (DARTS-PT)",
        "derive",
    )
    select_options: dict[str, Any] = option("method", "those of --select pt, see below", metavar="NAME=VALUE")

    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option(
        "data", "resize images to this (default: as they are)", None, metavar="SIZE|HxW", at_least=1
    )
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
    search_fraction: float = option(
        "data", "share of the training images of each class that the search reads at all", 1.0, above=0, at_most=1
    )
    train_portion: float = option(
        "data", "share of the training images that trains weights; the rest trains alphas", 0.5, above=0, below=1
    )
    crop_padding: int = option("data", "random crops out of images padded by this many pixels", at_least=0)
    flip: bool = option("data", "mirror half of the images")
    cutout: int = option("data", "side of the square that is blanked in each image, in pixels", at_least=0)
    auto_augment: Literal["none", "autoaugment", "randaugment", "trivialaugment"] = option(
        "data", "further random ops on each image, by torchvision"
    )

    faults: str | None = option(
        "data",
        "let the hardware fail: mibb (bit flips in maps), adsaf (stuck weights), gaussian or saltpepper, and a rate",
        metavar="KIND:RATE",
    )
    fault_weight: float = option("data", "share of the losses that is measured under the faults", at_least=0, at_most=1)

    stem: Literal["cifar", "imagenet"] = option(
        "network", "first layers; imagenet divides the image's sides by 8", "cifar"
    )
    init_channels: int = option("network", "channels C of the first cells", at_least=1)
    layers: int = option("network", "number of cells", at_least=1)
    backend: Literal["auto", "fused", "reference"] = option("network", "how mixed operations are computed", "auto")
    sync_batch_norm: bool = option(
        "network", "with several processes, batch norm by the rows of all of them (no kernel does that)", False
    )

    epochs: int = option("weights", "passes over the weights' half", at_least=1)
    batch_size: int = option("weights", "images of each half in a step", at_least=1)
    lr: float = option("weights", "learning rate of SGD in epoch 0", above=0)
    lr_min: float = option("weights", "where its cosine schedule ends", at_least=0)
    momentum: float = option("weights", "momentum of SGD", at_least=0, below=1)
    weight_decay: float = option("weights", "L2 of the weights", at_least=0)
    grad_clip: float = option("weights", "largest norm of the weights' gradient", above=0)

    order: Literal[1, 2] = option("alphas", "1: gradient at the present weights; 2: after a virtual step")
    arch_lr: float = option("alphas", "learning rate of Adam", above=0)
    arch_beta1: float = option("alphas", "Adam's first beta", at_least=0, below=1)
    alpha_warmup: float = option(
        "alphas", "share of the epochs, from the first, in which alphas stay as they are", at_least=0, below=1
    )
    arch_weight_decay: float = option("alphas", "L2 of the alphas", at_least=0)

    seed: int = option(
        "run", "seed of weights, alphas, data order and augmentation", 0, at_least=0, at_most=LARGEST_SEED
    )
    device: str = option("run", "auto (CUDA if available), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    amp: bool = option("run", "compute in bfloat16 where that is safe (autocast)", False)
    cuda_graphs: bool = option("run", "on CUDA, capture a step once and replay it", True)
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    out: Path | None = option("run", "folder of the results (default: runs/search-DATASET-TIME)", None, metavar="DIR")
    resume: bool = option("run", "continue the search in --out", False)
    save_every_steps: int = option(
        "run", "checkpoint every N steps too (0: each epoch only)", 0, metavar="N", at_least=0
    )
