"""The table of costs that a search's config names."""

from dataclasses import replace
from pathlib import Path

import torch

from fastdarts.config.reading import parse_json, read_text
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method
from fastdarts.spaces import cost
from fastdarts.spaces.cost import Cost, CostTable, Shape
from fastdarts.spaces.cost_model import CostModel
from fastdarts.spaces.space import priced_supernet

COUNTED = {"flops": cost.multiply_adds, "params": cost.parameters}
"""The costs that are counted on the search network itself, by their names in a config."""


def load_cost(path: Path) -> Cost:
    """Read a table of costs or a regressor, as `fastdarts latency` writes them.

    Raises: ValueError or FileNotFoundError for a file that is neither.
    """
    try:
        value = parse_json(read_text(path))
    except ValueError as error:
        raise ValueError(f"{path} is no table of costs, as `fastdarts latency` writes it: {error}") from None
    if not (isinstance(value, dict) and "regressor" in value):
        return CostTable.load(path)
    try:
        return CostModel.read(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is no regressor of costs, as `fastdarts latency` writes it: {error}") from None


def cost_table(config: SearchOptions, method: Method, outputs: int, image_shape: Shape) -> Cost:
    """Return the costs of all choices of a search.

    Args:
        config: `cost` is a key of `COUNTED` or a file that `fastdarts latency` wrote.
        method: the search's method, which knows the space.
        outputs: number of classes.
        image_shape: (C, H, W).

    Raises: ValueError or FileNotFoundError for a file that is no table of costs.
    """
    count = COUNTED.get(str(config.cost))
    if count is None:
        return load_cost(Path(str(config.cost)))
    with torch.device("meta"):
        network = priced_supernet(
            method.space,
            C=config.init_channels,
            num_classes=outputs,
            in_channels=image_shape[0],
            **method.cost_arguments(),
        )
    table = count(network, (1, *image_shape))
    return replace(table, about={"network": f"the search network, C={config.init_channels}, {config.layers} layers"})
