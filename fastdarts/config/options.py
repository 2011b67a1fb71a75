"""Typed configurations: one frozen dataclass is the Python API, the flags, the config file and the record of a run."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from fastdarts.config.files import write_atomically
from fastdarts.config.formats import read_values
from fastdarts.config.named_code import refuse_unnamed_code
from fastdarts.config.names import did_you_mean
from fastdarts.config.plain import plain

FROM_PRESET: Any = type("FromPreset", (), {"__repr__": lambda self: "from the preset of the data set"})()

EMPTY: Mapping[str, Any] = types.MappingProxyType({})

_LIMITS: dict[str, tuple[str, Callable[[Any, Any], bool]]] = {
    "at_least": ("at least", lambda value, limit: value >= limit),
    "above": ("above", lambda value, limit: value > limit),
    "at_most": ("at most", lambda value, limit: value <= limit),
    "below": ("below", lambda value, limit: value < limit),
}


def option(
    group: str,
    text: str,
    default: Any = FROM_PRESET,
    *,
    metavar: str | None = None,
    names_code: bool = False,
    **limits: float,
) -> Any:
    """A field of a Config: its group and help text on the command line, its default (left out: the data set's preset
    decides), True in `names_code` if its value may be a MODULE:CLASS to import (see `named_code`), and its limits
    (at_least, above, at_most, below)."""
    metadata = {"group": group, "help": text, "metavar": metavar, "names_code": names_code, "limits": limits}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of SearchConfig and EvalConfig. Fields are made with `option`; the first, `dataset`, picks the preset.

    Raises: ValueError (TypeError for a wrong type) that names the field, what came and what is allowed.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}  # by data set, see `preset`

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # the field that decides the preset comes first
            value = getattr(self, field.name)
            if value is FROM_PRESET:
                value = self.preset()[field.name]
            value = plain(value, field.name, keep=(Path,))
            object.__setattr__(self, field.name, _checked(field, value, hints[field.name]))

    def preset(self) -> Mapping[str, Any]:
        """Defaults of the fields that have none of their own."""
        return self.presets[getattr(self, "dataset")]  # noqa: B009 - the subclasses' first field

    def help_notes(self) -> str:
        """Return the text that --help prints below the options."""
        return ""

    def save(self, path: Path) -> None:
        """Write a file that `--config` and `load` read again: all but `out` and `resume`, which name one run."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("out", "resume")}
        write_atomically(path, json.dumps(values, indent=2, default=str) + "\n")

    @classmethod
    def load(cls, path: Path, **named: Any) -> Self:
        """Read a config file (see `read_values`); fields that it does not name get their defaults.

        Args:
            path: the file.
            named: values that go over those of the file. Code of one's own (MODULE:CLASS) must be among them: a file
                alone does not have it imported.
        """
        return cls(**{**read_file(cls, path, named), **named})


ConfigType = TypeVar("ConfigType", bound=Config)


def differences(ours: Config, theirs: Config, ignore: Sequence[str] = ()) -> list[str]:
    """The fields that differ, each as "name: ours, theirs"."""
    pairs = ((field.name, getattr(ours, field.name), getattr(theirs, field.name)) for field in dataclasses.fields(ours))
    return [f"{name}: {a}, before {b}" for name, a, b in pairs if a != b and name not in ignore]


def config_before(config: ConfigType, file: Path, named: Mapping[str, Any], may_differ: Sequence[str]) -> ConfigType:
    """Return the config in a folder's config.json, where a program goes on.

    Args:
        config: of the program now.
        file: the config.json.
        named: values that may name code of one's own, as the command line or the caller has them.
        may_differ: names of the fields that may have changed since.

    Raises: ValueError if another field has changed; UnnamedCodeError for code that is not among `named`.
    """
    values = read_file(type(config), file, named)
    refuse_unnamed_code(type(config), values, named, file)
    before = type(config)(**values)
    if changed := differences(config, before, ignore=may_differ):
        free = ", ".join(may_differ)
        raise ValueError(f"resume: {file.parent} has another config ({'; '.join(changed)}); only {free} may change")
    return before


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
            hint = did_you_mean(name, names) or f"; the names are {', '.join(names) or '(none)'}"
            raise ValueError(f"{what} sets {name!r}, which is unknown{hint}")


def read_file(config_type: type[Config], path: Path, named: Mapping[str, Any] = EMPTY) -> dict[str, Any]:
    """Read the values of a config file and check that they are named like fields of `config_type`.

    Args:
        config_type: the kind of config.
        path: the file, see `read_values`.
        named: values that will go over those of the file.

    Raises: ValueError or FileNotFoundError that names the file; UnnamedCodeError for code that is not among `named`.
    """
    values = read_values(path)
    check_names(config_type, values, f"config: {path}")
    refuse_unnamed_code(config_type, {name: value for name, value in values.items() if name not in named}, {}, path)
    return values


def table_of(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The table that a file gives for a field, empty without one; TypeError for anything else than a table."""
    table = values.get(name, {})
    if not isinstance(table, dict):
        raise TypeError(f"{name} must be a table of names and values; got {table!r}")
    return table


def shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ("," if isinstance(value[0], str) else "x").join(map(str, value))
    return str(value)


def without_none(hint: Any) -> tuple[Any, bool]:
    """(T, True) for T | None, (T, False) for T."""
    if isinstance(hint, types.UnionType):
        return next(arm for arm in hint.__args__ if arm is not types.NoneType), True
    return hint, False


def _checked(field: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    """Return the value as its type: an int is taken for a float or a list of ints, a list for a tuple, text for a path.

    Raises: TypeError or ValueError that names the field.
    """
    hint, optional = without_none(hint)
    if value is None and optional:
        return None
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed or isinstance(value, bool):
            hint = did_you_mean(value, map(str, allowed)) if isinstance(value, str) else ""
            raise ValueError(f"{field.name} must be one of {', '.join(map(str, allowed))}; got {value!r}{hint}")
        return value
    if typing.get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise TypeError(f"{field.name} must be a table of names and values; got {value!r}")
        return value
    if typing.get_origin(hint) is tuple:
        value = tuple(value) if isinstance(value, list) else value
        kinds = typing.get_args(hint)
        if kinds[-1] is ...:
            value = (value,) if kinds[0] is int and type(value) is int else value
            if not (isinstance(value, tuple) and value and all(type(v) is kinds[0] for v in value)):
                raise TypeError(f"{field.name} must be a list of {kinds[0].__name__}, one at least; got {value!r}")
            return value
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
            raise ValueError(f"{field.name} must be {words} {limit}; got {shown(value)}")
    return value
