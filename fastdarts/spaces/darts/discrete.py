"""Build the discrete network of a genotype, which is trained from scratch after a search (DARTS, section 3.2).

Structure and `state_dict` names are those of the original evaluation code, so its checkpoints load with `strict=True`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdarts.mixed import eval_cell, fused
from fastdarts.mixed.mixed_op import Backend, check_backend, check_input, usable
from fastdarts.primitives.modules import FactorizedReduce, ReLUConvBN, build
from fastdarts.primitives.table import candidate
from fastdarts.spaces.darts.cell_genotypes import CellGenotypes
from fastdarts.spaces.darts.genotype import FoundCell, Genotype
from fastdarts.spaces.network import DiscreteNetwork, Head, Stem

STEMS = ("cifar", "imagenet")


class EvalNetwork(DiscreteNetwork):
    """Stack `layers` discrete cells with `C` initial channels; cells L//3 and 2L//3 halve the image and double C.

    Args:
        genotype: the two cells, with any number of ops per node and any concat; or a cell for each place.
        C: channels of the first cell's nodes, even with stem "imagenet", which halves them. The paper uses 36 for
            CIFAR-10 and 48 for ImageNet.
        num_classes: number of outputs of the classifiers.
        layers: number of cells; None for 20, the paper's for CIFAR-10 (14 for ImageNet), or for the number of cells in
            `genotype` if each place has its own.
        auxiliary: attach a second classifier after cell 2L//3, used in train mode only.
        drop_path_prob: in train mode, the probability of dropping an op's output for one sample; identities are never
            dropped. A schedule may assign the attribute of the same name: it is a tensor on the network's device, so
            that a new value neither recompiles nor recaptures anything.
        in_channels: channels of the images.
        stem: "cifar" keeps the image size; "imagenet" divides it by eight before the second input of the first cell;
            a function make(in_channels, 3 * C) builds other first layers.
        head: make(channels, num_classes) builds other last layers instead of global pooling and a linear classifier.
            Pass auxiliary=False if the output is not logits [N, num_classes].
        backend: how cells are computed, see `MixedOp`.

    Raises:
        ValueError: an argument or the genotype does not describe a network.
    """

    _drop_path_prob: Tensor

    def __init__(
        self,
        genotype: Genotype | CellGenotypes,
        C: int = 36,
        num_classes: int = 10,
        layers: int | None = None,
        auxiliary: bool = True,
        drop_path_prob: float = 0.2,
        in_channels: int = 3,
        stem: str | Stem = "cifar",
        head: Head | None = None,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        check_backend(backend)
        if not callable(stem) and stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, or make(in_channels, channels); got {stem!r}")
        genotype = genotype if isinstance(genotype, CellGenotypes) else Genotype.of(genotype)
        layers = depth_of(genotype, layers)
        for name, value in {"C": C, "num_classes": num_classes, "layers": layers, "in_channels": in_channels}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}")

        self.register_buffer("_drop_path_prob", torch.zeros(()), persistent=False)
        self.drop_path_prob = drop_path_prob
        self.in_channels = in_channels
        self.backend = backend
        reduction_prev = stem == "imagenet"
        if callable(stem):
            self.stem = stem(in_channels, 3 * C)
            C_prev_prev = C_prev = 3 * C
        elif stem == "cifar":
            self.stem = nn.Sequential(nn.Conv2d(in_channels, 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C))
            C_prev_prev = C_prev = 3 * C
        else:
            self.stem0 = nn.Sequential(
                nn.Conv2d(in_channels, C // 2, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(C // 2),
                nn.ReLU(),
                nn.Conv2d(C // 2, C, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(C),
            )
            self.stem1 = nn.Sequential(
                nn.ReLU(), nn.Conv2d(C, C, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(C)
            )
            C_prev_prev = C_prev = C
        self.cells = nn.ModuleList()
        self._auxiliary_index = 2 * layers // 3
        for index in range(layers):
            reduction = index in (layers // 3, 2 * layers // 3)
            if reduction:
                C *= 2
            found = genotype.cell(index, reduction)
            cell = EvalCell(found, C_prev_prev, C_prev, C, reduction, reduction_prev, backend)
            self.cells.append(cell)
            reduction_prev = reduction
            C_prev_prev, C_prev = C_prev, cell.out_channels
            if auxiliary and index == self._auxiliary_index:
                self.auxiliary_head = AuxiliaryHead(C_prev, num_classes, "cifar" if callable(stem) else stem)
        if head is None:
            self.global_pooling = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(C_prev, num_classes)
        else:
            self.head = head(C_prev, num_classes)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits [N, num_classes] (or the output of `head`) from images x [N, in_channels, H, W].

        Returns: the logits; in train mode with `auxiliary`, a tuple of them and the auxiliary head's logits.
        """
        check_input(x, self.in_channels)
        if self.backend != "reference":
            x = x.contiguous(memory_format=torch.channels_last)  # the kernels' layout, once for the whole network
        if hasattr(self, "stem"):
            s0 = s1 = self.stem(x)
        else:
            s0 = self.stem0(x)
            s1 = self.stem1(s0)
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1, self._drop_path_prob)
            if self.training and index == self._auxiliary_index and hasattr(self, "auxiliary_head"):
                auxiliary_logits = self.auxiliary_head(s1)
        logits: Tensor
        if hasattr(self, "head"):
            logits = self.head(s1)
        else:
            logits = self.classifier(self.global_pooling(s1).flatten(1))
        return logits if auxiliary_logits is None else (logits, auxiliary_logits)

    @property  # type: ignore[override]
    def drop_path_prob(self) -> Tensor:
        """Return the probability of dropping an op's output for one sample, a scalar on the network's device."""
        return self._drop_path_prob

    @drop_path_prob.setter
    def drop_path_prob(self, probability: float | Tensor) -> None:
        if isinstance(probability, Tensor):
            self._drop_path_prob.copy_(probability)
        elif 0 <= probability < 1:
            self._drop_path_prob.fill_(probability)
        else:
            raise ValueError(f"drop_path_prob must be in [0, 1); got {probability}")


