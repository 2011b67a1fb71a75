"""Find search methods by name: DARTS and its successors, each a short file on the same cells, kernels and steps.

`find` returns a method's class; docs/methods.md explains how to write one.
"""

import importlib
from typing import TYPE_CHECKING

from fastdarts.config.names import did_you_mean

if TYPE_CHECKING:
    from fastdarts.methods.method import Method

_CLASSES = {
    "darts": "darts:Darts",
    "daas": "daas:Daas",
    "pc-darts": "pc_darts:PCDarts",
    "gdas": "gdas:Gdas",
    "snas": "snas:Snas",
    "fairdarts": "fairdarts:FairDarts",
    "single-level": "single_level:SingleLevel",
    "random": "random:Random",
    "darts-plus": "darts_plus:DartsPlus",
    "darts-minus": "darts_minus:DartsMinus",
    "sdarts-rs": "sdarts_rs:SdartsRs",
    "sdarts-adv": "sdarts_adv:SdartsAdv",
    "p-darts": "p_darts:PDarts",
    "robustdarts": "robustdarts:RobustDarts",
    "milenas": "milenas:MiLeNAS",
    "proxyless": "proxyless:Proxyless",
    "fbnet": "fbnet:FBNet",
    "fairnas": "fairnas:FairNAS",
    "drnas": "drnas:Drnas",
    "drnas-progressive": "drnas_progressive:DrnasProgressive",
    "sgas": "sgas:Sgas",
    "oles": "oles:Oles",
    "beta-darts": "beta_darts:BetaDarts",
    "lambda-darts": "lambda_darts:LambdaDarts",
    "gold-nas": "gold_nas:GoldNas",
    "ftt-nas": "ftt_nas:FttNas",
    "reinmax": "reinmax:ReinMax",
    "ofa": "ofa:Ofa",
    "dna": "dna:Dna",
}
NAMES = tuple(_CLASSES)


def find(name: str) -> "type[Method]":
    """Return the method called `name`, the class at "module:Class", or the composition of several with + between.

    Raises:
        ValueError: `name` is unknown, its class cannot be imported or is not a subclass of Method, or parts cannot go
            together.
    """
    if "+" in name:
        from fastdarts.methods.composition import compose

        return compose(tuple((part, find(part)) for part in name.split("+")))
    from fastdarts.methods.method import Method  # imported here, so that NAMES can be read without torch

    place = f"fastdarts.methods.{_CLASSES[name]}" if name in _CLASSES else name
    module, _, attribute = place.partition(":")
    if not attribute:
        hint = did_you_mean(name, NAMES)
        raise ValueError(f"method must be one of {', '.join(NAMES)}, or MODULE:CLASS of your own; got {name!r}{hint}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ValueError(f"method {name!r} is not a subclass of fastdarts.methods.method.Method")
    return found
