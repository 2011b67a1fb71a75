"""One-level search: weights and alphas move on the loss of all training images (Liu et al., ICLR 2019, section 3.1).

DARTS' paper reports it as worse than two levels; with much stronger augmentation (`--cutout`) the task is less easy
for the search network, which is the remedy named most often.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastdarts.bilevel.step import Level
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper


@dataclass(frozen=True, kw_only=True)
class SingleLevelOptions(MethodOptions):
    """The default is the better one in the paper."""

    steps: Literal["simultaneous", "alternating"] = hyper(
        "simultaneous: one backward moves both; alternating: alphas, then weights", "simultaneous"
    )


class SingleLevel(Method):
    """DARTS on one level."""

    Options = SingleLevelOptions
    settings: ClassVar[Settings] = {"order": 1}
    level: Level = "single"

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        if self.options.steps == "alternating":
            self.level = "coordinate"
