"""Published networks of the layer-wise spaces."""

from fastdarts.spaces.layerwise.architecture import LayerChoices


def _fbnet(text: str, head: int | None = None) -> LayerChoices:
    names = {"k3e1": "k3 e1", "k5e1": "k5 e1", "k3e1g2": "k3 e1 g2", "k5e1g2": "k5 e1 g2", "skip": "skip"}
    names |= {f"k{k}e{e}": f"k{k} e{e}" for k in (3, 5) for e in (3, 6)}
    return LayerChoices("fbnet", tuple(names[name] for name in text.replace("|", " ").split()), head=head)


def _fairnas(text: str) -> LayerChoices:
    """Read expansion and kernel of each layer, "37" for expansion 3 and kernel 7."""
    return LayerChoices("fairnas", tuple(f"k{pair[1]} e{pair[0]}" for pair in text.split()))


PUBLISHED = {
    # Wu et al., CVPR 2019, arXiv:1812.03443; layers of facebookresearch/mobile-vision
    "FBNet-A": _fbnet(
        "skip | k3e3 k3e1 skip skip | k5e6 k3e3 k5e1 k3e3 | k5e6 k5e3 k5e1g2 k5e6 | k3e6 k5e1g2 k5e3 k3e1g2 "
        "| k5e6 k5e6 k5e3 k5e6 | k5e6",
        head=1504,
    ),
    "FBNet-B": _fbnet(
        "k3e1 | k3e6 k5e1 k3e1 k3e1 | k5e6 k5e3 k3e6 k5e6 | k5e6 k5e6 skip k5e3 | k5e6 k3e1 k5e1 k5e3 "
        "| k5e6 k5e1 k5e6 k5e6 | k3e6"
    ),
    "FBNet-C": _fbnet(
        "k3e1 | k3e6 skip k3e1 k3e1 | k5e6 k5e3 k5e6 k3e6 | k5e6 k5e3 k5e6 k5e6 | k5e6 k5e6 k5e6 k5e3 "
        "| k5e6 k5e6 k5e6 k5e6 | k3e6"
    ),
    # Chu et al., ICCV 2021, arXiv:1907.01845; layers of xiaomi-automl/FairNAS
    "FairNAS-A": _fairnas("37 33 37 63 67 33 33 67 67 35 63 35 35 63 63 67 63 67 65"),
    "FairNAS-B": _fairnas("35 33 35 33 63 35 37 33 63 35 33 63 37 33 67 65 67 63 65"),
    "FairNAS-C": _fairnas("35 33 37 33 33 33 33 33 33 63 33 33 33 33 67 67 63 63 65"),
}
"""Networks by name."""
