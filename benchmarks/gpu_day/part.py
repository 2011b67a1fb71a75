"""Run one part in this process: python -m benchmarks.gpu_day.part MODULE DAY NOTES, as `runner` starts it."""

import json
import sys
from importlib import import_module
from pathlib import Path

from benchmarks.gpu_day.day import Day, Notes


def main() -> None:
    module, day, notes = sys.argv[1:]
    import_module(module).run(Day(**json.loads(day)), Notes(Path(notes)))


if __name__ == "__main__":
    main()
