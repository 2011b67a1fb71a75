"""MiLeNAS: mixed-level search (He et al., CVPR 2020, arXiv:2003.12238).

Alphas move by the first-order gradient of the validation loss and of the training loss together, which regularises them
without a second order: d/dalpha (L_valid + L_train / lambda) (equation 4, divided by lambda; Adam does not see the
scale).
"""

from dataclasses import dataclass
from typing import ClassVar

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper


@dataclass(frozen=True, kw_only=True)
class MiLeNASOptions(MethodOptions):
    """Define the hyper-parameters of MiLeNAS; defaults are the authors'."""

    balance: float = hyper("lambda: weight of the validation loss when that of the training loss is 1", 1.0, above=0)


class MiLeNAS(Method):
    """Move the alphas on training and validation loss."""

    Options = MiLeNASOptions
    settings: ClassVar[Settings] = {"order": 1}

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.train_weight = 1 / self.options.balance

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.order == 2:
            raise ValueError(
                "method 'milenas' has no second order: its alphas do not look through a step of the weights"
            )
