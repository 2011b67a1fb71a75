"""Typed configurations: one frozen dataclass is the Python API, the flags, the config file and the record of a run."""

import argparse
import dataclasses
import difflib
import json
import math
import signal
import sys
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from fastdarts import methods
from fastdarts.files import write_atomically
from fastdarts.interrupt import Interrupted
from fastdarts.resources import is_out_of_memory

FROM_PRESET: Any = type("FromPreset", (), {"__repr__": lambda self: "from the preset of the data set"})()
_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, limit: value >= limit),
    "above": ("above", lambda value, limit: value > limit),
    "at_most": ("at most", lambda value, limit: value <= limit),
    "below": ("below", lambda value, limit: value < limit),
}

LARGEST_SEED = 2**63 - 1
"""Of any run; torch's generators take twice as much, so that an offset can be added."""


def option(group: str, text: str, default: Any = FROM_PRESET, *, metavar: str | None = None, **limits: float) -> Any:
    """A field of a Config: its group and help text on the command line, its default (left out: the data set's preset
    decides) and its limits (at_least, above, at_most, below)."""
    return dataclasses.field(
        default=default, metadata={"group": group, "help": text, "metavar": metavar, "limits": limits}
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of SearchConfig and EvalConfig. Fields are made with `option`; the first, `dataset`, picks the preset.

    Raises: ValueError (TypeError for a wrong type) that names the field, what came and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by data set, see `preset`

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # what decides the preset stands first
            value = getattr(self, field.name)
            if value is FROM_PRESET:
                value = self.preset()[field.name]
            object.__setattr__(self, field.name, _checked(field, value, hints[field.name]))

    def preset(self) -> Mapping[str, Any]:
        """Defaults of the fields that have none of their own."""
        return self.presets[getattr(self, "dataset")]  # noqa: B009 - the subclasses' first field

    def help_notes(self) -> str:
        """What --help says below the options."""
        return ""

    def save(self, path: Path) -> None:
        """Write a file that `--config` and `load` read again: all but `out` and `resume`, which name one run."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("out", "resume")}
        write_atomically(path, json.dumps(values, indent=2, default=str) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a .json or .toml file; fields it does not name get their defaults."""
        return cls(**read_file(cls, path))


ConfigType = TypeVar("ConfigType", bound=Config)


_PAPER: dict[str, Any] = {
    "method_options": {},
    "epochs": 50,
    "batch_size": 64,
    "init_channels": 16,
    "layers": 8,
    "lr": 0.025,
    "lr_min": 0.001,
    "order": 2,
    "weight_decay": 3e-4,
    "arch_lr": 3e-4,
    "alpha_warmup": 0.0,
    "max_skips": None,
    "crop_padding": 4,
    "flip": True,
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
_UNFLIPPED = _PAPER | {"flip": False}  # a mirrored digit is another sign

Dataset = Literal["digits", "mnist", "fashionmnist", "cifar10", "cifar100", "svhn", "imagefolder", "custom"]


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
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
    }

    dataset: Dataset = option("data", "data set and its preset; custom: given to search() from Python", "digits")
    method: str = option(
        "method", f"{', '.join(methods.NAMES)}; or MODULE:CLASS of your own", methods.NAMES[0], metavar="NAME"
    )
    method_options: dict[str, Any] = option("method", "the method's own, see below", metavar="NAME=VALUE")
    space: Literal["s5", "s1", "s2", "s3", "s4"] = option(
        "method", "candidates of the edges: s5 has DARTS' eight, s1 to s4 are the small ones of RobustDARTS", "s5"
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

    data: Path = option("data", "folder of the data set", Path("data"), metavar="DIR")
    image_size: tuple[int, int] | None = option(
        "data", "resize images to this (default: as they are)", None, metavar="SIZE|HxW", at_least=1
    )
    train_portion: float = option(
        "data", "share of the training images that trains weights; the rest trains alphas", 0.5, above=0, below=1
    )
    crop_padding: int = option("data", "random crops out of images padded by this many pixels", at_least=0)
    flip: bool = option("data", "mirror half of the images")
    cutout: int = option("data", "side of the square that is blanked in each image, in pixels", 0, at_least=0)

    init_channels: int = option("network", "channels C of the first cells", at_least=1)
    layers: int = option("network", "number of cells", at_least=1)
    backend: Literal["auto", "fused", "reference"] = option("network", "how mixed operations are computed", "auto")

    epochs: int = option("weights", "passes over the weights' half", at_least=1)
    batch_size: int = option("weights", "images of each half in a step", at_least=1)
    lr: float = option("weights", "learning rate of SGD in epoch 0", above=0)
    lr_min: float = option("weights", "where its cosine schedule ends", at_least=0)
    momentum: float = option("weights", "momentum of SGD", 0.9, at_least=0, below=1)
    weight_decay: float = option("weights", "L2 of the weights", at_least=0)
    grad_clip: float = option("weights", "largest norm of the weights' gradient", 5.0, above=0)

    order: Literal[1, 2] = option("alphas", "1: gradient at the present weights; 2: after a virtual step")
    arch_lr: float = option("alphas", "learning rate of Adam", above=0)
    alpha_warmup: float = option(
        "alphas", "share of the epochs, from the first, in which alphas stay as they are", at_least=0, below=1
    )
    arch_weight_decay: float = option("alphas", "L2 of the alphas", 1e-3, at_least=0)

    seed: int = option(
        "run", "seed of weights, alphas, data order and augmentation", 0, at_least=0, at_most=LARGEST_SEED
    )
    device: str = option("run", "auto (CUDA where there is some), cpu, cuda or cuda:N", "auto", metavar="DEVICE")
    amp: bool = option("run", "compute in bfloat16 where that is safe (autocast)", False)
    cuda_graphs: bool = option("run", "on CUDA, capture a step once and replay it", True)
    deterministic: bool = option("run", "the same bits in each run on the same machine", False)
    out: Path | None = option("run", "folder of the results (default: runs/search-DATASET-TIME)", None, metavar="DIR")
    resume: bool = option("run", "continue the search in --out", False)
    save_every_steps: int = option(
        "run", "checkpoint every N steps too (0: each epoch only)", 0, metavar="N", at_least=0
    )

    def preset(self) -> Mapping[str, Any]:
        method = methods.find(self.method)
        published = method.published if self.dataset != "digits" else {}
        return {**super().preset(), **method.settings, **published}

    def help_notes(self) -> str:
        lines = [
            f"  {field.name}={self.method_options[field.name]}: {field.metadata['help']}"
            for field in dataclasses.fields(methods.find(self.method).Options)
        ]
        return "\n".join([f"method options of {self.method}:", *(lines or ["  none"])])

    def __post_init__(self) -> None:
        super().__post_init__()
        method = methods.find(self.method)
        object.__setattr__(self, "method_options", dataclasses.asdict(method.read_options(self.method_options)))
        method.check(self)
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min must be at most lr = {self.lr}; got {self.lr_min}")
        if self.init_channels % 2:
            raise ValueError(f"init_channels must be even (factorised reductions halve it); got {self.init_channels}")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the search to continue")


def differences(ours: Config, theirs: Config, ignore: Sequence[str] = ()) -> list[str]:
    """The fields that differ, each as "name: ours, theirs"."""
    pairs = ((field.name, getattr(ours, field.name), getattr(theirs, field.name)) for field in dataclasses.fields(ours))
    return [f"{name}: {a}, before {b}" for name, a, b in pairs if a != b and name not in ignore]


def read_table(config_type: type[ConfigType], values: Mapping[str, Any], what: str) -> ConfigType:
    """The config with these values; ValueError for a name that it has not, as a field of `what`."""
    check_names(config_type, values, what)
    try:
        return config_type(**values)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{what}: {error}") from None


def check_names(config_type: type[Config], values: Mapping[str, Any], what: str) -> None:
    """ValueError for a name that is no field."""
    names = [field.name for field in dataclasses.fields(config_type)]
    for name in values:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the names are {', '.join(names) or '(none)'}"
            raise ValueError(f"{what} sets {name!r}, which is unknown; {hint}")


def read_file(config_type: type[Config], path: Path) -> dict[str, Any]:
    """The values in a .json or .toml file, checked to be names of fields."""
    if path.suffix not in (".json", ".toml"):
        raise ValueError(f"config: {path} must end in .json or .toml")
    if not path.is_file():
        raise FileNotFoundError(f"config: there is no file {path}")
    try:
        text = path.read_text()
        values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        raise ValueError(f"config: {path} is not readable as {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} must hold one table of names and values")
    values = {name.replace("-", "_"): value for name, value in values.items()}
    check_names(config_type, values, f"config: {path}")
    return values


def parse_cli(
    config_type: type[ConfigType],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str = "",
) -> ConfigType:
    """The config that a command line asks for: flags, over the file of --config, over the data set's preset.

    With --resume and no --config the file is config.json in the folder of --out: a resumed run needs no other flags.
    `--help` prints and exits with 0; a line that cannot be parsed ends with one line on stderr and exit code 2.
    """
    given = vars(_parser(config_type, argv, prog, description).parse_args(argv))
    tables = {name: dict(pairs) for name, pairs in given.items() if isinstance(pairs, list)}
    file = given.pop("config", None)
    values: dict[str, Any] = {}
    if file is not None:
        values = read_file(config_type, file)
    elif given.get("resume") and given.get("out") is not None:
        file = given["out"] / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"resume: {given['out']} holds nothing to continue; start without --resume")
        try:
            values = read_file(config_type, file)
        except ValueError as error:
            raise ValueError(f"resume: {given['out']} holds no run of this program ({error})") from error
    merged = {name: values.get(name, {}) | table for name, table in tables.items()}
    return config_type(**(values | given | merged))


def run_cli(
    config_type: type[ConfigType],
    run: Callable[[ConfigType], int],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
) -> int:
    """Parse, run and return the exit code: 2, with one line on stderr and no traceback, for a user's mistake; 128 + the
    signal's number for an interruption."""
    try:
        return run(parse_cli(config_type, argv, prog=prog, description=description))
    except Interrupted as interruption:
        print(f"{prog}: {interruption}", file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser(
    config_type: type[Config], argv: Sequence[str] | None, prog: str | None, description: str
) -> argparse.ArgumentParser:
    """Flags from the fields. They have no defaults of their own: what was given can be told from what was not."""
    parser = _OneLineParser(
        prog=prog,
        usage="%(prog)s [--dataset NAME] [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a .toml or .json file of these values; flags override it"
    )
    defaults = _shown_defaults(config_type, argv)
    parser.epilog = defaults.help_notes()
    hints = typing.get_type_hints(config_type)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_type):
        meta = field.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        flag = "--" + field.name.replace("_", "-")
        default = getattr(defaults, field.name)
        help_text = meta["help"] if default is None else f"{meta['help']} (default: {_shown(default)})"
        hint, _ = _without_none(hints[field.name])
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
        elif typing.get_origin(hint) is dict:
            group.add_argument(  # given twice, it adds to the pairs before
                flag, type=_name_value, nargs="+", action="extend", metavar=meta["metavar"], help=meta["help"]
            )
        elif typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            group.add_argument(flag, type=type(choices[0]), choices=choices, help=help_text)
        else:
            parse = _image_size if typing.get_origin(hint) is tuple else hint
            group.add_argument(flag, type=parse, metavar=meta["metavar"] or _METAVARS.get(hint), help=help_text)
    return parser


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _shown_defaults(config_type: type[ConfigType], argv: Sequence[str] | None) -> ConfigType:
    """The defaults that --help shows: those of the data set named on the same line."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = [field.name for field in dataclasses.fields(config_type) if field.name in ("dataset", "method")]
    for name in names:
        early.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS)
    try:
        return config_type(**vars(early.parse_known_args(argv)[0]))
    except (ValueError, TypeError):  # said again, in one line, when all is parsed
        return config_type()


def _shown(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _name_value(text: str) -> tuple[str, Any]:
    """name=value; a value that reads as JSON (a number, true, false) is one, others are text."""
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"wanted NAME=VALUE, got {text!r}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def _image_size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    try:
        return int(height), int(width if separator else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted SIZE or HEIGHTxWIDTH in pixels, got {text!r}") from None


def _without_none(hint: Any) -> tuple[Any, bool]:
    """(T, True) for T | None, (T, False) for T."""
    if isinstance(hint, types.UnionType):
        return next(arm for arm in hint.__args__ if arm is not types.NoneType), True
    return hint, False


def _checked(field: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    """The value as its type (an int is taken for a float, a list for a tuple, text for a path), or an error."""
    hint, optional = _without_none(hint)
    if value is None and optional:
        return None
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed or isinstance(value, bool):
            raise ValueError(f"{field.name} must be one of {', '.join(map(str, allowed))}; got {value!r}")
        return value
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{field.name} must be a table of names and values; got {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        value = tuple(value) if isinstance(value, list) else value
        kinds = typing.get_args(hint)
        if not (
            isinstance(value, tuple)
            and len(value) == len(kinds)
            and all(type(v) is k for v, k in zip(value, kinds, strict=True))
        ):
            raise TypeError(f"{field.name} must be ({', '.join(k.__name__ for k in kinds)}); got {value!r}")
        return _within(field, value, value)
    if hint is float and type(value) is int:
        value = float(value)
    if hint is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise TypeError(f"{field.name} must be {hint.__name__}; got {value!r}")
    return _within(field, value, (value,))


def _within(field: dataclasses.Field[Any], value: Any, numbers: tuple[Any, ...]) -> Any:
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"{field.name} must be finite; got {value}")
    for name, limit in field.metadata["limits"].items():
        words, holds = _LIMITS[name]
        if not all(holds(number, limit) for number in numbers):
            raise ValueError(f"{field.name} must be {words} {limit}; got {_shown(value)}")
    return value
