"""Go on from a run's checkpoint."""

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdarts.config.options import check_names, differences
from fastdarts.methods import find
from fastdarts.runs import checkpoint
from fastdarts.runs.eval_state import EvalState
from fastdarts.runs.resources import is_out_of_memory
from fastdarts.runs.search_state import SearchState
from fastdarts.runs.state import RunState
from fastdarts.runs.text_eval_state import TextEvalState

Runs = SearchState | EvalState | TextEvalState

# Between a run and its continuation.
MAY_DIFFER = (
    "benchmark",
    "data",
    "device",
    "export",
    "out",
    "resume",
    "save_every_steps",
    "select",
    "select_options",
    "stream",
    "workers",
)
_TYPES: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "network": dict,
    "augment": dict,
    "streams": list,
    "random": dict,
    "epoch": int,
    "step": int,
    "seconds": (int, float),
    "metrics": list,
}


def resume(state: Runs, out: Path) -> None:
    """Load the checkpoint in out; more epochs than it was made with are allowed, and said.

    Raises: ValueError with the keys that differ when the checkpoint is of another config, or with what is wrong in it.
    """
    path = out / "checkpoint.pt"
    saved = state.ranks.from_first(checkpoint.load(path, state.kind) if state.ranks.first else {})
    for name, kind in _TYPES.items():
        if not isinstance(saved.get(name), kind) or isinstance(saved[name], bool):
            raise _damaged(path, f"{name!r} is {'missing' if name not in saved else type(saved[name]).__name__}")
    if isinstance(state, SearchState):
        _check_history(saved.get("history"), saved["epoch"], state, path)
    before = _config_of(saved, state, path)
    changed = differences(state.config, before, ignore=MAY_DIFFER)
    more = state.config.epochs > before.epochs
    if more:
        changed = [change for change in changed if not change.startswith("epochs: ")]
    if changed:
        raise _other_config(state, out, changed)
    if more:
        _check_more_epochs(state, before, saved)
    try:
        state.load_state_dict(saved)
    except ValueError as error:
        raise error if str(error).startswith("resume:") else ValueError(f"resume: {path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise _damaged(path, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from error
    if more and state.ranks.first:
        print(_more_epochs_line(state, before), flush=True)


def _check_history(history: Any, epoch: int, state: SearchState, path: Path) -> None:
    """ValueError unless there are tables as the search makes them, one before the first epoch and one after each."""
    if not isinstance(history, list) or len(history) != epoch + 1:
        raise _damaged(path, f"'history' is not a list of {epoch + 1} tables")
    for index, (name, ours) in itertools.product(range(len(history)), state.history[0].items()):
        table = history[index].get(name) if isinstance(history[index], dict) else None
        if not isinstance(table, Tensor) or table.shape != ours.shape:
            raise _damaged(path, f"'history' has no {name} {list(ours.shape)} for epoch {index}")


def _config_of(saved: Mapping[str, Any], state: RunState, path: Path) -> Any:
    """Return the config that the checkpoint was made with; code that the run does not name itself is not imported."""
    kind, values = type(state.config), saved["config"]
    try:
        check_names(kind, values, "its config")
    except (ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    for field in dataclasses.fields(kind):
        ours = getattr(state.config, field.name)
        if field.metadata.get("names_code") and values.get(field.name, ours) != ours:
            raise _other_config(state, path.parent, [f"{field.name}: {ours}, before {values[field.name]}"])
    try:
        return kind(**values)
    except (ValueError, TypeError) as error:
        raise _damaged(path, f"its config is refused: {error}") from error


def _check_more_epochs(state: RunState, before: Any, saved: Mapping[str, Any]) -> None:
    """ValueError where with more epochs the search would be in another stage than the checkpoint is."""
    if not isinstance(state, SearchState):
        return
    if (reason := saved.get("method", {}).get("stopped")) is not None:
        raise ValueError(f"resume: the search has ended early ({reason}); more epochs would change nothing")
    epoch = saved["epoch"]
    stages = []
    for config, at in ((before, min(epoch, before.epochs - 1)), (state.config, epoch)):
        method = find(config.method)(config)
        method.load_state_dict(saved["method"])
        method.begin_epoch(at)
        stages.append((method.network_arguments(), method.level_now()))
    if stages[0] != stages[1]:
        raise ValueError(
            f"resume: {config.method} divides the epochs into stages, and epoch {epoch + 1} is in another one with "
            f"epochs {state.config.epochs} than with the {before.epochs} of before; keep epochs {before.epochs}"
        )


def _more_epochs_line(state: Runs, before: Any) -> str:
    epochs, rate = state.config.epochs, state.learning_rate()
    line = f"resume: {before.epochs} epochs have become {epochs}"
    if state.epoch >= epochs:
        return line
    if isinstance(state, TextEvalState) or getattr(state.config, "schedule", "cosine") != "cosine":
        return f"{line}; the learning rate goes on as before"
    last = f", after {state.metrics[-1]['lr']:.4g} in epoch {state.epoch}" if state.metrics else ""
    return (
        f"{line}; from epoch {state.epoch + 1} on the learning rate, and all else that follows the epochs, is that of "
        f"a run of {epochs} from the start: {rate:.4g}{last}"
    )


def _other_config(state: RunState, out: Path, changed: list[str]) -> ValueError:
    free = ", ".join(name for name in MAY_DIFFER if hasattr(state.config, name))
    return ValueError(
        f"resume: the {state.kind} in {out} has another config ({'; '.join(changed)}); only {free} may change, and "
        "epochs to more"
    )


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"checkpoint {path} is damaged ({what}); start anew in another folder")
