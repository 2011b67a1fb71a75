"""The page of a day's results, from their JSON."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu_day.alternative import NAME, TWO_STREAMS

TITLE = "# Measured on {device}\n"
LONGEST = 12
STEPS = ("weight step", "alpha step, order 1", "alpha step, order 2", "search step")


def page(results: dict[str, Any]) -> str:
    """Return the page; parts without results have a line that says why."""
    notes = {name: result["notes"] for name, result in results.items()}
    return "\n".join(lines(results, notes)) + "\n"


def lines(results: dict[str, Any], notes: dict[str, dict[str, Any]]) -> Iterator[str]:
    machine = notes.get("versions", {}).get("environment", {})
    yield TITLE.format(device=machine.get("device", "an unknown device"))
    packages = ", ".join(f"{name} {version}" for name, version in notes.get("versions", {}).get("packages", {}).items())
    yield f"Made by `python -m benchmarks.gpu_day` on {machine.get('date')}, commit {machine.get('commit')};"
    yield f"{packages}; Python {machine.get('python')}; {machine.get('cores')} CPU cores."
    if machine.get("kind") == "cpu":
        yield "\n**A stand-in on a CPU, with small shapes: it tries the parts and measures nothing.**"
    yield "\n| part | | seconds |\n| --- | --- | --- |"
    for name, result in results.items():
        yield f"| {name} | {result['status']} | {result['seconds']:.0f} |"
    for name, section in SECTIONS.items():
        if notes.get(name):
            yield from section(notes[name])
    for name, result in results.items():
        if result["status"] == "failed":
            yield f"\n{name} failed:\n\n```\n{result['output'][-600:].strip()}\n```"


def versions(found: dict[str, Any]) -> Iterator[str]:
    if "copy" in found:
        copy = found["copy"]
        yield f"\nA copy of {copy['bytes'] / 1e9:.2g} GB moves {copy['GB/s']:,.0f} GB/s, read and written."
    if "multiprocessors" in found:
        yield f"{found['multiprocessors']} multiprocessors, {found['memory'] / 2**30:.0f} GiB. {found['nvidia-smi']}."


def kernels(found: dict[str, Any]) -> Iterator[str]:
    if "seconds" in found:
        yield f"\nKernels of a search: {found['in the cache']} in the cache, {found['compiled anew']} compiled anew,"
        yield f"{found['seconds']:.0f} s."


def smoke(found: dict[str, Any]) -> Iterator[str]:
    yield "\n| cell | launches | |\n| --- | --- | --- |"
    for name, case in found.items():
        if isinstance(case, str):
            yield f"| {name} | | **{case}** |"
            continue
        wrong = ", ".join(f"{result} {times:.1f} times what is allowed" for result, times in case["wrong"].items())
        first = f"; first wrong launch: {case['first wrong launch']}" if "first wrong launch" in case else ""
        yield f"| {name} | {case['launches']} | {f'**{wrong}**{first}' if wrong else 'right'} |"


def steps(found: dict[str, Any]) -> Iterator[str]:
    kinds = ("graph", "eager", "plain", "plain graph")
    yield f"\n| ms | {' | '.join(f'fused, {kind}' if 'plain' not in kind else kind for kind in kinds)} |"
    yield "| --- " * (len(kinds) + 1) + "|"
    for step in STEPS:
        yield f"| {step} | {' | '.join(number(found.get(f'{step}, {kind}')) for kind in kinds)} |"
    for alternative in (NAME, TWO_STREAMS):
        graphs = {step: found[key] for step in STEPS if (key := f"{step}, graph, {alternative}") in found}
        if graphs:
            yield f"\nAs graphs with {alternative}: {', '.join(f'{s} {number(ms)} ms' for s, ms in graphs.items())}."
    cells = {name.removeprefix("cell, "): value for name, value in found.items() if name.startswith("cell, ")}
    if cells:
        said = ", ".join(f"{name} {number(value)} ms" for name, value in cells.items())
        yield f"\nA normal cell forward and backward: {said}."


def replays(found: dict[str, Any]) -> Iterator[str]:
    if "replays" in found:
        said = f"**{len(found['different'])} differ**" if found["different"] else "all equal"
        yield f"\n{found['replays']} replays of a search step: {said};"
    if "eager is equal" in found:
        yield f"the eager step {'has the same bits' if found['eager is equal'] else '**has other bits**'};"
        yield f"{'all numbers are finite' if found['finite'] else '**some numbers are not finite**'}."


def launches(found: dict[str, Any]) -> Iterator[str]:
    for step, rows in found.items():
        total = sum(row["launches"] * row["ms"] for row in rows)
        yield f"\nLaunches of a {step}: {len(rows)} kinds, {total:.2f} ms one after the other. The longest:\n"
        yield "| kernel | launches | programs | ms each | GB/s | of the model's bandwidth |\n" + "| --- " * 6 + "|"
        for row in rows[:LONGEST]:
            numbers = f"{row['ms']:.3f} | {row['GB/s']:,.0f} | {row[LAST_COLUMN]:.0%}"
            yield f"| {row['key']} | {row['launches']} | {row['programs']} | {numbers} |"


LAST_COLUMN = "share of the model's bandwidth"


def profile(found: dict[str, Any]) -> Iterator[str]:
    if "ms a step" in found:
        yield f"\nProfile of a replayed search step: {found['ms a step']:.2f} ms, {found['launches']:.0f} launches,"
        yield f"{found['ms without a kernel']:.2f} ms without a kernel."


def tests(found: dict[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{n} {kind}" for kind, n in found.get("counts", {}).items())
    failed = "; ".join(found.get("failed", []))
    yield f"\nGPU tests: {counts or 'not ended'}{': ' if failed else '.'}{failed}"


def counters(found: dict[str, Any]) -> Iterator[str]:
    rows = found["counters"]
    if isinstance(rows, str):
        yield f"\nHardware counters: {rows}."
    elif rows:
        yield f"\n| {' | '.join(rows[0])} |\n" + "| --- " * len(rows[0]) + "|"
        for row in rows:
            yield f"| {' | '.join(row.values())} |"


def sanitizer(found: dict[str, Any]) -> Iterator[str]:
    said = found["memcheck"]
    yield f"\ncompute-sanitizer: {said if isinstance(said, str) else ' '.join(said)}"


def search(found: dict[str, Any]) -> Iterator[str]:
    yield f"\nA search, ended by SIGTERM after {found.get('seconds', 0):.0f} s: {len(found.get('epochs', []))} epochs,"
    yield f"ended with {found.get('ended with')}, checkpoint there: {found.get('checkpoint is there')}."
    if "images a second" in found:
        yield f"{found['images a second']:,.0f} training images a second, {found['seconds an epoch']:.1f} s an epoch;"
        hours = found["GPU-hours of 50 epochs, extrapolated"]
        yield f"50 epochs would take {hours:.3f} GPU-hours (**extrapolated** from the median epoch)."


SECTIONS = {
    section.__name__: section
    for section in (versions, kernels, smoke, steps, replays, launches, profile, tests, counters, sanitizer, search)
}


def number(value: Any) -> str:
    """Return milliseconds as text, or why there are none."""
    return f"{value:.2f}" if isinstance(value, float | int) else str(value or "")
