"""The folder of a run."""

import dataclasses
import itertools
import os
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from fastdarts.config.options import Config
from fastdarts.runs import lock
from fastdarts.runs.launch import Team, restarted

ConfigType = TypeVar("ConfigType", bound=Config)


def taken_up(config: ConfigType, team: Team) -> ConfigType:
    """Return the config of a run that torchrun has restarted, which goes on in the folder that it made; else `config`.

    All ranks get the first's.
    """
    if not (restarted() and team.board and team.ranks.first):
        return team.ranks.from_first(config)
    kept = team.board.kept("out")
    if kept is not None and (Path(kept) / "config.json").is_file():
        config = dataclasses.replace(config, out=Path(kept), resume=True)  # type: ignore[call-arg]
    return team.ranks.from_first(config)


def run_folder(config: Any, kind: str, team: Team) -> Path:
    """Return `out_dir` as the first rank makes it."""
    out = out_dir(config, kind) if team.ranks.first else Path()
    if team.board and team.ranks.first:
        team.board.keep("out", str(out.absolute()))
    return team.ranks.from_first(out)


def check_out(config: Any) -> None:
    """ValueError if a run is in `config.out` that is not resumed or is going on, or nothing can be written there."""
    if config.out is None:
        return
    check_writable("out", config.out)
    lock.check_free(config.out)
    _check_new(config)


def _check_new(config: Any) -> None:
    if not config.resume and (config.out / "config.json").exists():
        raise ValueError(f"out: {config.out} holds a run already; continue it with --resume or choose another folder")


def check_writable(name: str, folder: Path) -> None:
    """ValueError that begins with the option's name, unless files can be written into the folder or it can be made."""
    try:
        whole = folder.absolute()
    except FileNotFoundError:
        raise ValueError("the working folder has been deleted; change into one that exists and start again") from None
    there = next(path for path in (whole, *whole.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{name}: {there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: nothing can be written into {there}; choose another folder")


def out_dir(config: Any, kind: str) -> Path:
    """The run's folder: `config.out`, or runs/KIND-DATASET-TIME, made at once, so that no run of the same second gets
    it too. It is locked until the surrounding call with `releases_folders` ends.

    Raises: FolderInUseError; ValueError if another run has come and gone since `check_out`.
    """
    if config.out is not None:
        out = Path(config.out)
        lock.hold(out)
        _check_new(config)
        return out
    name = f"{kind}-{config.dataset}-{datetime.now():%Y%m%d-%H%M%S}"
    for number in itertools.count(1):
        out = Path("runs") / (name if number == 1 else f"{name}-{number}")
        with suppress(FileExistsError):
            out.mkdir(parents=True)
            break
    lock.hold(out)
    return out
