"""A user's own candidate ops."""

import torch
from torch import nn

from fastdarts.primitives.table import CANDIDATES, Candidate, Make

_TRIAL_CHANNELS = 8


def register_primitive(name: str, make: Make) -> None:
    """Add a candidate op of your own to all search spaces that let their ops be chosen.

    It is searched, derived, drawn, trained, exported and resumed under its name like the built-in ops; inside a mixed
    edge its module runs beside the fused ops. A program that reads its results must register it again.

    Args:
        name: as in genotypes: letters, digits and underscores, not taken.
        make: make(C, stride, affine) -> a module from [N, C, H, W] to [N, C, ceil(H / stride), ceil(W / stride)] for
            stride 1 and 2; `affine` says whether its batch norms learn scale and shift (False in a search).

    Raises: ValueError for a bad or taken name, or a module of another output; TypeError if `make` makes no module.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name must be letters, digits and underscores; got {name!r}")
    known = CANDIDATES.get(name)
    if known is not None and known.make is not make:
        raise ValueError(f"name {name!r} is taken by {'an op registered before' if known.make else 'a built-in op'}")
    for stride in (1, 2):
        _try(name, make, stride)
    CANDIDATES[name] = Candidate(name, "own", make=make)


def _try(name: str, make: Make, stride: int) -> None:
    C, size = _TRIAL_CHANNELS, 8
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = make(C, stride, False)
        if not isinstance(module, nn.Module):
            got = type(module).__name__
            raise TypeError(f"{name}: make({C}, {stride}, False) must return a torch.nn.Module; got {got}")
        out = module.train()(torch.randn(2, C, size, size))
    wanted = (2, C, size // stride, size // stride)
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != wanted:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(f"{name}: make({C}, {stride}, False) must map (2, {C}, {size}, {size}) to {wanted}; got {got}")
