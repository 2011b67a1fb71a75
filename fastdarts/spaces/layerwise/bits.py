"""The bits with which a layer of a chain computes (Wang et al., CVPR 2020, arXiv:2006.08509).

A layer's bits are four digits, "4688": of the weights and inputs of its 1x1 convolutions, then of the weights and
inputs of its depthwise convolution. A layer that is left out has the empty text.
"""

from collections.abc import Sequence

from fastdarts.spaces.layerwise.chain import SKIP, parse_block

BITS = "468"
"""The numbers of bits to choose from."""
ROLES = 4


def allowed(block: str, bits: str) -> bool:
    """Return False for a depthwise convolution of kernel 7 with inputs of 4 bits, as the accelerator has none."""
    return not (parse_block(block)[0] == 7 and bits[3] == "4")


def check_bits(bits: Sequence[str], layers: Sequence[str]) -> None:
    """Raise ValueError unless `bits` has four numbers of bits for each layer that is not left out."""
    if len(bits) != len(layers):
        raise ValueError(f"bits must have a text for each of the {len(layers)} layers; got {len(bits)}")
    for index, (four, name) in enumerate(zip(bits, layers, strict=True)):
        if name == SKIP:
            if four != "":
                raise ValueError(f"bits[{index}] must be empty, as its layer is left out; got {four!r}")
            continue
        if not isinstance(four, str) or len(four) != ROLES or not set(four) <= set(BITS):
            raise ValueError(f"bits[{index}] must be four of the digits {', '.join(BITS)}; got {four!r}")
        if not allowed(name, four):
            raise ValueError(f"bits[{index}] must not be 4 for the inputs of a depthwise kernel of 7; got {four!r}")
