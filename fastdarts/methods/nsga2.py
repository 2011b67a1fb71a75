"""Order architectures by the rules of NSGA-II (Deb et al., IEEE TEC 2002), as pymoo computes them."""

from collections.abc import Sequence
from importlib.util import find_spec

from fastdarts.methods.scored import Scored


def installed() -> bool:
    return find_spec("pymoo") is not None


def check_installed() -> None:
    """Raise an ImportError that says how to get pymoo where it is missing."""
    if not installed():
        raise ImportError("sampler 'nsga2' needs the package pymoo: pip install 'fastdarts[evolution]'")


def by_front(scored: Sequence[Scored]) -> list[Scored]:
    """Return architectures by the front of accuracy and cost to which they belong, the loneliest of a front first."""
    import numpy as np
    from pymoo.core.population import Population
    from pymoo.core.problem import Problem
    from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

    losses = np.array([(-one.score, one.cost) for one in scored], dtype=np.float64)
    population = Population.new("F", losses)
    RankAndCrowding().do(Problem(n_var=1, n_obj=2), population, n_survive=len(scored))
    ranked = zip(population, scored, strict=True)
    return [one for _, one in sorted(ranked, key=lambda pair: (pair[0].get("rank"), -pair[0].get("crowding")))]
