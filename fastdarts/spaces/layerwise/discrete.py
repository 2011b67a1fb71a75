"""The network of one choice a layer, with timm's parameter names."""

from itertools import groupby

from torch import Tensor, nn
from torch.nn.functional import dropout

from fastdarts.mixed.mixed_op import check_input
from fastdarts.spaces.layerwise.architecture import LayerChoices
from fastdarts.spaces.layerwise.blocks import ACTIVATIONS, DepthwiseSeparable, feature, initialise
from fastdarts.spaces.layerwise.chain import SKIP, Chain, Excite, Layer, parse_block
from fastdarts.spaces.layerwise.choice import block
from fastdarts.spaces.layerwise.quantised import quantise_network
from fastdarts.spaces.network import DiscreteNetwork


class LayerwiseNetwork(DiscreteNetwork):
    """Stem, the chosen blocks, head, global mean and classifier.

    The state dict has the names of timm's EfficientNet; `block_strings` describes the same network to timm. With bits,
    convolutions and classifier compute with these and have ranges besides their weights, see `Quantiser`.

    Args:
        architecture: the choice of each layer.
        C: channels of the stem; all widths go in proportion. None takes the space's own.
        num_classes: size of the logits.
        in_channels: channels of the images.
    """

    def __init__(
        self, architecture: LayerChoices, C: int | None = None, num_classes: int = 1000, in_channels: int = 3
    ) -> None:
        super().__init__()
        for name, value in {"C": C, "num_classes": num_classes, "in_channels": in_channels}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        own = architecture.chain()
        chain = own.scaled(C or own.stem)
        self.in_channels = in_channels
        self.conv_stem = nn.Conv2d(in_channels, chain.stem, 3, chain.stem_stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(chain.stem, chain.eps)
        self.act = ACTIVATIONS[chain.activation]()
        stages = [
            [block(layer, name, chain, layer.keeps_shape) for layer, name in stage]
            for stage in _stages(architecture, chain)
        ]
        if chain.fixed is not None:
            stages.insert(0, [DepthwiseSeparable(chain)])
        self.blocks = nn.Sequential(*(nn.Sequential(*stage) for stage in stages))
        self.conv_head = nn.Conv2d(chain.stages[-1].width, chain.head, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(chain.head, chain.eps)
        self.dropout = chain.dropout
        self.feature = feature(chain)
        self.classifier = nn.Linear(chain.feature or chain.head, num_classes)
        initialise(self)
        if architecture.bits:
            self.quantise(architecture)

    def quantise(self, architecture: LayerChoices) -> None:
        """Compute with the bits of an architecture from now on; its layers must be those of this network."""
        chain = architecture.chain()
        bits = [] if chain.fixed is None else [""]
        for layer, name, four in zip(chain.layers(), architecture.layers, architecture.bits, strict=True):
            if not (name == SKIP and layer.keeps_shape):
                bits.append(four)
        quantise_network(self, [block for stage in self.blocks for block in stage], bits)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, num_classes] from images [N, in_channels, H, W]."""
        check_input(x, self.in_channels)
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        x = self.act(self.bn2(self.conv_head(x))).mean((2, 3), keepdim=True)
        logits: Tensor = self.classifier(dropout(self.feature(x).flatten(1), self.dropout, self.training))
        return logits


def block_strings(architecture: LayerChoices) -> list[list[str]]:
    """Describe the stages of a network of the space's own widths in the strings from which timm builds an EfficientNet.

    Raises: ValueError for a block with groups, of which timm has none, and for a chain that is no EfficientNet.
    """
    chain = architecture.chain()
    if chain.feature is not None:
        raise ValueError(f"timm's EfficientNet has no layer behind pooling, as chains of space {architecture.space!r}")
    stages = [[_block_string(layer, name) for layer, name in stage] for stage in _stages(architecture, chain)]
    if chain.fixed is None:
        return stages
    return [[f"ds_r1_k3_s1_c{chain.fixed}{_excite_string(chain.fixed_excites)}_noskip"], *stages]


def _block_string(layer: Layer, name: str) -> str:
    if name == SKIP:
        return f"cn_r1_k1_s{layer.stride}_c{layer.width}"
    kernel, expansion, groups = parse_block(name)
    if groups > 1:
        raise ValueError(f"timm has no block with groups; got {name!r}")
    return f"ir_r1_k{kernel}_s{layer.stride}_e{float(expansion):g}_c{layer.width}{_excite_string(layer.excites)}"


def _excite_string(excites: Excite | None) -> str:
    """Return timm's words for squeeze and excitation as in EfficientNet, the kind that it divides by."""
    return "_se0.25" if excites == "efficient" else ""


def _stages(architecture: LayerChoices, chain: Chain) -> list[list[tuple[Layer, str]]]:
    """Return the layers that are built with their choices, by stage; a stage without layers is left out."""
    built = [
        (layer, name)
        for layer, name in zip(chain.layers(), architecture.layers, strict=True)
        if not (name == SKIP and layer.keeps_shape)
    ]
    return [list(stage) for _, stage in groupby(built, key=lambda pair: pair[0].stage)]
