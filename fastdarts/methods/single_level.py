"""One-level search: weights and alphas move on the loss of all training images (Liu et al., ICLR 2019, section 3.1).

The DARTS paper reports it as worse than bilevel search. The remedy named most often is much stronger augmentation
(`--cutout`), which makes the task harder for the search network.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper


@dataclass(frozen=True, kw_only=True)
class SingleLevelOptions(MethodOptions):
    """Define the hyper-parameter of single-level search; the default is the better choice in the paper."""

    steps: Literal["simultaneous", "alternating"] = hyper(
        "simultaneous: one backward moves both; alternating: alphas, then weights", "simultaneous"
    )


class SingleLevel(Method):
    """Run DARTS with a single level: weights and alphas minimise the same loss."""

    Options = SingleLevelOptions
    settings: ClassVar[Settings] = {"order": 1}
    level: Level = "single"

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        if self.options.steps == "alternating":
            self.level = "coordinate"
