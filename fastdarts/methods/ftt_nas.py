"""FTT-NAS: search for fault-tolerant networks (Ning et al., ACM TODAES 2021, arXiv:2003.10375).

The weights train in sampled networks, one op a row. A policy of one softmax a row, at a temperature, samples them; it
learns by REINFORCE from (1 - a) * accuracy + a * accuracy under the faults of `faults` on validation batches, with an
entropy bonus and a moving baseline. At the end samples of the policy, and its likeliest network, are measured on all
validation images; the best is found. `fault_weight` is the share of the weights' loss under faults: 0 as in the
authors' search; their last training takes 0.7 for stuck weights (evaluate --fault-weight).

Differences from the authors' code: rows are independent (theirs are sampled in turn by an LSTM); all edges of a cell
run while searching, and derived cells keep two a node; maps and weights are floats, hit in all convolutions (theirs are
8-bit numbers, hit in the last convolution of an op); a value is hit with the exact probability (theirs rounds its
inverse to a whole number).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fastdarts.bilevel.architect import Architect
from fastdarts.bilevel.statistics import kept_statistics
from fastdarts.bilevel.step import SearchStep
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.methods.reinforce import Measured, draw, gates, measured, policy_gradients
from fastdarts.methods.running import RunningSearch
from fastdarts.methods.scored import Scored, best_within
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Mixes, Supernet
from fastdarts.tasks.faults import Faults
from fastdarts.tasks.faulty import FaultyClassification
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class FttNasOptions(MethodOptions):
    """Define the hyper-parameters of FTT-NAS; defaults are the authors'."""

    reward_weight: float | None = hyper(
        "a: share of the accuracy under faults in the reward (default: 0.5; faults in weights: 0.2)",
        None,
        at_least=0,
        at_most=1,
    )
    temperature: float = hyper("temperature of the policy's softmax", 5.0, above=0)
    entropy: float = hyper("weight of the policy's entropy", 0.01, at_least=0)
    memory: float = hyper("share of the old baseline in the new one", 0.99, at_least=0, below=1)
    networks: int = hyper("networks sampled for a step of the policy", 1, at_least=1)
    samples: int = hyper("networks sampled at the end, beside the likeliest", 8, at_least=0)
    recalibrate: int = hyper(
        "training batches over which the batch norms of these are averaged (0: leave them)", 4, at_least=0
    )


class FttNas(Method):
    """Sample networks from a policy that learns from accuracies with and without faults."""

    Options = FttNasOptions
    options: FttNasOptions
    settings: ClassVar[Settings] = {
        "order": 1,
        "epochs": 30,
        "faults": "mibb:1e-4",
        "fault_weight": 0.0,
        "arch_weight_decay": 0.0,
    }
    published: ClassVar[Settings] = {
        "epochs": 100,
        "init_channels": 20,
        "train_portion": 0.8,
        "lr": 0.05,
        "lr_min": 0.0,
        "weight_decay": 1e-4,
        "arch_lr": 1e-3,
        "arch_beta1": 0.9,
    }
    measures_images = True
    sparse = True
    capturable = False  # the host decides which ops run
    draws = True
    compared_by = "with the shared weights on the alphas' half, by the mean of accuracies with and without faults"

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._baseline: float | None = None
        self.faults = None if config.faults is None else Faults.read(config.faults)
        self.share = 0.0
        """Share of the accuracy under faults in the reward."""
        if self.faults is not None:
            given = self.options.reward_weight
            self.share = (0.2 if self.faults.of_weights else 0.5) if given is None else given

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        """Sample an op for each row; in eval mode take the likeliest ones."""
        alpha = alpha.detach()
        if not network.training:
            return gates(alpha.argmax(1), alpha)
        return gates(draw(self.strength(network, group, alpha), 1, self.generator)[:, 0], alpha)

    def strength(self, network: Supernet, group: str, alpha: Tensor) -> Tensor:
        return (alpha / self.options.temperature).softmax(dim=-1)

    def alpha_step(self, step: SearchStep, train: Batch, valid: Batch, lr: Tensor) -> Sequence[Tensor]:
        network, architect, options = search_network(step), step.architect, self.options
        samples = [network.op_weights() for _ in range(options.networks)]
        results = [self.rewarded_on(architect, valid, mixes) for mixes in samples]
        rewards = [result.reward for result in results]
        average = sum(rewards) / len(rewards)
        baseline = average if self._baseline is None else self._baseline
        self._baseline = options.memory * baseline + (1 - options.memory) * average
        advantages = [reward - baseline for reward in rewards]
        gradients = policy_gradients(network, samples, advantages, options.temperature, options.entropy)
        architect.valid_loss = torch.stack([result.loss for result in results]).mean()
        architect.apply(gradients)
        return gradients

    def rewarded_on(self, architect: Architect, batch: Batch, mixes: Mixes) -> Measured:
        """Return the reward of a network on a batch and its loss without faults."""
        task = architect.task
        if not isinstance(task, FaultyClassification):
            return self._with_cost(measured(architect, batch, mixes), mixes)
        with task.only(0.0):
            clean = measured(architect, batch, mixes)
        if self.share == 0:
            return self._with_cost(clean, mixes)
        with task.only(1.0):
            faulty = measured(architect, batch, mixes)
        return self._with_cost(clean._replace(reward=self.mixed(clean.reward, faulty.reward)), mixes)

    def mixed(self, clean: float, faulty: float) -> float:
        """Return the reward of accuracies without and with faults."""
        return (1 - self.share) * clean + self.share * faulty

    def _with_cost(self, found: Measured, mixes: Mixes) -> Measured:
        return found if self.rewarded is None else found._replace(reward=self.rewarded(found.reward, mixes))

    def result(self, state: RunningSearch) -> Any:
        """Return the best of the likeliest network and of samples; change nothing of the search."""
        network, generator = state.network, torch.Generator()
        generator.set_state(self.generator.get_state())
        scores = self.scores(network)
        found = [self.genotype(network)]
        for _ in range(self.options.samples):
            chosen = {name: draw(score, 1, generator)[:, 0] for name, score in scores.items()}
            picked = {name: one_hot(chosen[name], score.shape[1]) * score for name, score in scores.items()}
            found.append(network.derive(picked, self.choice))
        with kept_statistics(network):
            self.compared = [self._score(state, one) for one in {one.to_json(): one for one in found}.values()]
        return best_within(self.compared, self.config.cost_target).architecture

    def _score(self, state: RunningSearch, architecture: Any) -> Scored:
        with state.network.mixing(self.discrete(state.network, architecture)):
            if self.options.recalibrate:
                state.recalibrate(self.options.recalibrate)
            score = self._measured(state)
            if self.faults is not None and self.share:
                with state.under(self.faults):
                    score = self.mixed(score, self._measured(state))
        cost = None if state.costs is None else state.costs.of(state.network, architecture)
        return Scored(architecture, score, cost)

    @staticmethod
    def _measured(state: RunningSearch) -> float:
        """Return the accuracy on the validation images, or minus the loss where targets are not classes."""
        loss, accuracy = state.measure(state.validation, lambda: None)
        return -loss if math.isnan(accuracy) else accuracy

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | ({} if self._baseline is None else {"baseline": self._baseline})

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"baseline": self._baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._baseline = state["baseline"]
