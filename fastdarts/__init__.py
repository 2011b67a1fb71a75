"""fastdarts: differentiable architecture search (DARTS) with fused kernels and a verified answer."""

from fastdarts.bilevel import Architect
from fastdarts.eval_network import EvalNetwork
from fastdarts.genotype import DARTS_V1, DARTS_V2, Genotype
from fastdarts.mixed_op import MixedOp
from fastdarts.network import SearchNetwork
from fastdarts.patching import PatchReport, patch, unpatch
from fastdarts.space import PRIMITIVES

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
    "unpatch",
]
