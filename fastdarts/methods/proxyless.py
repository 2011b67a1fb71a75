"""ProxylessNAS: one sampled path, and alphas that learn from a pair of ops (Cai et al., ICLR 2019, arXiv:1812.00332).

A weight step samples one op for each row and runs no other. An alpha step, every fifth step, samples again and gives
the alphas the straight-through gradient of their gates, dL/dalpha_i = sum_j G_j p_j (delta_ij - p_i), where
G_j = <dL/dy, op_j(x)> is computed for

* `two` (the paper): a pair of ops drawn from p, with p renormalised over the pair. After the step both alphas shift so
  that the pair's share of the whole softmax is what it was.
* `full_v2` (the released code's default): all ops; only the sampled one has a graph, the others run again in the
  backward pass.
* `full`: all ops, all with a graph. The same gradient; for spaces of cells, whose kernels compute all ops at once, and
  there the default.
* `reinforce` (the paper's second way): none. Ten sampled networks are measured on the batch without gradients, and the
  alphas follow the REINFORCE estimator for their mean reward.

Differences from the authors' code: the choice to leave a layer out takes part like any other op, with output 0 (theirs
gives its row no gradient where it is the sampled one, not even the latency's); alpha steps see augmented images; labels
are not smoothed; the baseline of REINFORCE is the average of earlier rewards (theirs weighs the newest by 0.99). The
paper's main results come from REINFORCE, to which its author found the gradients slightly inferior.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import mean
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from fastdarts.bilevel.step import Level, SearchStep
from fastdarts.config.search_options import SearchOptions
from fastdarts.methods import gumbel
from fastdarts.methods.method import Method, MethodOptions, Settings, hyper, search_network
from fastdarts.methods.reinforce import draw, gates, measured, policy_gradients
from fastdarts.mixed.mix import Mix
from fastdarts.spaces.supernet import Supernet
from fastdarts.tasks.task import Batch


@dataclass(frozen=True, kw_only=True)
class ProxylessOptions(MethodOptions):
    """Define the hyper-parameters of ProxylessNAS; defaults are the authors'."""

    gradient: Literal["auto", "two", "full_v2", "full", "reinforce"] = hyper(
        "from what alphas learn: a pair of ops, all ops, or rewards of sampled networks; auto: two, in spaces of cells "
        "full",
        "auto",
    )
    every: int = hyper("weight steps for each alpha step", 5, at_least=1)
    networks: int = hyper("reinforce: networks sampled for a step of the alphas", 10, at_least=2)
    memory: float = hyper("reinforce: share of the past in the moving average of rewards", 0.99, at_least=0, below=1)


