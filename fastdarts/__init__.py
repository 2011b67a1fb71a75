"""fastdarts: differentiable architecture search (DARTS) with fused kernels and a verified answer."""

from fastdarts.bilevel.architect import Architect
from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.mixed.patching import PatchReport, patch, unpatch
from fastdarts.primitives.registry import register_primitive
from fastdarts.primitives.table import PRIMITIVES
from fastdarts.spaces.darts.discrete import EvalNetwork
from fastdarts.spaces.darts.genotype import DARTS_V1, DARTS_V2, Genotype
from fastdarts.spaces.darts.supernet import SearchNetwork

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
    "patch",
    "register_primitive",
    "unpatch",
]
