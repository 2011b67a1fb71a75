"""The search space as programs and methods see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from fastdarts.config.options import Config
from fastdarts.spaces.group import Group
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.supernet import Supernet

Feature = Literal[
    "edges",
    "skip connections",
    "auxiliary ops",
    "partial channels",
    "drop path",
    "depth",
    "probed ops",
    "stem",
    "weights by cell",
    "own cells",
    "elastic layers",
    "stages",
]
"""Properties of a space that a method may need: rows that are edges of cells; `skip_connect` among the ops; ops without
an alpha; ops on some of the channels; edges that drop samples; a number of cells to choose; ops that run in the
backward pass only; first layers to choose; op weights that differ from cell to cell of a type; alphas of its own for
each cell; choices that are parts of one network."""


Material = Literal["images", "text"]
"""Kind of data that networks of a space read."""


@dataclass(frozen=True, kw_only=True)
class SpaceOptions(Config):
    """Hold a space's own options, fields defined with `option`; the default of most spaces has none."""


def material_of(space: "Space") -> Material:
    """Return what networks of a space read; images unless the space has an attribute `material`."""
    material: Material = getattr(space, "material", "images")
    return material


def has_kernels(space: "Space", device: str) -> bool:
    """Return False if the ops of a space are torch's own modules on this kind of device: not in `kernel_devices`."""
    devices: tuple[str, ...] | None = getattr(space, "kernel_devices", None)
    return devices is None or device in devices


def priced_supernet(space: "Space", /, **arguments: Any) -> Supernet:
    """Build the search network on which costs are counted and measured: each choice has modules of its own.

    Args:
        space: a space; its method `priced_supernet` builds the network where choices share weights.
        arguments: C, num_classes, layers, in_channels and others of `Space.supernet`.
    """
    build: Callable[..., Supernet] = getattr(space, "priced_supernet", space.supernet)
    return build(backend="reference", **(space.arguments() | arguments))


def search_options_of(space: "Space") -> type[SpaceOptions]:
    """Return the class of the options that a space has in a search: its attribute `SearchOptions`, or none."""
    options: type[SpaceOptions] = getattr(space, "SearchOptions", SpaceOptions)
    return options


def evaluation_options_of(space: "Space") -> type[SpaceOptions]:
    """Return the class of the options that a space has in an evaluation: `EvaluationOptions`, or none."""
    options: type[SpaceOptions] = getattr(space, "EvaluationOptions", SpaceOptions)
    return options


def with_options(space: "Space", values: Mapping[str, Any]) -> "Space":
    """Return the space that these values of its search options make: by its method `with_options`, or as it is."""
    change: Callable[..., Space] | None = getattr(space, "with_options", None)
    return space if change is None else change(**values)


class Architecture(Protocol):
    """The result of a search: plain values that only their space looks into."""

    @property
    def space(self) -> str:
        """Return the name of the space that reads and builds it."""
        ...

    def to_json(self) -> str:
        """Return a JSON object; `Space.from_json` reads it back equal."""
        ...


class Space(Protocol):
    """A search space: its groups of choices, its search network, and what becomes of a found architecture."""

    @property
    def name(self) -> str:
        """Return the name on the command line and in an architecture's JSON."""
        ...

    @property
    def title(self) -> str:
        """Return a short description."""
        ...

    @property
    def groups(self) -> Mapping[str, Group]:
        """Return the rows of choices of the whole space, before a method removes ops."""
        ...

    @property
    def features(self) -> frozenset[Feature]:
        """Return what the space offers to methods."""
        ...

    def search_defaults(self, dataset: str) -> Mapping[str, Any]:
        """Return defaults of search options that differ from those of DARTS."""
        ...

    def evaluation_defaults(self, dataset: str) -> Mapping[str, Any]:
        """Return defaults of evaluation options that differ from those of DARTS."""
        ...

    def arguments(self) -> dict[str, Any]:
        """Return arguments of `supernet` that describe the space; a method may change them."""
        ...

    def supernet(self, **arguments: Any) -> Supernet:
        """Build the search network.

        Args:
            arguments: C, num_classes, layers, in_channels, backend; those of `arguments`; and what the method adds.
        """
        ...

    def discrete(self, architecture: Any, **options: Any) -> DiscreteNetwork:
        """Build the network of an architecture, as it is trained from scratch.

        Args:
            architecture: what a search in this space found.
            options: C, num_classes, layers, in_channels, auxiliary, drop_path_prob, stem; backend unless it is "auto".
        """
        ...

    def from_json(self, text: str) -> Any:
        """Read an architecture from JSON; ValueError says what is wrong with it."""
        ...

    def from_text(self, text: str) -> Any | None:
        """Read an architecture as the space's users write it; None if the text is of another space."""
        ...

    def numbers(self, architecture: Any) -> dict[str, float]:
        """Return what an epoch reports of an architecture, such as skip connections."""
        ...

    def table(self, file: Path) -> Callable[[Any], dict[str, float]]:
        """Open a file of tabulated accuracies.

        Returns: a function from an architecture to named accuracies in percent.

        Raises: ValueError where the space has no such benchmark, or for another kind of file; FileNotFoundError;
            ImportError that names the package to install.
        """
        ...

    def svg(self, architecture: Any) -> str:
        """Draw an architecture as an SVG document."""
        ...

    def png(self, architecture: Any) -> bytes:
        """Draw an architecture as a PNG file."""
        ...