class EvalCell(nn.Module):
    """Compute a discrete cell: each node sums its ops in `found`, the output concatenates the concat's states."""

    _droppable: Tensor
    _weights: Tensor

    def __init__(
        self,
        found: FoundCell,
        C_prev_prev: int,
        C_prev: int,
        C: int,
        reduction: bool,
        reduction_prev: bool,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.backend = backend
        self.preprocess0: nn.Module = FactorizedReduce(C_prev_prev, C) if reduction_prev else ReLUConvBN(C_prev_prev, C)
        self.preprocess1 = ReLUConvBN(C_prev, C)
        nodes, concat = found
        self.out_channels = len(concat) * C
        existing = [0, 1, *(state for state, node in enumerate(nodes, start=2) if node)]
        number = {state: i for i, state in enumerate(existing)}  # a node without ops does not exist
        self._nodes = len(existing) - 2
        self._concat = tuple(number[state] for state in concat)
        self._ends = tuple(
            (number[source], number[state]) for state, node in enumerate(nodes, start=2) for _, source in node
        )
        names = [name for node in nodes for name, _ in node]
        self._strides = tuple(2 if reduction and source < 2 else 1 for source, _ in self._ends)
        self._ops = nn.ModuleList(map(build, names, [C] * len(names), self._strides))
        # In a search, where the kernels' names come from, a pool has a batch norm unless it is "bare".
        self._primitives = tuple(f"bare_{name}" if candidate(name).is_pool else name for name in names)
        self._built = tuple(map(fused.signature, self._ops))
        self._preprocessing_built = fused.signature(self.preprocess0), fused.signature(self.preprocess1)
        self._packed: eval_cell.Packed | None = None
        droppable = torch.tensor([float(not isinstance(op, nn.Identity)) for op in self._ops])
        self.register_buffer("_droppable", droppable[:, None], persistent=False)
        self.register_buffer("_weights", torch.ones(len(names), 1), persistent=False)

    def forward(self, s0: Tensor, s1: Tensor, drop_path_prob: float | Tensor = 0.0) -> Tensor:
        """Compute the output from those of the two cells before; ops are dropped in train mode only."""
        edges = [
            fused.read_op(*one) for one in zip(self._ops, self._primitives, self._strides, self._built, strict=True)
        ]
        read = usable(edges, s0, self.backend)
        if read is not None and not self.training:
            preprocessing = eval_cell.Preprocessing((self.preprocess0, self.preprocess1), self._preprocessing_built)
            made = eval_cell.run(read, self._ends, preprocessing, (s0, s1), self._concat, self._packed)
            if made is not None:
                out, self._packed = made
                return out
        before = (self.preprocess0, s0), (self.preprocess1, s1)
        if read is None:
            inputs = [module(x) for module, x in before]
        else:
            inputs = [
                fused.preprocess(*one, built) for one, built in zip(before, self._preprocessing_built, strict=True)
            ]
        factors = drop_path(drop_path_prob * self._droppable, len(s0)) if self.training else None
        if read is None:
            states = self._plain_states(inputs, factors)
        else:
            nodes = fused.mixed_nodes(read, self._ends, inputs, self._weights, factors=factors, recompute=True)
            if self._concat == tuple(range(2, 2 + self._nodes)):
                return nodes
            states = [*inputs, *nodes.chunk(self._nodes, dim=1)]
        return torch.cat([states[index] for index in self._concat], dim=1)

    def train(self, mode: bool = True) -> "EvalCell":
        """Set the mode; weights packed for eval mode are let go, since steps will change them."""
        self._packed = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_packed": None}

    def _plain_states(self, inputs: list[Tensor], factors: Tensor | None) -> list[Tensor]:
        """Compute all states by the plain modules."""
        states = list(inputs)
        for state in range(2, 2 + self._nodes):
            terms = []
            for e in [e for e, (_, target) in enumerate(self._ends) if target == state]:
                term = self._ops[e](states[self._ends[e][0]])
                if factors is not None and not isinstance(self._ops[e], nn.Identity):
                    term = term * factors[e].to(term.dtype)[:, None, None, None]
                terms.append(term)
            states.append(sum(terms[1:], start=terms[0]))
        return states


def depth_of(genotype: Genotype | CellGenotypes, layers: int | None) -> int:
    """Return the number of cells of a genotype's network; `layers` or 20 where it leaves the choice.

    Raises: ValueError for another number than the genotype has.
    """
    if not isinstance(genotype, CellGenotypes):
        return 20 if layers is None else layers
    if layers not in (None, len(genotype.cells)):
        raise ValueError(f"layers must be {len(genotype.cells)}, the number of the genotype's cells; got {layers}")
    return len(genotype.cells)


def drop_path(probability: Tensor, N: int) -> Tensor:
    """Draw factors for the outputs of ops: 0 with a probability, else what leaves the expectation unchanged.

    Source: Larsson et al., FractalNet, ICLR 2017, section 3. The draws depend on the generator alone.

    Args:
        probability: of dropping each op for one sample, [ops, 1].
        N: samples.
    Returns: [ops, N].
    """
    drawn = torch.rand(len(probability), N, device=probability.device, dtype=torch.float32)
    return (drawn >= probability) / (1 - probability)


class AuxiliaryHead(nn.Module):
    """Compute the second classifier's logits from a cell's output [N, C, H, W] of any size.

    It equals the original for the sizes that the original supports, whose pooling gives 2x2: 8x8 on CIFAR-10 and 7x7 on
    ImageNet.
    """

    def __init__(self, C: int, num_classes: int, stem: str) -> None:
        super().__init__()
        # The original's ImageNet head lacks the second batch norm: a typo, kept there for the published results.
        second_norm = [nn.BatchNorm2d(768)] if stem == "cifar" else []
        self.features = nn.Sequential(
            nn.ReLU(),  # not in place: the next cell reads the same tensor
            AuxiliaryPool(stride=3 if stem == "cifar" else 2),
            nn.Conv2d(C, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *second_norm,
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class AuxiliaryPool(nn.Module):
    """Apply 5x5 average pooling as the original does, then average the quarters: the next convolution needs 2x2."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) >= 5:
            x = F.avg_pool2d(x, 5, stride=self.stride)
        return x if x.shape[-2:] == (2, 2) else quarter_means(x)


def quarter_means(x: Tensor) -> Tensor:
    """Average the quarters of x: [N, C, H, W] -> [N, C, 2, 2].

    Equals `adaptive_avg_pool2d`, whose gradient on CUDA is summed in no fixed order.
    """
    rows, columns = ((slice(-(-side // 2)), slice(side // 2, side)) for side in x.shape[-2:])
    return torch.stack([x[:, :, r, c].mean((2, 3)) for r in rows for c in columns], 2).unflatten(2, (2, 2))


def count_parameters(network: nn.Module) -> int:
    """Count the weights of a network without its auxiliary head, which is used in training only."""
    return sum(p.numel() for name, p in network.named_parameters() if not name.startswith("auxiliary_head."))


def count_multiply_adds(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Count the multiply-adds of convolutions and linear layers for one image of `image_shape` (C, H, W) in eval mode.

    The count is computed from shapes on the meta device.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which takes 0.2 s

    shadow = copy.deepcopy(network).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *image_shape, device="meta"))
    return int(counter.get_total_flops()) // 2
