"""fastdarts: differentiable architecture search (DARTS) with fused kernels and a verified answer.

Names are imported on first use, so that `python -m fastdarts --help` answers without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastdarts.bilevel.architect import Architect
    from fastdarts.mixed.mixed_op import MixedOp
    from fastdarts.mixed.patching import PatchReport, patch, unpatch
    from fastdarts.primitives.registry import register_primitive
    from fastdarts.primitives.table import PRIMITIVES
    from fastdarts.runs.trained import TrainedNetwork, load
    from fastdarts.spaces.darts.discrete import EvalNetwork
    from fastdarts.spaces.darts.genotype import DARTS_V1, DARTS_V2, Genotype
    from fastdarts.spaces.darts.supernet import SearchNetwork

    __version__: str

__all__ = [
    "DARTS_V1",
    "DARTS_V2",
    "PRIMITIVES",
    "Architect",
    "EvalNetwork",
    "Genotype",
    "MixedOp",
    "PatchReport",
    "SearchNetwork",
    "TrainedNetwork",
    "__version__",
    "load",
    "patch",
    "register_primitive",
    "unpatch",
]

_MODULES = {
    "Architect": "fastdarts.bilevel.architect",
    "MixedOp": "fastdarts.mixed.mixed_op",
    "PatchReport": "fastdarts.mixed.patching",
    "patch": "fastdarts.mixed.patching",
    "unpatch": "fastdarts.mixed.patching",
    "PRIMITIVES": "fastdarts.primitives.table",
    "register_primitive": "fastdarts.primitives.registry",
    "TrainedNetwork": "fastdarts.runs.trained",
    "load": "fastdarts.runs.trained",
    "EvalNetwork": "fastdarts.spaces.darts.discrete",
    "DARTS_V1": "fastdarts.spaces.darts.genotype",
    "DARTS_V2": "fastdarts.spaces.darts.genotype",
    "Genotype": "fastdarts.spaces.darts.genotype",
    "SearchNetwork": "fastdarts.spaces.darts.supernet",
    "__version__": "fastdarts.config.version",
}


if not TYPE_CHECKING:  # with a __getattr__ in sight, mypy would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'fastdarts' has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