class Proxyless(Method):
    """Run one sampled op a row; move the alphas by the gradient of binary gates."""

    Options = ProxylessOptions
    settings: ClassVar[Settings] = {"order": 1, "alpha_warmup": 0.25}
    published: ClassVar[Settings] = {"epochs": 160, "weight_decay": 4e-5, "lr_min": 0.0, "arch_lr": 1e-3}
    sparse = True
    capturable = False  # the host decides which ops run
    draws = True

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self.gradient = self.options.gradient
        if self.gradient == "auto":
            self.gradient = "two" if "probed ops" in self.space.features else "full"
        self._steps = 0
        self._for_alphas = False
        self._baseline: float | None = None
        self._pairs: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        gradient = config.method_options["gradient"]
        if gradient in ("two", "full_v2") and "probed ops" not in cls.space_of(config).features:
            raise ValueError(
                f"gradient {gradient!r} needs layers that can run ops without a graph, which space {config.space!r} "
                "does not have; take gradient=full"
            )

    def arch_optimizer(self, network: Supernet) -> Optimizer:
        """Return Adam without momentum, which would also move the ops outside a pair, and without decay."""
        optimizer = self.adam(network.arch_parameters(), betas=(0.0, 0.999))
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
        return optimizer

    def weight_optimizer(self, network: Supernet) -> Optimizer:
        return self.nesterov(network)

    def alphas_move_each_step(self) -> bool:
        return self.options.every == 1 and self.alphas_move()

    def level_now(self) -> Level:
        due = self._steps % self.options.every == self.options.every - 1
        return super().level_now() if due else "weights"

    def weight_pass(self, step: SearchStep, train: Batch) -> AbstractContextManager[None]:
        self._steps += 1
        return super().weight_pass(step, train)

    def relax(self, network: Supernet, group: str, alpha: Tensor) -> Mix:
        if not network.training:
            return gates(alpha.detach().argmax(1), alpha.detach())
        if not self._for_alphas:
            shares = alpha.detach().softmax(dim=-1)
            return gates(draw(shares, 1, self.generator)[:, 0], alpha.detach())
        if self.gradient == "two":
            return self._pair(group, alpha)
        shares = alpha.softmax(dim=-1)
        chosen = draw(shares.detach(), 1, self.generator)[:, 0]
        weights = gumbel.straight_through(chosen, shares)
        if self.gradient == "full":
            return Mix(weights)
        columns = range(alpha.shape[1])
        return Mix(
            weights,
            [[active] for active in chosen.tolist()],
            probed=[[c for c in columns if c != active] for active in chosen.tolist()],
        )

    def _pair(self, group: str, alpha: Tensor) -> Mix:
        """Return gates of which one of two sampled ops runs, and the other is probed."""
        pairs = draw(alpha.detach().softmax(dim=-1), 2, self.generator)
        shares = alpha.gather(1, pairs).softmax(dim=-1)
        first = draw(shares.detach(), 1, self.generator)
        weights = torch.zeros_like(alpha).scatter(1, pairs, gumbel.straight_through(first[:, 0], shares))
        self._pairs[group] = pairs
        return Mix(weights, pairs.gather(1, first).tolist(), probed=pairs.gather(1, 1 - first).tolist())

    def alpha_step(self, step: SearchStep, train: Batch, valid: Batch, lr: Tensor) -> Sequence[Tensor]:
        if self.gradient != "reinforce":
            return super().alpha_step(step, train, valid, lr)
        network, architect = search_network(step), step.architect
        self._for_alphas = False  # whole networks are drawn, as in weight steps
        samples = [network.op_weights() for _ in range(self.options.networks)]
        results = [measured(architect, valid, mixes) for mixes in samples]
        rewards = [
            result.reward if self.rewarded is None else self.rewarded(result.reward, mixes)
            for result, mixes in zip(results, samples, strict=True)
        ]
        average = mean(rewards)
        baseline = average if self._baseline is None else self._baseline
        self._baseline = self.options.memory * baseline + (1 - self.options.memory) * average
        gradients = policy_gradients(network, samples, [reward - baseline for reward in rewards])
        architect.valid_loss = torch.stack([result.loss for result in results]).mean()
        architect.apply(gradients)
        return gradients

    def before_alpha_step(self, step: SearchStep) -> None:
        super().before_alpha_step(step)
        self._for_alphas = True
        self._before = {name: alpha.detach().clone() for name, alpha in search_network(step).alphas.items()}

    @torch.no_grad()
    def after_alpha_step(self, step: SearchStep) -> None:
        self._for_alphas = False
        for name, alpha in search_network(step).alphas.items():
            if name in self._pairs:
                pairs = self._pairs[name]
                after, before = alpha.gather(1, pairs), self._before[name].gather(1, pairs)
                shift = after.logsumexp(1, keepdim=True) - before.logsumexp(1, keepdim=True)
                alpha.copy_(alpha.scatter(1, pairs, after - shift))
        self._pairs, self._before = {}, {}
        super().after_alpha_step(step)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"steps": self._steps, "baseline": self._baseline}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._steps, self._baseline = state["steps"], state["baseline"]

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | ({} if self._baseline is None else {"baseline": self._baseline})
