"""Show the machine, the versions and the kernels in use, as text for bug reports."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("env", sys.argv[1:], "python -m fastdarts.env"))

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fastdarts.config.command_line import OneLineParser, output_flags
from fastdarts.runs.environment import environment
from fastdarts.runs.kernels import has_cuda_part, instruction_set
from fastdarts.runs.program import run_parsed

_PROGRAM = "fastdarts env"
_OWN_VARIABLES = tuple(f"FASTDARTS_{name}" for name in ("CPU", "GPU", "STREAMS", "TILES"))
_VARIABLES = (*_OWN_VARIABLES, "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")


def describe() -> dict[str, Any]:
    """Return what a bug report needs: `environment` without the command, the build, and variables that are set."""
    values = environment()
    del values["command"]
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    return values | {"build": _build(), "variables": variables}


def _build() -> dict[str, Any]:
    found = find_spec("fastdarts._C")
    if found is None or found.origin is None:
        return {"extension": None}
    return {
        "extension": found.origin,
        "built": f"{datetime.fromtimestamp(Path(found.origin).stat().st_mtime):%Y-%m-%d %H:%M}",
        "cuda": has_cuda_part(),
        "instruction_set": instruction_set(),
    }


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(prog=prog, description=__doc__, parents=[output_flags()])
    made.add_argument("--json", action="store_true", help="print one JSON object")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    values = describe()
    print(json.dumps(values, indent=2) if given.json else "\n".join(_lines(values)))
    return 0


def _lines(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _lines(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{name}: {'none' if value in (None, [], {}) else text}"
