"""Settle what configs of searches and evaluations share: a data set that fits the space, and the space's options."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fastdarts.config.options import FROM_PRESET, Config, read_table
from fastdarts.data.text.sources import TEXTS
from fastdarts.spaces import registry
from fastdarts.spaces.space import Material, SpaceOptions, material_of

_DEFAULTS: dict[Material, str] = {"images": "digits", "text": "pydoc"}


def choose_dataset(config: Any, presets: Mapping[str, object]) -> None:
    """Set the data set that a config leaves open to the one that needs no files.

    Raises: ValueError for images where the space reads text, and the other way round.
    """
    material = material_of(registry.find(config.space))
    if config.dataset is FROM_PRESET:
        object.__setattr__(config, "dataset", _DEFAULTS[material])
    if config.dataset in presets and (config.dataset in TEXTS) != (material == "text"):
        allowed = (name for name in presets if (name in TEXTS) == (material == "text"))
        raise ValueError(
            f"space {config.space!r} reads {material}: dataset must be one of {', '.join(allowed)}; got "
            f"{config.dataset!r}"
        )


def settle_space_options(config: Any, options: type[SpaceOptions], image_only: Sequence[str]) -> None:
    """Complete `space_options` by the space's defaults for the data set.

    Args:
        config: with all other fields settled.
        options: the class of the space's options.
        image_only: names of fields that have a meaning for images only.

    Raises: ValueError or TypeError for a wrong option, or for one of `image_only` that was changed for a text.
    """
    values = {**config.preset()["space_options"], **config.space_options}
    object.__setattr__(config, "space_options", dataclasses.asdict(read_table(options, values, "space_options")))
    if material_of(registry.find(config.space)) != "text":
        return
    for field in dataclasses.fields(config):
        if field.name in image_only:
            default = config.preset()[field.name] if field.default is FROM_PRESET else field.default
            if getattr(config, field.name) != default:
                raise ValueError(f"{field.name} has no meaning for texts; leave it out")


def notes(title: str, options: type[Config], values: Mapping[str, Any]) -> list[str]:
    """Return lines of --help about a table of options."""
    lines = [f"  {field.name}={values[field.name]}: {field.metadata['help']}" for field in dataclasses.fields(options)]
    return [title, *(lines or ["  none"])]
