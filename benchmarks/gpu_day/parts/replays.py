"""A captured search step, again and again from one state: the same bits each time, and those of the eager step."""

import torch

from benchmarks.gpu_day.day import Day, Notes
from benchmarks.gpu_day.steps import Steps
from fastdarts.bilevel.step import SearchStep

BEFORE_REPLAYS = 5  # eager steps and the captured one


def run(day: Day, notes: Notes) -> None:
    torch.backends.cudnn.deterministic = True  # of the stem, which has no kernel of ours
    steps = Steps(day)
    for _ in range(BEFORE_REPLAYS):
        steps.step()
    begin = [t.clone() for t in steps.state()]

    def after(step: SearchStep) -> list[torch.Tensor]:
        """Return the state after one step from `begin`, and what the step measured."""
        with torch.no_grad():
            for t, value in zip(steps.state(), begin, strict=True):
                t.copy_(value)
        measured = step.step(steps.train, steps.valid)
        return [t.clone() for t in (*steps.state(), *measured)]

    first = after(steps.search)
    notes["finite"] = all(bool(t.isfinite().all()) for t in first)
    different = [n for n in range(day.geometry.replays) if not _equal(after(steps.search), first)]
    notes["replays"], notes["different"] = day.geometry.replays, different
    notes["eager is equal"] = _equal(after(steps.search_step(cuda_graphs=False)), first)


def _equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True))
