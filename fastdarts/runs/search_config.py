"""The configuration of a search: its options, with the defaults of the method's paper."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdarts import methods
from fastdarts.config.options import FROM_PRESET, option, read_table
from fastdarts.config.search_options import SMALL_DATA, SearchOptions
from fastdarts.methods.darts_pt import SelectOptions
from fastdarts.methods.method import Method
from fastdarts.runs.space_options import choose_dataset, notes, settle_space_options
from fastdarts.spaces import registry
from fastdarts.spaces.space import material_of, search_options_of
from fastdarts.tasks.faults import Faults

IMAGE_ONLY = (
    *("image_size", "test_portion", "train_portion", "crop_padding", "flip", "cutout", "auto_augment", "small_data"),
    *("faults", "fault_weight"),
    *("init_channels", "layers", "max_skips", "stream", "workers", "search_fraction", "stem"),
)
"""Options without a meaning for texts."""


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SearchOptions):
    """Hold everything that decides a search. Defaults are those of the method's paper (DARTS: Liu et al., ICLR 2019,
    section A.1), but for `digits`, whose small preset ends within minutes on a CPU.

    Raises: ValueError or TypeError that names the field, what came and what is allowed.
    """

    method: str = option(
        "method",
        f"{', '.join(methods.NAMES)}; or MODULE:CLASS of your own",
        methods.NAMES[0],
        metavar="NAME",
        names_code=True,
    )

    space: str = option("method", f"search space: {', '.join(registry.names())}", "darts", metavar="NAME")

    def preset(self) -> Mapping[str, Any]:
        method, space = methods.find(self.method), registry.find(self.space)
        text = material_of(space) == "text"
        published = method.published if self.dataset != "digits" and not text else {}
        small = SMALL_DATA if self.small_data else {}
        found = {**super().preset(), **space.search_defaults(self.dataset), **method.settings, **published, **small}
        if text:
            found["cost"] = found["faults"] = None  # these are of networks that read images
        if text and self.lr is not FROM_PRESET:
            found["lr_min"] = self.lr * found["lr_min"] / found["lr"]  # the same share of a rate that was given
        return found

    def help_notes(self) -> str:
        space = search_options_of(registry.find(self.space))
        return "\n".join(
            [
                *notes(f"method options of {self.method}:", methods.find(self.method).Options, self.method_options),
                *notes(f"space options of {self.space}:", space, self.space_options),
                *notes("select options:", SelectOptions, self.select_options),
            ]
        )

    def _settle_selection(self, method: type[Method]) -> None:
        """Complete the options of the selection; raise a ValueError where it has no meaning."""
        values = {"epochs": 17 if self.dataset == "digits" else 161} | self.select_options
        options = read_table(SelectOptions, values, "select_options")
        object.__setattr__(self, "select_options", dataclasses.asdict(options))
        if self.select == "derive":
            return
        if method.level in ("single", "coordinate"):
            raise ValueError(f"select 'pt' needs validation images, of which method {self.method!r} leaves none")
        if material_of(registry.find(self.space)) == "text":
            raise ValueError(f"select 'pt' measures images; space {self.space!r} reads text")

    def __post_init__(self) -> None:
        choose_dataset(self, self.presets)
        super().__post_init__()
        settle_space_options(self, search_options_of(registry.find(self.space)), IMAGE_ONLY)
        method = methods.find(self.method)
        object.__setattr__(self, "method_options", dataclasses.asdict(method.read_options(self.method_options)))
        method.check(self)
        self._settle_selection(method)
        if self.faults is not None:
            Faults.read(self.faults)
            if self.order == 2:
                raise ValueError("faults have no second order: its difference needs passes without chance")
        elif self.fault_weight != self.preset()["fault_weight"]:
            raise ValueError("fault_weight needs faults, such as faults=mibb:1e-4")
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min must be at most lr = {self.lr}; got {self.lr_min}")
        if self.stem != "cifar" and "stem" not in registry.find(self.space).features:
            raise ValueError(f"stem {self.stem!r} is not offered by space {self.space!r}; leave it out")
        if self.resume and self.out is None:
            raise ValueError("resume needs out, the folder of the search to continue")
