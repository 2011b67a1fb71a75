"""DARTS+: early stopping (Liang et al., 2019, arXiv:1909.06035).

After every epoch one of two rules decides whether to stop: the normal cell has two skip connections, or the ranking of
the ops with weights has not changed on any edge for ten epochs. The default is the first rule, and in spaces without
skip connections the second. The authors have published no code that we know of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastdarts.config.search_options import SearchOptions
from fastdarts.methods.method import Method, MethodOptions, hyper
from fastdarts.methods.running import RunningSearch
from fastdarts.spaces.registry import read_architecture
from fastdarts.spaces.supernet import Supernet


@dataclass(frozen=True, kw_only=True)
class DartsPlusOptions(MethodOptions):
    """Define the hyper-parameters of DARTS+; defaults are the paper's."""

    rule: Literal["auto", "skips", "ranking"] = hyper(
        "rule that ends the search; auto: skips where the space has them, else ranking", "auto"
    )
    skips: int = hyper("rule skips: number of skip connections in a cell that ends the search", 2, at_least=1)
    stable: int = hyper("rule ranking: epochs without a change that end the search", 10, at_least=1)
    cells: Literal["normal", "both"] = hyper("rule skips: cells whose skips count (both: either cell)", "normal")
    min_epoch: int = hyper("first epoch, counted from 0, after which the search may end", 0, at_least=0)
    take: Literal["current", "previous"] = hyper("epoch whose cells are the result", "current")


class DartsPlus(Method):
    """Run DARTS with a stopping rule."""

    Options = DartsPlusOptions
    role = "stop rule"

    @classmethod
    def check(cls, config: SearchOptions) -> None:
        super().check(config)
        skips = "skip connections" in cls.space_of(config).features
        options = cls.read_options(config.method_options)
        if isinstance(options, DartsPlusOptions) and options.rule == "skips" and not skips:
            raise ValueError(
                f"rule 'skips' counts skip connections, which space {config.space!r} does not have; give "
                "--method-options rule=ranking"
            )

    def __init__(self, config: SearchOptions) -> None:
        super().__init__(config)
        self._by_ranking = self.options.rule == "ranking" or (
            self.options.rule == "auto" and "skip connections" not in self.space.features
        )
        self._ranking: list[list[list[int]]] = []
        self._unchanged = 0
        self._genotypes: list[str] = []  # of the previous and the latest epoch, as JSON

    def end_epoch(self, state: RunningSearch, metrics: dict[str, Any]) -> None:
        super().end_epoch(state, metrics)
        genotype = self.genotype(state.network)
        self._genotypes = [*self._genotypes[-1:], genotype.to_json()]
        if not self.alphas_move():  # untrained alphas say nothing yet
            return
        ranking = rankings(state.network)
        self._unchanged = self._unchanged + 1 if ranking == self._ranking else 0
        self._ranking = ranking
        if self.epoch >= self.options.min_epoch:
            self.stopped = self._reason(state.network, genotype)

    def _reason(self, network: Supernet, architecture: Any) -> str | None:
        options = self.options
        if self._by_ranking:
            if self._unchanged >= options.stable:
                return f"the ranking of the ops with weights has not changed for {self._unchanged} epochs"
            return None
        titles = {f"skips_{name}": group.title for name, group in network.groups.items()}
        counts = {name: count for name, count in self.space.numbers(architecture).items() if name in titles}
        for name in list(counts)[: 1 if options.cells == "normal" else None]:
            if counts[name] >= options.skips:
                return f"the {titles[name]} has {counts[name]:.0f} skip connections"
        return None

    def result(self, state: RunningSearch) -> Any:
        if self.stopped is not None and self.options.take == "previous":
            return read_architecture(self._genotypes[0])
        return super().result(state)

    def metrics(self, network: Supernet) -> dict[str, Any]:
        return super().metrics(network) | {"epochs_unchanged": self._unchanged}

    def state_dict(self) -> dict[str, Any]:
        own = {"ranking": self._ranking, "unchanged": self._unchanged, "genotypes": self._genotypes}
        return super().state_dict() | own

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._ranking, self._unchanged, self._genotypes = state["ranking"], state["unchanged"], state["genotypes"]


def rankings(network: Supernet) -> list[list[list[int]]]:
    """Return the columns of the ops with weights, sorted by decreasing alpha, for each row of each group."""
    return [
        [
            sorted((c for c, op in enumerate(row) if group.learns(op)), key=[-v for v in values].__getitem__)
            for row, values in zip(group.ops, network.alphas[name].tolist(), strict=True)
        ]
        for name, group in network.groups.items()
    ]
