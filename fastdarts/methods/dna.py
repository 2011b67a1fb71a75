"""DNA: stages learn a teacher's feature maps, each by itself (Li et al., CVPR 2020, arXiv:1911.13053).

The search network and a teacher, a trained classifier, are cut into as many stages. Stage i reads the teacher's map of
stage i - 1 and learns the teacher's map i, of which it has the channels; its loss is the mean squared error over the
variance of the map. A step draws one path. As stages exchange nothing, all are trained in one step on one pass of the
teacher. At the end every path of every stage is scored by its relative error, mean |student - teacher| over the map's
standard deviation, with batch norms of its own, and the combination of least summed error under the cost is found
exactly.

Differences from the paper and the authors' code: they train stages one after another or on several machines, with a
rate for each (0.002 for the first and the last, else 0.005), and their code leaves the variance out of the loss. Their
teacher is EfficientNet-B7 with its trained weights. Where the sides of maps differ from those of the student, the
teacher's are averaged to these. Head and classifier learn the labels from the teacher's last map, which the authors
leave out; they have no part in the choice. Depth is not searched: theirs is chosen among several search networks.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import product
from statistics import mean
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.optim import Adam, Optimizer

from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.statistics import average_statistics, kept_statistics
from fastdarts.bilevel.step import SearchStep, TrainPass
from fastdarts.bilevel.sync_norm import synchronise
from fastdarts.config.search_options import SearchOptions
from fastdarts.data.images import in_order
from fastdarts.data.share import weight_of
from fastdarts.methods import traversal
from fastdarts.methods.method import MethodOptions, Settings, hyper, search_network
from fastdarts.methods.one_shot import SinglePath
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.scored import Scored, best_within
from fastdarts.methods.teachers import Teacher, check_teacher, default_cuts, make_teacher
from fastdarts.spaces.cost import Cost, CostTable
from fastdarts.spaces.space import Feature
from fastdarts.spaces.staged import Staged, StagedSpace, StageLayer
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch, autocast

_FALL = 0.9  # of the rate, from epoch to epoch
_MEMORY = 0.9  # of the moving average of errors


@dataclass(frozen=True, kw_only=True)
class DnaOptions(MethodOptions):
    """Define the teacher and the scoring of paths."""

    teacher: str = hyper("classifier of torchvision.models by name, or a registered one", "efficientnet_b0")
    cuts: str = hyper(
        "modules of the teacher whose outputs the stages learn, in order, with commas between; of efficientnet_b0 to "
        "b7 features.2 to features.7 unless given",
        "",
    )
    weights: str | None = hyper("file of the teacher's state dict, written by torch.save; None: random weights", None)
    smallest: int = hyper("side to which smaller images are enlarged for the teacher", 64, at_least=1)
    batches: int = hyper("validation batches on which each path is scored (the authors' code: 19)", 10, at_least=1)
    recalibrate: int = hyper(
        "training batches over which the batch norms of each path are averaged before it is scored", 1, at_least=1
    )


class Dna(SinglePath):
    """Train stages on a teacher's maps; choose among all paths by their errors."""

    Options = DnaOptions
    settings: ClassVar[Settings] = {
        "order": 1,
        "epochs": 12,
        "cost": "flops",
        "lr": 0.02,
        "lr_min": 0.0,
        "weight_decay": 1e-4,
        "grad_clip": 1e6,  # none: a common norm would tie the stages together
    }
    published: ClassVar[Settings] = {"epochs": 20, "lr": 0.005}
    needs: ClassVar[frozenset[Feature]] = frozenset({"stages"})
    measures_images = True
    compared_by = "by minus the sum of the relative errors of their stages, each with the teacher's maps as input"

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._share = 1.0
        self._learned: list[Tensor] = []
        self._errors: Tensor | None = None

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        options = cls.read_options(config.method_options)
        assert isinstance(options, DnaOptions)
        check_teacher(options.teacher)
        stages, cuts = cast(StagedSpace, cls.space_of(config)).stages, _cuts(options)
        if len(cuts) != stages:
            raise ValueError(
                f"method_options: cuts must name {stages} modules of the teacher, one for each stage of space "
                f"{config.space!r}; got {', '.join(cuts) or 'none'}"
            )

    @cached_property
    def teacher(self) -> Teacher:
        """Build the teacher."""
        network = make_teacher(self.options.teacher, self.options.weights, self.config.seed)
        if self.config.sync_batch_norm:
            synchronise(network, self.ranks)
        return Teacher(network, _cuts(self.options), self.options.smallest)

    def network_arguments(self) -> dict[str, Any]:
        return super().network_arguments() | {"ends": self.teacher.widths}

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        return Adam(network.parameters(), self.config.lr, weight_decay=self.config.weight_decay)

    def learning_rate(self) -> float:
        return max(self.config.lr_min, self.config.lr * _FALL**self.epoch)

    def takes_costs(self, network: Supernet, costs: Cost) -> bool:
        if not isinstance(costs, CostTable):
            raise ValueError("method 'dna' adds up the costs of layers: cost must be flops, params or a table of ops")
        return False

    def weight_gradients(self, step: SearchStep, train: Batch) -> TrainPass:
        network = _staged(search_network(step))
        with autocast(train[0], step.architect.amp_dtype):
            maps = self.teacher.maps(train[0])
        self._share = weight_of(train)

        def hand(stage: int, found: Tensor) -> Tensor:
            wanted = at_sides(maps[stage], found.shape[2:])
            self._learned.append(relative_error(found, wanted, self.ranks))
            return wanted

        network.handing = hand
        try:
            made = step.train_pass(train)
            errors = self._share / self.ranks.size * torch.stack(self._learned).detach()
            (errors,) = self.ranks.sum([errors])
            self._errors = errors if self._errors is None else torch.lerp(errors, self._errors, _MEMORY)
            return made
        finally:
            network.handing, self._learned = None, []

    def weight_penalty(self, outputs: Tensor) -> Tensor | None:
        return self._share * torch.stack(self._learned).sum()

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | ({} if self._errors is None else {"errors": self._errors.tolist()})

    @torch.no_grad()
    def result(self, state: RunningSearch) -> Any:
        """Return the architecture of least summed error within the wanted cost; change nothing of the search."""
        with kept_statistics(state.network):
            errors = list(self._scored(state))
        assert state.costs is None or isinstance(state.costs, CostTable)  # see takes_costs
        self.compared = combined(state.network, errors, state.costs)
        return best_within(self.compared, self.config.cost_target).architecture

    def _scored(self, state: RunningSearch) -> Iterator[list[float]]:
        """Yield the relative errors of all paths of each stage, the last layer's choice changing fastest."""
        network, size = state.network, self.config.batch_size
        staged = _staged(network)
        some = state.first_batches(self.options.batches)
        seen = [images for images, *_ in state.plain_batches(self.options.recalibrate)]
        valid = [state.augment.normalise(images) for images, _ in in_order(some, size)]
        with autocast(seen[0], state.architect.amp_dtype):
            taught = [[self.teacher.maps(images) for images in part] for part in (seen, valid)]
            begun = _in_training(network, staged.begin, seen)
            network.eval()
            inputs = begun, [staged.begin(images) for images in valid]
            for stage, layers in enumerate(staged.stages()):
                stride = math.prod(layer.stride for layer in layers)
                sides = [-(-side // stride) for side in inputs[0][0].shape[2:]]
                wanted = [[at_sides(maps[stage], sides) for maps in part] for part in taught]
                yield path_errors(layers, *inputs, wanted[1])
                inputs = wanted[0], wanted[1]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"errors": self._errors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._errors = state["errors"]


def relative_error(found: Tensor, wanted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Return the mean squared error over the variance of `wanted`, a scalar; both are [N, C, H, W].

    With several ranks the error is that of this rank's rows, the variance that of all.
    """
    return (found.to(wanted.dtype) - wanted).square().mean() / _variance(wanted, ranks)


def _variance(wanted: Tensor, ranks: Ranks) -> Tensor:
    """Return the variance of all numbers of a map [N, C, H, W] on all ranks, in its dtype; 16 + 8 bytes are sent."""
    if ranks.alone:
        return wanted.var(correction=0)
    count, total = ranks.sum([wanted.new_tensor(wanted.numel(), dtype=torch.float64), wanted.sum(dtype=torch.float64)])
    (squares,) = ranks.sum([(wanted - total / count).square().sum(dtype=torch.float64)])
    return (squares / count).to(wanted.dtype)


def relative_distance(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean absolute error over the standard deviation of `wanted`, a scalar; both are [N, C, H, W]."""
    return (found.to(wanted.dtype) - wanted).abs().mean() / wanted.std(correction=0)


def at_sides(shown: Tensor, sides: Sequence[int]) -> Tensor:
    """Return a map [N, C, H, W] averaged, or repeated, to other sides."""
    height, width = sides
    return shown if shown.shape[2:] == (height, width) else adaptive_avg_pool2d(shown, (height, width))


def path_errors(
    layers: Sequence[StageLayer], seen: Sequence[Tensor], valid: Sequence[Tensor], wanted: Sequence[Tensor]
) -> list[float]:
    """Return the mean relative distance of each path, the last layer's choice changing fastest.

    Paths with the same beginning share its passes. Running statistics are overwritten.

    Args:
        layers: of one stage.
        seen: training inputs [N, C, H, W] over which the batch norms of each path are averaged.
        valid: inputs on which it is scored.
        wanted: the maps that it has to put out there.
    """
    if not layers:
        return [mean(float(relative_distance(x, target)) for x, target in zip(valid, wanted, strict=True))]
    layer, errors = layers[0], []
    module = cast(nn.Module, layer)
    gates = torch.eye(len(layer.primitives), dtype=wanted[0].dtype, device=wanted[0].device)
    for column in range(len(layer.primitives)):
        run = partial(layer, weights=gates[column], active=[column])
        made = _in_training(module, run, seen)
        module.eval()
        errors += path_errors(layers[1:], made, [run(x) for x in valid], wanted)
    return errors


def _in_training(module: nn.Module, run: Callable[[Tensor], Tensor], seen: Sequence[Tensor]) -> list[Tensor]:
    """Average the batch norms that `run` reaches in a module over inputs; return the outputs in train mode."""
    made: list[Tensor] = []
    average_statistics(module, lambda batch: made.append(run(batch[0])), ((x,) for x in seen))
    return made


def combined(network: Supernet, errors: Sequence[Sequence[float]], costs: CostTable | None) -> list[Scored]:
    """Return the architectures that no other beats in summed error without a higher cost; without costs the best.

    Args:
        network: the search network.
        errors: of the paths of each stage, the last layer's choice changing fastest.
        costs: costs of all choices.
    """
    group = network.groups["layers"]
    prices = torch.zeros(group.shape, dtype=torch.float64) if costs is None else costs.costs("layers", group)
    rows, stages, paths, start = prices.tolist(), [], [], 0
    for of, scores in zip(_staged(network).stages(), errors, strict=True):
        own, start = rows[start : start + len(of)], start + len(of)
        paths.append(list(product(*(range(len(layer.primitives)) for layer in of))))
        stages.append(list(zip(scores, map(math.fsum, product(*own)), strict=True)))
    found = []
    for one in traversal.front(stages):
        columns = [column for choices, at in zip(paths, one.paths, strict=True) for column in choices[at]]
        picked = nn.functional.one_hot(torch.tensor(columns), group.shape[1]).float()
        cost = None if costs is None else one.cost + costs.constant
        found.append(Scored(network.derive({"layers": picked}), -one.error, cost))
    return found


def _cuts(options: DnaOptions) -> tuple[str, ...]:
    return tuple(cut.strip() for cut in options.cuts.split(",") if cut.strip()) or default_cuts(options.teacher)


def _staged(network: Supernet) -> Staged:
    return cast(Staged, network)
