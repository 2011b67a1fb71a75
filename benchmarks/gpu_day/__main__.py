"""Run the day: see the package's docstring."""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_day import place, report, runner
from benchmarks.gpu_day.day import Day
from fastdarts.config.files import write_atomically


@dataclass(frozen=True)
class Part:
    """Name a module of `parts` and say how many seconds it may take."""

    name: str
    seconds: float


PACKAGE = "benchmarks.gpu_day.parts"
PARTS = (  # the most valuable first; the last takes what is left
    Part("versions", 40),
    Part("kernels", 60),
    Part("smoke", 60),
    Part("steps", 90),
    Part("replays", 40),
    Part("launches", 40),
    Part("profile", 25),
    Part("tests", 70),
    Part("counters", 40),
    Part("sanitizer", 30),
    Part("search", 600),
)
LAST = PARTS[-1].name
SLOWER = 5  # times as long stand-ins may take: a CPU at work for others may be the only one
FOR_LAST = 60  # seconds that the last part has in any case
MINUTES = {"first": 8.0, "after": 4.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m benchmarks.gpu_day")
    parser.add_argument("out", type=Path, help="folder of the results, at most 8 files")
    parser.add_argument(
        "--after", type=Path, help="results.json of a first run: run what is missing there, and a search"
    )
    parser.add_argument("--minutes", type=float, help="time for everything (default: 8, with --after 4)")
    parser.add_argument("--kit", type=Path, default=place.KIT, help="archive made by `make gpu-kit`")
    parser.add_argument("--images", type=Path, help="folder or archive of images, train/CLASS/ and test/CLASS/")
    parser.add_argument("--parts", nargs="+", choices=[part.name for part in PARTS], help="only these")
    parser.add_argument("--stand-in", action="store_true", help="small shapes on the CPU, to try the parts themselves")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    deadline = time.time() + 60 * (args.minutes or MINUTES["after" if args.after else "first"])
    results: dict[str, Any] = json.loads(args.after.read_text()) if args.after else {}
    wanted = [part for part in PARTS if args.parts is None or part.name in args.parts]
    with tempfile.TemporaryDirectory() as work:
        run(wanted, results, deadline, args, Path(work))
    write_atomically(args.out / "RESULTS.md", report.page(results))
    print(report.page(results))


def run(wanted: list[Part], results: dict[str, Any], deadline: float, args: argparse.Namespace, work: Path) -> None:
    """Run what `results` has not from a first day, and the last part again; add to `results` and write them."""
    kit = place.unpack(args.kit, work) if args.kit.is_file() else None
    images = place.images(args.images, kit, work)
    environment = place.environment(kit, work, args.stand_in)
    day = Day(args.stand_in, str(images or ""), str(kit or ""), str(work), 0, {})
    for part in wanted:
        if part.name != LAST and results.get(part.name, {}).get("status") == "ended":
            continue
        kept = 0 if part.name == LAST or LAST not in {p.name for p in wanted} else FOR_LAST
        limit = min(part.seconds * (SLOWER if args.stand_in else 1), deadline - time.time() - kept)
        found = {name: result["notes"] for name, result in results.items()}
        if limit > 5:
            outcome = runner.run_part(
                f"{PACKAGE}.{part.name}", Day(**(asdict(day) | {"results": found})), limit, environment, args.out
            )
        else:
            outcome = runner.Outcome("left out", 0)
        results[part.name] = asdict(outcome)
        runner.write(args.out, results)
        print(f"{part.name}: {outcome.status} after {outcome.seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
