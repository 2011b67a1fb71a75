"""The configuration of a search: its options, with the defaults of the method's paper."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastdarts import methods
from fastdarts.config.options import option
from fastdarts.config.search_options import SMALL_DATA, SearchOptions
from fastdarts.spaces import registry


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
        method = methods.find(self.method)
        published = method.published if self.dataset != "digits" else {}
        space = registry.find(self.space).search_defaults(self.dataset)
        small = SMALL_DATA if self.small_data else {}
        return {**super().preset(), **space, **method.settings, **published, **small}

    def help_notes(self) -> str:
        lines = [
            f"  {field.name}={self.method_options[field.name]}: {field.metadata['help']}"
            for field in dataclasses.fields(methods.find(self.method).Options)
        ]
        space = registry.find(self.space, self.primitives, self.space_options)
        names = ", ".join(registry.options_of(self.space)) or "none"
        of_space = f"space options of {self.space} ({space.title}): {names}"
        return "\n".join([f"method options of {self.method}:", *(lines or ["  none"]), of_space])

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
