"""The search network of a chain of layers."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fastdarts.mixed.mix import Mix
from fastdarts.mixed.mixed_op import Backend, check_backend, check_input
from fastdarts.spaces.group import Choice, Group
from fastdarts.spaces.layerwise.architecture import LayerChoices, shape_arguments
from fastdarts.spaces.layerwise.blocks import ConvNorm, DepthwiseSeparable, feature, initialise
from fastdarts.spaces.layerwise.chain import SKIP, Chain
from fastdarts.spaces.layerwise.choice import ChoiceLayer
from fastdarts.spaces.layerwise.discrete import LayerwiseNetwork
from fastdarts.spaces.staged import Handing
from fastdarts.spaces.supernet import Mixes, Supernet


def groups_of(chain: Chain) -> dict[str, Group]:
    """Return a group of the layers that may be left out and one of the others; one group where all are alike.

    Where layers have widths of their own, there are such groups for each number of input channels.
    """
    rows: dict[str, list[tuple[str, ...]]] = {"optional": [], "fixed": []}
    for layer, name in zip(chain.layers(), group_names(chain), strict=True):
        rows.setdefault(name, []).append(layer.choices)
    return {
        name: Group(_title(name), tuple(found), learning=frozenset(found[0]) - {SKIP})
        for name, found in rows.items()
        if found
    }


def group_names(chain: Chain) -> list[str]:
    """Return the name of the group of each layer."""
    layers = chain.layers()
    optional = [SKIP in layer.choices for layer in layers]
    if chain.step is None and len(set(optional)) == 1:
        return ["layers"] * len(layers)
    kinds = ["optional" if may else "fixed" for may in optional]
    if chain.step is None:
        return kinds
    return [f"{kind}_{layer.in_channels}" for kind, layer in zip(kinds, layers, strict=True)]


def _title(name: str) -> str:
    kind, _, channels = name.partition("_")
    title = {"layers": "layers", "optional": "layers that may be left out", "fixed": "layers that stay"}[kind]
    return f"{title}, {channels} channels" if channels else title


class LayerwiseSupernet(Supernet):
    """A chain whose layers mix their candidate blocks (Cai et al., ICLR 2019; Wu et al., CVPR 2019).

    Args:
        space: the name that the found architectures carry.
        chain: widths, depths, strides and candidates, before `C` and `layers`.
        C: channels of the stem; all widths go in proportion.
        num_classes: size of the logits.
        layers: most layers of a stage.
        in_channels: channels of the images.
        ends: channels that each stage puts out in place of its width, not scaled with `C`: those of feature maps that
            the stages learn (`fastdarts.spaces.staged`); None for the widths. The found architectures have the widths.
        backend: "reference" keeps the memory format of the images and runs torch's own modules; others run
            channels-last, and where a layer mixes several blocks in train mode, one operator on a CPU.
    """

    def __init__(
        self,
        space: str,
        chain: Chain,
        C: int,
        num_classes: int,
        layers: int,
        in_channels: int,
        backend: Backend = "auto",
        ends: Sequence[int] | None = None,
    ) -> None:
        for name, value in {"C": C, "num_classes": num_classes, "layers": layers, "in_channels": in_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")
        check_backend(backend)
        chain = chain.shortened(layers)
        super().__init__(groups_of(chain))
        self.space = space
        self.shape = shape_arguments(space, chain)
        """Arguments of the found architectures that differ from the space's own."""
        self.in_channels = in_channels
        self.num_classes = num_classes
        self._stages = [layer.stage for layer in chain.layers()]
        self._group_names = group_names(chain)
        self._skips = chain.skips
        self.backend = backend
        chain = chain.scaled(C)
        if ends is not None:
            chain = chain.ending(ends)
        self.handing: Handing | None = None
        self.stem = ConvNorm(in_channels, chain.stem, 3, chain.stem_stride, chain.activation, chain.eps)
        self.fixed = nn.Identity() if chain.fixed is None else DepthwiseSeparable(chain)
        self.layers = nn.ModuleList(self._make_layers(chain))
        self.head = ConvNorm(chain.layers()[-1].width, chain.head, 1, 1, chain.activation, chain.eps)
        self.feature = feature(chain)
        self.classifier = nn.Linear(chain.feature or chain.head, num_classes)
        initialise(self)
        self.make_alphas()

    def _make_layers(self, chain: Chain) -> Iterable[ChoiceLayer]:
        return [ChoiceLayer(layer, chain, self.backend != "reference") for layer in chain.layers()]

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits [N, num_classes] from images [N, in_channels, H, W]."""
        check_input(x, self.in_channels)
        if self.backend != "reference":
            x = x.contiguous(memory_format=torch.channels_last)
        mixes = self.op_weights()
        x = self.begin(x)
        for at, ((group, row), layer) in enumerate(zip(self.rows(), self.layers, strict=True)):
            mix = mixes[group]
            active = None if mix.active is None else mix.active[row]
            x = layer(x, mix.weights[row], active, () if mix.probed is None else mix.probed[row])
            if mix.added is not None:
                x = x + mix.added[row].to(x.dtype)
            stage = self._stages[at]
            if self.handing is not None and stage not in self._stages[at + 1 :]:
                x = self.handing(stage, x)
        logits: Tensor = self.classifier(self.feature(self.head(x).mean((2, 3), keepdim=True)).flatten(1))
        return logits

    def begin(self, x: Tensor) -> Tensor:
        """Compute what the first stage reads [N, C', H', W'] from images [N, in_channels, H, W]."""
        begun: Tensor = self.fixed(self.stem(x))
        return begun

    def stages(self) -> list[list[ChoiceLayer]]:
        """Return the layers of each stage."""
        pairs = list(zip(self._stages, self._layers(), strict=True))
        return [[layer for of, layer in pairs if of == stage] for stage in sorted(set(self._stages))]

    def mixed_ops(self, group: str) -> list[list[ChoiceLayer]]:
        """Return the layers of a group, in the order of its rows."""
        return [[layer for (name, _), layer in zip(self.rows(), self._layers(), strict=True) if name == group]]

    @property
    def choices(self) -> list[tuple[str, ...]]:
        """Return the names of the choices of each layer."""
        return [layer.primitives for layer in self._layers()]

    def _layers(self) -> list[ChoiceLayer]:
        return list(self.layers)  # type: ignore[arg-type]

    def derive(self, scores: Mapping[str, Tensor], choice: Choice = Choice()) -> LayerChoices:  # noqa: B008 - frozen
        """Return the strongest choice of each layer, ties to the first.

        Args:
            scores: [rows, choices] of each group.
            choice: `max_skips` replaces the weakest left-out layers by their strongest block; the rest has no meaning
                here.
        """
        ranked = {group: choice.ranked(group, score).tolist() for group, score in scores.items()}
        rows = [ranked[group][row] for group, row in self.rows()]
        names = [self._strongest(row, at) for at, row in enumerate(rows)]
        skipped = [at for at, name in enumerate(names) if name == SKIP]
        if choice.max_skips is not None and len(skipped) > choice.max_skips:
            skipped.sort(key=lambda at: max(rows[at]))
            for at in skipped[: len(skipped) - choice.max_skips]:
                names[at] = self._strongest(rows[at], at, SKIP)
        return self.architecture(names)

    def architecture(self, names: Sequence[str], bits: Sequence[str] = ()) -> LayerChoices:
        """Return the architecture of a choice for each layer; left-out layers move to their stage's end if need be.

        Args:
            names: the choices.
            bits: of each layer, none for floats.
        """
        if self._skips == "last":
            order = sorted(range(len(names)), key=lambda at: (self._stages[at], names[at] == SKIP))
            names, bits = [names[at] for at in order], [bits[at] for at in order] if bits else ()
        return LayerChoices(self.space, tuple(names), bits=tuple(bits), **self.shape)

    def mixes_of(self, architecture: LayerChoices) -> Mixes:
        """Return op weights with which this network computes an architecture; one choice a layer runs."""
        columns: dict[str, list[int]] = {group: [] for group in self.groups}
        for (group, _), layer, name in zip(self.rows(), self._layers(), architecture.layers, strict=True):
            columns[group].append(layer.primitives.index(name))
        return {
            group: Mix(torch.eye(self.groups[group].shape[1])[row].to(self.alphas[group]), [[c] for c in row])
            for group, row in columns.items()
        }

    def random(self, generator: torch.Generator, max_skips: int | None = None) -> LayerChoices:
        """Draw an architecture uniformly; with `max_skips`, among those that leave out so many layers or fewer."""
        while True:
            rows = [self.groups[group].ops[row] for group, row in self.rows()]
            names = [row[int(torch.randint(len(row), (), generator=generator))] for row in rows]
            if max_skips is None or names.count(SKIP) <= max_skips:
                return self.architecture(names)

    @torch.no_grad()
    def cut(self, architecture: LayerChoices) -> LayerwiseNetwork:
        """Return the network of an architecture with copies of the weights and buffers by which this one computes it.

        In eval mode, in the same memory format, its logits have the same bits. One of few bits is to be calibrated.
        """
        network = LayerwiseNetwork(
            architecture.in_floats(), self.stem.conv.out_channels, self.num_classes, self.in_channels
        )
        network = network.to(self.classifier.weight)  # of this device and dtype, before weights are copied
        blocks = [block for stage in network.blocks for block in stage]  # type: ignore[attr-defined]
        parts: list[tuple[nn.Module, Mapping[str, Tensor]]] = [
            (network.conv_stem, self.stem.conv.state_dict()),
            (network.bn1, self.stem.bn1.state_dict()),
            (network.conv_head, self.head.conv.state_dict()),
            (network.bn2, self.head.bn1.state_dict()),
            (network.feature, self.feature.state_dict()),
            (network.classifier, self.classifier.state_dict()),
        ]
        if isinstance(self.fixed, DepthwiseSeparable):
            parts.append((blocks.pop(0), self.fixed.state_dict()))
        for layer, name in zip(self._layers(), architecture.layers, strict=True):
            if not (name == SKIP and layer.keeps_shape):
                parts.append((blocks.pop(0), layer.state_of(layer.primitives.index(name))))
        for module, state in parts:
            module.load_state_dict(state)
        if architecture.bits:
            network.quantise(architecture)
        return network.to(self.classifier.weight)

    def rows(self) -> list[tuple[str, int]]:
        """Return group and row of each layer."""
        return [(group, self._group_names[:at].count(group)) for at, group in enumerate(self._group_names)]

    def _strongest(self, scores: list[float], layer: int, but: str = "") -> str:
        names = self._layers()[layer].primitives
        columns = [column for column, name in enumerate(names) if name != but]
        return names[max(columns, key=scores.__getitem__)]
