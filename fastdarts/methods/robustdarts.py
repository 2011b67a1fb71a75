"""RobustDARTS (Zela et al., ICLR 2020, arXiv:1909.09656).

The largest eigenvalue of the Hessian of the validation loss with respect to the alphas grows when DARTS begins to fail.
It is measured every other epoch. When its mean over five measurements has risen by a given factor, the search ends with
the cells of the epoch before the rise (DARTS-ES), or returns to that epoch and continues with stronger regularisation,
until that has reached its largest value (`early_stop=adapt`, DARTS-ADA; checkpoints then hold the snapshots to which
the search may return). `--weight-decay` (R-DARTS(L2)) or drop path in the search network (R-DARTS(DP)) keeps the
eigenvalue small from the start; with drop path, the share of images to which `--cutout` is applied grows at the same
pace.

Differences from the authors' code: the eigenvalue is computed from exact Hessian-vector products by Lanczos iterations
(theirs: the full Hessian and an unsymmetric solver), on the same images each time; the eigenvalue is always tracked
while stopping is on; after a return, the search does not return to earlier epochs than that one.
"""

import copy
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fastdarts.bilevel.architect import frozen_buffers, without_gradients
from fastdarts.config.search_options import SearchOptions
from fastdarts.data.images import first_images
from fastdarts.data.share import Share, SharedBatch
from fastdarts.methods.lanczos import largest_eigenvalue
from fastdarts.methods.method import Method, MethodOptions, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.registry import read_architecture
from fastdarts.spaces.supernet import Supernet

WINDOW = 5  # measurements in a mean
BEFORE = 4  # measurements between the two means that are compared
BACK = BEFORE + WINDOW // 2  # measurements from the one before the rise to the one that reveals it


@dataclass(frozen=True, kw_only=True)
class RobustDartsOptions(MethodOptions):
    """Define the hyper-parameters of RobustDARTS; defaults are the authors'."""

    early_stop: Literal["on", "adapt", "simulate", "off"] = hyper(
        "when the eigenvalue rises, on: stop; adapt: go back and regularise more; simulate: record it and go on", "on"
    )
    every: int = hyper("epochs between two measurements", 2, at_least=1)
    factor: float = hyper("rise of the mean eigenvalue that ends the search", 1.3, above=1)
    first: int = hyper("first epoch, counted from 0, whose cells may be the result of a stop", 10, at_least=0)
    images: int = hyper("number of images on which the eigenvalue is measured (0: a batch)", 0, at_least=0)
    iterations: int = hyper("Lanczos iterations, one Hessian-vector product each", 30, at_least=1)
    drop_path: float = hyper("probability, in the last epoch, to drop a sample on an edge", 0.0, at_least=0, below=1)
    strengthen: Literal["weight-decay", "drop-path"] = hyper("adapt: regularisation that grows", "weight-decay")
    growth: float = hyper("adapt: factor by which it grows", 10.0, above=1)
    strongest: float = hyper("adapt: its largest value; having reached it, the search never goes back", 0.03, above=0)


