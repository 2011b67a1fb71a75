"""Hold all that changes during a search: method, network, optimizers, data order, position, sums of the epoch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.clipping import VirtualClip
from fastdarts.bilevel.ranks import ALONE, Ranks
from fastdarts.bilevel.statistics import average_statistics
from fastdarts.bilevel.step import SearchStep
from fastdarts.bilevel.sync_norm import synchronise
from fastdarts.data import BatchStream, ImageSet
from fastdarts.data.augment import Augment
from fastdarts.data.images import in_order
from fastdarts.data.modern import auto_augment
from fastdarts.methods import find
from fastdarts.methods.cost import CostTerm
from fastdarts.methods.darts_pt import DartsPt
from fastdarts.methods.method import Method
from fastdarts.methods.widening import carry_over
from fastdarts.mixed.mix import Mix
from fastdarts.primitives.table import EdgeOps
from fastdarts.runs.costs import cost_table
from fastdarts.runs.images import outputs_for
from fastdarts.runs.local_state import own_random_numbers
from fastdarts.runs.progress import json_number
from fastdarts.runs.search_config import SearchConfig
from fastdarts.runs.state import Draws, Metrics, RunState, Stream
from fastdarts.spaces.cost import Cost
from fastdarts.spaces.network import imagenet_stem
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.classification import Classification, Loss
from fastdarts.tasks.faults import Faults
from fastdarts.tasks.faulty import FaultyClassification
from fastdarts.tasks.task import Batch, Task

_PARTS = {
    "valid_loss": "the loss of the alpha step",
    "alpha_gradient_norm": "the alphas' gradient",
    "train_loss": "the loss of the weight step",
    "gradient_norm": "the weights' gradient",
    "train_accuracy": None,  # NaN without classes
}


class SearchState(RunState):
    """Hold a search as it is between two steps.

    Args:
        config: config as given to `search`.
        weights_half: images of the weight steps, on `device`.
        alphas_half: images of the alpha steps, on `device`, also used to measure the search. May be None for a method
            whose alphas are trained on `weights_half`.
        loss: loss(logits, targets) -> scalar.
        device: device of network and images.
        ranks: the processes that run this search together.
    """

    kind = "search"
    program = "python -m fastdarts.search"
    graph_kinds: ClassVar[int] = 1
    """Number of kinds of batches that keep a CUDA graph."""

    network: Supernet
    costs: Cost | None = None
    """Costs of the space's choices, where the config asks for a cost."""
    validation: Any
    """Images or text of the alpha steps, on which the search is measured, too."""

    def __init__(
        self,
        config: SearchConfig,
        weights_half: ImageSet,
        alphas_half: ImageSet | None,
        loss: Loss,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.method = find(config.method)(config)
        self.method.ranks = ranks
        self._sizes: dict[str, Any] = {
            "C": config.init_channels,
            "num_classes": outputs_for(weights_half),
            "in_channels": weights_half.shape[0],
            **({"stem": imagenet_stem} if config.stem == "imagenet" else {}),
        }
        self.validation = alphas_half
        if config.cost is not None:
            self.costs = cost_table(config, self.method, self._sizes["num_classes"], weights_half.shape)
        augment = Augment(
            weights_half.mean,
            weights_half.std,
            crop_padding=config.crop_padding,
            flip=config.flip,
            cutout=config.cutout,
            generator_seed=config.seed,
            device=device,
        )
        augment.before = auto_augment(config.auto_augment)
        halves = [weights_half] if self.method.level in ("single", "coordinate") else [weights_half, alphas_half]
        streams = [
            BatchStream(
                half,
                config.batch_size,
                seed=2 * config.seed + index,
                drop_last=0 < len(half) % config.batch_size < ranks.size,  # too few for every rank to have one
                rank=ranks.rank,
                ranks=ranks.size,
            )
            for index, half in enumerate(halves)
            if half is not None
        ]
        task = Classification(loss)
        if config.faults is not None:
            task = FaultyClassification(loss, Faults.read(config.faults), config.fault_weight)
        self._start(config, task, device, augment, streams, ranks)

    def _start(
        self,
        config: SearchConfig,
        task: Task,
        device: torch.device,
        augment: Draws,
        streams: Sequence[Stream],
        ranks: Ranks = ALONE,
    ) -> None:
        """Build all that depends on data and task; `method` and the network's sizes are set."""
        torch.manual_seed(config.seed)
        self.config = config
        self.ranks = ranks
        self._task = task
        self._device = device
        self._build()
        super().__init__(config, self.network, augment, streams, dict(_PARTS), ranks)
        self._begin_epoch()
        own_random_numbers(ranks, config.seed)
        self.history: list[dict[str, Tensor]] = [self.architecture()]

    def _build(self) -> None:
        """Build the network, optimizers and step."""
        config, method = self.config, self.method
        self._arguments = method.network_arguments()
        network = method.space.supernet(backend=config.backend, **self._sizes, **self._arguments)
        method.attach(network)
        if config.sync_batch_norm:
            synchronise(network, self.ranks)
        self.network = network.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.cost = None
        if self.costs is not None and not method.takes_costs(self.network, self.costs):
            how = config.cost_form, config.cost_weight, config.cost_target
            self.cost = CostTerm(method, self.network, self.costs, *how)
            method.rewarded = self.cost.rewarded
        self.architect = Architect(
            self.network,
            w_momentum=config.momentum,
            w_weight_decay=config.weight_decay,
            amp_dtype=torch.bfloat16 if config.amp else None,
            penalty=partial(_penalty, method, network, self.cost),  # not self: the cycle would keep GPU memory alive
            grad_clip=method.alpha_grad_clip,
            optimizer=method.arch_optimizer(self.network),
            ranks=self.ranks,
            task=self._task,
            clip=self.virtual_clip(),
            train_weight=method.train_weight,
            keep_weight_gradients=method.keep_weight_gradients,
        )
        self.w_optimizer = method.weight_optimizer(self.network)
        self.search_step = SearchStep(
            self.network,
            self.architect,
            self.w_optimizer,
            order=config.order,
            grad_clip=config.grad_clip,
            cuda_graphs=config.cuda_graphs and config.faults is None,
            rules=method,
            kinds=self.graph_kinds,
        )

    def virtual_clip(self) -> VirtualClip | None:
        """Return how gradients inside the second order are clipped; images: not at all."""
        return None

    def step_rate(self) -> float:
        """Return the learning rate of the weights in the next step."""
        return self.learning_rate()

    def _begin_epoch(self, goes_on: bool = False) -> None:
        """Let the method set all that depends on the epoch; rebuild the network if its arguments have changed.

        `goes_on` tells that the epoch before has just ended: the new network may take over weights.
        """
        self.method.begin_epoch(self.epoch)
        if self.method.network_arguments() != self._arguments:
            before, optimizer = self.network, self.w_optimizer
            self._build()
            if goes_on and self.method.keeps_weights:
                carry_over(before, self.network, optimizer, self.w_optimizer, self.method.generator)
        self.augment.cutout_share = self.method.cutout_share()
        finite = self.method.alphas_move_each_step()  # else there are steps without an alpha step to measure
        for part in ("valid_loss", "alpha_gradient_norm"):
            self._parts[part] = _PARTS[part] if finite else None

    def alphas(self) -> dict[str, Tensor]:
        """Return the alphas [rows, primitives] of each group, on the CPU; -inf where a row does not have the op."""
        network, kept = self.network, self.method.kept or {}
        return {
            name: in_columns(network.alphas[name], group.ops, network.primitives, kept.get(name))
            for name, group in network.groups.items()
        }

    def architecture(self) -> dict[str, Tensor]:
        """Return the arrays that alphas.npz holds of an epoch.

        For each group G these are `G` (as in `alphas`), `weights_G` (op weights, NaN where a row does not have the op),
        and `edges_G` (edge weights) if the method has edge weights.
        """
        network, tables = self.network, self.alphas()
        scores, edges = self.method.scores(network), self.method.edge_weights(network)
        weights = {
            f"weights_{name}": in_columns(scores[name], group.ops, network.primitives, None).masked_fill(
                tables[name].isinf(), math.nan
            )
            for name, group in network.groups.items()
        }
        return tables | weights | {f"edges_{name}": value for name, value in edges.items()}

    def cost_numbers(self, architecture: Any) -> dict[str, float]:
        """Return the cost of an architecture and, where it enters the loss, the expected one of the alphas.

        Empty where no cost is asked for.
        """
        if self.costs is None:
            return {}
        found = {"cost": self.costs.of(self.network, architecture)}
        if self.cost is None:
            return found
        with torch.no_grad():
            return found | {"expected_cost": float(self.cost.expected(self.network))}

    def learning_rate(self) -> float:
        """Return the learning rate of the weights in this epoch."""
        return self.method.learning_rate()

    def train_batches(self, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Run the search step on the weights' batch and, with two streams, the alphas' batch; return its results."""
        decay = self.architect.w_weight_decay = self.method.weight_decay()
        for group in self.w_optimizer.param_groups:
            group["lr"], group["weight_decay"] = self.step_rate(), decay
        rates = self.method.arch_learning_rates()
        for group, rate in zip(self.architect.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        train, valid = batches[0], batches[-1]
        result = self.search_step.step(train, valid)
        return {
            "valid_loss": result.valid_loss,
            "alpha_gradient_norm": result.alpha_gradient_norm,
            "train_loss": result.train_loss,
            "gradient_norm": result.gradient_norm,
            "train_accuracy": result.correct * self.ranks.size / self.size_of(train),
        }

    def under(self, faults: Faults) -> AbstractContextManager[None]:
        """Inside, the network is measured under faults; the config must ask for some."""
        assert isinstance(self._task, FaultyClassification)
        return self._task.only(1.0, faults)

    def fault_numbers(self, between_batches: Callable[[], object]) -> dict[str, float | None]:
        """Return loss and accuracy on the alphas' half under the config's faults; nothing without faults or images."""
        if self.config.faults is None or self.validation is None:
            return {}
        with self.under(Faults.read(self.config.faults)):
            loss, accuracy = self.validate(between_batches)
        return {"fault_loss": loss, "fault_accuracy": json_number(accuracy)}

    def test_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.architect.forward(batch)

    def first_batches(self, batches: int) -> Any:
        """Return the part of `validation` that fills the first so many batches."""
        return self.validation.subset(torch.arange(min(batches * self.config.batch_size, len(self.validation))))

    def recalibrate(self, batches: int) -> None:
        """Average the running statistics of the batch norms in use over so many training batches, not augmented.

        Random numbers of the network are the same each time, and global generators are restored.
        """
        with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(0)
            average_statistics(self.network, self.architect.forward, self.plain_batches(batches))

    def plain_batches(self, batches: int) -> Iterator[Batch]:
        """Yield so many training batches, at least one, in the data's order and not augmented."""
        images, size = self.streams[0].data, self.config.batch_size
        count = max(1, min(batches, len(images) // size)) * size  # a short batch would count as much as a whole one
        some = images.subset(torch.arange(min(count, len(images))))
        return ((self.augment.normalise(x), targets) for x, targets in in_order(some, size))

    def validate(
        self, between_batches: Callable[[], object], mixes: Mapping[str, Mix] | None = None
    ) -> tuple[float, float]:
        """Return mean loss and accuracy on the alphas' half, NaN if there is none.

        Args:
            between_batches: called before each batch.
            mixes: op weights to use in place of the method's relaxation; None for that.
        """
        if self.validation is None:
            return math.nan, math.nan
        with nullcontext() if mixes is None else self.network.mixing(mixes):
            return self.measure(self.validation, between_batches)

    def measure_by_batch(self, data: Any, between_batches: Callable[[], object]) -> tuple[float, float]:
        """Return mean loss and accuracy on `data` as `measure` does, with batch norm by the statistics of each batch.

        Running statistics stay as they are.
        """
        self.network.train()
        with self.network.frozen_statistics():
            return self._means(data, between_batches)

    def take_over(self, saved: Mapping[str, Any]) -> None:
        """Begin with the network and alphas of a search that has ended, given its checkpoint; the method is DARTS-PT.

        Optimizers begin anew.
        """
        assert isinstance(self.method, DartsPt)
        self.method.take_over(saved["method"], saved["epoch"] - 1)
        self._begin_epoch()  # the method may have ended with another network than it began with
        self.network.load_state_dict(saved["network"])
        self._load_alphas(saved)
        self.history = [self.architecture()]

    def equal_on_ranks(self) -> dict[str, Any]:
        return super().equal_on_ranks() | {
            "alphas": self.network.arch_parameters(),
            "the weights' optimizer": self.w_optimizer.state_dict()["state"],
            "the alphas' optimizer": self.architect.state_dict()["state"],
            "the method's generator": self.method.generator.get_state(),
        }

    def numbers(self, losses: Mapping[str, float]) -> dict[str, float | None]:
        """Return further metrics of an epoch, from its mean losses by name."""
        return {}

    def next_epoch(self, metrics: Metrics) -> None:
        super().next_epoch(metrics)
        self.history.append(self.architecture())
        self._begin_epoch(goes_on=True)
        self.method.between_epochs(self)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "method": self.method.state_dict(),
            "alphas": [alpha.detach() for alpha in self.network.arch_parameters()],
            "architect": self.architect.state_dict(),
            "w_optimizer": self.w_optimizer.state_dict(),
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.epoch = state["epoch"]
        self._begin_epoch()  # rebuilds the network if `state` was taken in a stage with another one
        super().load_state_dict(state)
        self._load_alphas(state)
        self.architect.load_state_dict(state["architect"])
        self.w_optimizer.load_state_dict(state["w_optimizer"])
        self.history = list(state["history"])

    @torch.no_grad()
    def _load_alphas(self, state: Mapping[str, Any]) -> None:
        for alpha, value in zip(self.network.arch_parameters(), state["alphas"], strict=True):
            alpha.copy_(value)


def _penalty(method: Method, network: Supernet, cost: CostTerm | None, loss: Tensor) -> Tensor | None:
    """Return what the method and the cost add to the loss of the alphas."""
    own = method.penalty(network)
    if cost is None:
        return own
    return cost(network, loss) if own is None else own + cost(network, loss)


def in_columns(alpha: Tensor, names: EdgeOps, primitives: Sequence[str], kept: Tensor | None) -> Tensor:
    """Return `alpha` [edges, ops] on the CPU as [edges, primitives], with a column for each primitive.

    Entries are -inf where an edge does not have the op, or where `kept` is given and False. `names` holds the op names
    of each edge.
    """
    values = alpha.detach().cpu()
    if kept is not None:
        values = values.masked_fill(~kept, -math.inf)
    table = values.new_full((len(names), len(primitives)), -math.inf)
    columns = torch.tensor([[primitives.index(name) for name in row] for row in names])
    return table.scatter(1, columns, values)
