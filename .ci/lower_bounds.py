"""Print pip constraints that pin every requirement of pyproject.toml to the series of its lower bound.

python .ci/lower_bounds.py torch torchvision    # but for these
"""

import re
import sys
import tomllib
from pathlib import Path

EXTRAS = ("tensorboard", "export", "completion", "benchmark", "dask")
"""The extras that users choose."""


def lower_bounds(left_out: list[str]) -> list[str]:
    """Return NAME==SERIES.* for each requirement of the package and its extras that is not left out."""
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    optional = (line for extra in EXTRAS for line in project["optional-dependencies"][extra])
    pins = (re.fullmatch(r"([\w-]+)>=([\d.]+)", line) for line in (*project["dependencies"], *optional))
    return [f"{pin[1]}=={pin[2]}.*" for pin in pins if pin is not None and pin[1] not in left_out]


if __name__ == "__main__":
    print("\n".join(lower_bounds(sys.argv[1:])))