class RobustDarts(Method):
    """Run DARTS, and stop or regularise more when the curvature of the validation loss rises."""

    Options = RobustDartsOptions
    role = "stop rule"
    measures_images = True

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._values: list[float] = []
        self._genotypes: list[str] = []  # at each measurement, as JSON
        self._result: str | None = None
        self._marks: dict[str, int] = {}  # epochs of the rise and before it, counted from 1, for the report
        self._start = 0  # the first measurement to whose epoch the search may return
        self._level = self._first_level()
        self._snapshots: list[dict[str, Any]] = []  # the search after each of the latest measured epochs

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        if config.method_options["drop_path"] and "drop path" not in cls.space_of(config).features:
            raise ValueError(f"drop_path needs edges that can drop samples, which space {config.space!r} does not have")
        if config.order == 2 and config.method_options["drop_path"]:
            raise ValueError("drop_path has no second order: its difference needs passes that drop the same samples")
        options = config.method_options
        if options["early_stop"] == "adapt":
            paths = options["strengthen"] == "drop-path"
            name, value = ("drop_path", options["drop_path"]) if paths else ("weight_decay", config.weight_decay)
            if not 0 < value < options["strongest"]:
                raise ValueError(
                    f"{name} must be above 0 and below strongest = {options['strongest']} to grow; got {value}"
                )
            if paths and options["strongest"] >= 1:
                raise ValueError(f"strongest must be below 1 for drop_path; got {options['strongest']}")

    def _first_level(self) -> float:
        paths = self.options.strengthen == "drop-path"
        return float(self.options.drop_path if paths else self.config.weight_decay)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        mix = super().relax(network, group, alpha)
        return mix._replace(drop_path=self._factors) if network.training and self.drop_path() else mix

    def _factors(self, term: Tensor) -> Tensor:
        return self.survivors(term, term.shape[:1], self.drop_path)

    def graph_key(self) -> Hashable:
        return super().graph_key(), self.drop_path() > 0

    def drop_path(self) -> float:
        level = self._level if self.options.strengthen == "drop-path" else self.options.drop_path
        return float(level * self._ramp())

    def weight_decay(self) -> float:
        return self._level if self.options.strengthen == "weight-decay" else super().weight_decay()

    def cutout_share(self) -> float:
        return self._ramp() if self.options.drop_path else super().cutout_share()

    def _ramp(self) -> float:
        return min(self.epoch / max(self.config.epochs - 1, 1), 1.0)

    def _measures(self, epoch: int) -> bool:
        return epoch % self.options.every == 0 or epoch == self.config.epochs - 1

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        if not self._measures(self.epoch):
            return
        self._values.append(self.ranks.from_first(self.eigenvalue(state)))
        self._genotypes.append(self.genotype(state.network).to_json())
        if self.options.early_stop != "off" and self._result is None:
            self._look()

    def _look(self) -> None:
        """Compare the latest mean over a full window with the one `BEFORE` measurements earlier; record a rise."""
        options, target = self.options, len(self._values) - 1 - BACK
        if target < self._start or target * options.every < options.first:
            return
        means = smoothed(self._values)
        then, now = means[target], means[target + BEFORE]
        if then <= 0 or now / then <= options.factor:
            return
        if options.early_stop == "adapt" and self._level >= options.strongest:
            return
        self._result, before = self._genotypes[target], target * options.every + 1
        adapt = options.early_stop == "adapt"
        self._marks = {"back_to_epoch": before} if adapt else {"cells_epoch": before, "stop_epoch": self.epoch + 1}
        if options.early_stop == "on":
            self.stopped = (
                f"the mean eigenvalue has risen from {then:.4g} in epoch {before} to {now:.4g}; "
                f"the cells are those of that epoch"
            )

    def between_epochs(self, state: RunningSearch) -> None:
        """Take a snapshot of the search after a measured epoch, or return to the epoch before the rise."""
        options = self.options
        if options.early_stop != "adapt" or not self._measures(state.epoch - 1):
            return
        if self._result is None:
            now = state.state_dict()
            now["method"]["snapshots"] = []
            self._snapshots = [*self._snapshots[1 - BACK :], copy.deepcopy(now)]
        else:
            before, metrics = self._snapshots[0], state.metrics
            level = min(self._level * options.growth, options.strongest)
            state.load_state_dict(copy.deepcopy(before))  # restores this method too
            state.metrics = metrics  # keep the measurements of the discarded epochs
            self._level, self._start, self._snapshots = level, len(self._values) - 1, [before]

    def eigenvalue(self, state: RunningSearch) -> float:
        """Return the largest eigenvalue of the Hessian of the validation loss in the architecture parameters.

        Adam's weight decay is added to the diagonal, as in the authors' code.
        """
        network, images = state.network, state.validation
        assert images is not None  # level "bilevel" always has validation images
        batch, targets = first_images(images, self.options.images or state.config.batch_size)
        network.train()
        alphas = network.arch_parameters()
        with frozen_buffers(network), without_gradients(state.architect.flat.weights):
            whole = Share(0, len(batch), len(batch), weight=1)  # every rank computes all of the images
            loss, _ = state.architect.forward(SharedBatch(state.augment.normalise(batch), targets, whole))
            # a network of one or two cells has no normal cell; its alphas get zero gradients
            gradients = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
            gradient = torch.cat([g.flatten() for g in gradients])

            def product(v: Tensor) -> Tensor:
                rows = torch.autograd.grad(gradient, alphas, v, retain_graph=True, materialize_grads=True)
                return torch.cat([row.flatten() for row in rows]) + self.config.arch_weight_decay * v

            start = torch.randn(gradient.shape, generator=self.generator, dtype=torch.float64)
            return largest_eigenvalue(product, start.to(gradient), self.options.iterations)

    def result(self, state: RunningSearch) -> Any:
        if self._result is not None and self.options.early_stop == "on":
            return read_architecture(self._result)
        return super().result(state)

    def metrics(self, network: Supernet) -> dict[str, Any]:
        own: dict[str, Any] = {"eigenvalue": self._values[-1], "eigenvalue_mean": smoothed(self._values)[-1]}
        own |= self._marks
        options = self.options
        if options.drop_path:
            own["drop_path"] = self.drop_path()
        if options.early_stop == "adapt":
            own["weight_decay"] = self.weight_decay()
        return super().metrics(network) | own

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "values": list(self._values),
            "genotypes": list(self._genotypes),
            "result": self._result,
            "marks": self._marks,
            "start": self._start,
            "level": self._level,
            "snapshots": self._snapshots,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._values, self._genotypes = list(state["values"]), list(state["genotypes"])
        self._result, self._marks = state["result"], state["marks"]
        self._start, self._level, self._snapshots = state["start"], state["level"], list(state["snapshots"])


def smoothed(values: list[float]) -> list[float]:
    """Return the mean of a window centred at each value; windows are cut off at both ends."""
    half = WINDOW // 2
    windows = (values[max(i - half, 0) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]
