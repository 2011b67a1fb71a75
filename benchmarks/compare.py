"""Report cases that got slower or larger, beyond noise: `python -m benchmarks.compare BEFORE.json AFTER.json`."""

import sys
from argparse import ArgumentParser
from pathlib import Path

from benchmarks.results import Row, load

TIME, MEMORY = 1.05, 1.05
"""Ratios up to these never count as a change, however narrow the spread is."""


def verdict(before: Row, after: Row) -> str:
    """Return "slower" or "faster" if the medians differ by more than TIME and the p20-to-p80 spans do not overlap.

    Otherwise return an empty string.
    """
    if after.median > TIME * before.median and after.quantile(20) > before.quantile(80):
        return "slower"
    if before.median > TIME * after.median and before.quantile(20) > after.quantile(80):
        return "faster"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Print the comparison; return 0 if no case got slower or larger, 1 if one did, 2 if files cannot be compared."""
    parser = ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args(argv)
    try:
        before, after = load(arguments.before), load(arguments.after)
    except (OSError, ValueError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    common = [key for key in before if key in after]
    if not common:
        print("compare: the files have no case in common", file=sys.stderr)
        return 2
    worse = 0
    print(f"{'':<52}{'before':>12}{'after':>12}{'time':>8}{'memory':>8}")
    for key in common:
        old, new = before[key], after[key]
        memory = new.peak_bytes / max(old.peak_bytes, 1)
        words = [word for word in (verdict(old, new), "larger" if memory > MEMORY else "") if word]
        worse += "slower" in words or "larger" in words
        print(
            f"{old.case + ', ' + old.variant:<52}{old.median * 1e3:>9.2f} ms{new.median * 1e3:>9.2f} ms"
            f"{new.median / old.median:>7.2f}x{memory:>7.2f}x  {', '.join(words)}"
        )
    only = {
        f"{name} only": sorted(mine.keys() - theirs.keys())
        for name, mine, theirs in (("before", before, after), ("after", after, before))
    }
    for where, keys in only.items():
        for case, variant in keys:
            print(f"{case + ', ' + variant:<52}  {where}")
    print(f"{worse} of {len(common)} got worse beyond noise")
    return int(worse > 0)


if __name__ == "__main__":
    sys.exit(main())
