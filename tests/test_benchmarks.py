"""The benchmarks: what they run, count, compare and write. No test looks at how fast anything was."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
if not (ROOT / "benchmarks" / "cases.py").is_file():
    pytest.skip("needs the benchmarks, which are not installed", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import (  # noqa: E402
    all_methods,
    compare,
    found,
    layers,
    mask_noise,
    methods,
    peers,
    picture,
    ranks,
    recurrent,
    scaling,
)
from benchmarks.cases import (  # noqa: E402
    AT_PAPERS_SIZE,
    AUTOCAST,
    CHANNELS_LAST,
    COMPILED,
    FUSED,
    FUSED_AMP,
    NCHW,
    Case,
    FusedSearch,
    build,
    compulsory_bytes,
    flops,
    suite,
)
from benchmarks.machine import Peaks, environment, measure_peaks  # noqa: E402
from benchmarks.original import OriginalSearch  # noqa: E402
from benchmarks.results import Results, Row, load  # noqa: E402
from benchmarks.worker import Measurement, Worker, measure  # noqa: E402
from fastdarts import SearchNetwork  # noqa: E402
from fastdarts.compare import Comparison  # noqa: E402
from fastdarts.runs.compare_config import CompareConfig, methods_of  # noqa: E402

CPU = torch.device("cpu")
TINY = {"C": 4, "batch": 2, "size": 8, "layers": 3}
MIXED_OP = Case("mixed op", "mixed_op", **TINY)


@pytest.mark.slow
def test_methods_that_cannot_search_the_network_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--batch-size", "2", "--channels", "2", "--rounds", "1"]
    assert methods.main(["--methods", "gold-nas,ofa", *sizes]) == 0
    shown = capsys.readouterr().out
    assert "without ofa: method 'ofa' needs elastic layers" in shown
    assert re.findall(r"\| `(.*)` \| \d", shown) == ["darts", "gold-nas"]


@pytest.mark.parametrize("full", [True, False])
def test_the_suite_holds_what_a_search_consists_of(full: bool) -> None:
    cases = suite(full)
    assert len({case.name for case in cases}) == len(cases)
    mixed = [case for case in cases if case.kind == "mixed_op"]
    assert {(case.C, case.stride) for case in mixed} == {(C, stride) for C in (16, 32, 64) for stride in (1, 2)}
    assert sum(COMPILED in case.variants for case in cases) == (9 if full else 1)
    assert {case.stride for case in cases if case.kind == "cell"} == {1, 2}
    assert {(case.kind, case.order) for case in cases if case.kind in ("alpha_step", "search_step")} == {
        (kind, order) for kind in ("alpha_step", "search_step") for order in (1, 2)
    }
    for case in cases:
        kinds = ("mixed_op", "cell", "weight_step", "alpha_step", "search_step")
        if case.kind in kinds and not case.name.endswith(AT_PAPERS_SIZE):
            assert {FUSED, FUSED_AMP, NCHW, CHANNELS_LAST, AUTOCAST} <= set(case.variants)


@pytest.mark.parametrize("case", suite(full=False), ids=lambda case: case.name)
def test_every_variant_runs(case: Case) -> None:
    for variant in case.variants:
        if variant != COMPILED:
            build(replace(case, **TINY), variant, CPU)()


@pytest.mark.parametrize("order", [1, 2])
def test_fused_and_original_steps_are_the_same_search(order: int) -> None:
    batches = [(torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.randint(10, (8,))) for _ in range(4)]
    alphas = []
    for search, backend in ((FusedSearch, "auto"), (OriginalSearch, "reference")):
        torch.manual_seed(0)
        network = SearchNetwork(C=4, layers=3, backend=backend).double()
        steps = search(network)
        steps.search_step(*batches[:2], order)
        steps.alpha_step(*batches[2:], order)
        steps.weight_step(batches[0])
        alphas.append([*network.arch_parameters(), *network.parameters()])
    # The finite difference divides rounding errors by twice its step.
    for ours, theirs in zip(*alphas, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_useful_arithmetic() -> None:
    paper = Case("weight step", "weight_step")
    forward = 2 * 300_255_744 * 64  # multiply-adds of convolutions and linear layers, an image
    assert flops(paper) == 3 * forward
    assert flops(replace(paper, kind="alpha_step", order=1)) == 2 * forward
    assert flops(replace(paper, kind="alpha_step", order=2)) == 10 * forward
    assert flops(replace(paper, kind="search_step", order=2)) == 13 * forward
    assert flops(Case("", "clip_sgd")) is None


def test_compulsory_traffic() -> None:
    pixels = 64 * 16 * 32 * 32
    assert compulsory_bytes(Case("", "mixed_op")) == 4 * (3 * pixels + 2 * pixels)
    assert compulsory_bytes(Case("", "mixed_op", stride=2)) == 4 * (3 * pixels + 2 * pixels // 4)
    assert compulsory_bytes(Case("", "cell")) == 4 * (3 * 8 * pixels + 2 * 4 * pixels)
    assert compulsory_bytes(Case("", "data")) is None


def test_measured_in_processes_of_their_own() -> None:
    found = measure(MIXED_OP, [FUSED, NCHW], CPU, 1, budget=0, rounds=(3, 9), limit=60)
    assert list(found) == [FUSED, NCHW]
    for one in found.values():
        assert one.error is None
        assert len(one.seconds) == 3
        assert min(one.seconds) > 0
        assert one.first_seconds is not None
        assert one.peak_bytes > 0
        assert one.rest_bytes > 50 * 2**20  # torch itself


def test_memory_is_that_of_the_step() -> None:
    small, large = (
        measure(replace(MIXED_OP, C=16, batch=batch, size=32), [NCHW], CPU, 1, budget=0, rounds=(1, 1), limit=60)[NCHW]
        for batch in (1, 64)
    )
    saved = 20 * 4 * 64 * 16 * 32 * 32  # what the plain modules keep for the backward is more than 20 maps of floats
    assert large.peak_bytes - small.peak_bytes > saved


def test_what_fails_is_told_and_the_others_are_measured() -> None:
    found = measure(replace(MIXED_OP, C=3, stride=2), [NCHW], CPU, 1, budget=0, rounds=(1, 1), limit=60)[NCHW]
    assert found.error is not None
    assert found.error.startswith("ValueError: ")
    assert not found.seconds
    late = measure(MIXED_OP, [COMPILED, NCHW], CPU, 1, budget=0, rounds=(1, 1), limit=0)
    assert late[COMPILED].error == "not compiled after 0 s"
    assert late[NCHW].seconds


def test_what_ends_in_a_timed_step_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    step, calls = Worker.step, Counter[Worker]()

    def ends(self: Worker, limit: float | None = None) -> float:
        calls[self] += 1
        if self is next(iter(calls)) and calls[self] > 2:
            self._process.kill()
        return step(self, limit)

    monkeypatch.setattr(Worker, "step", ends)
    found = measure(MIXED_OP, [FUSED, NCHW], CPU, 1, budget=0, rounds=(2, 2), limit=60)
    assert found[FUSED].error == "its process ended, most likely for lack of memory"
    assert len(found[NCHW].seconds) == 2


def results_of(seconds: dict[str, list[float]], peak_bytes: int = 2**30) -> Results:
    results = Results(environment(CPU), Peaks(1e11, "arithmetic", 9e10, 1e10), full=True)
    for kind, name in (("weight_step", "weight step"), ("search_step", "search step, second order")):
        measured = {v: Measurement(s, 1.0, peak_bytes, 2**28) for v, s in seconds.items()}
        results.add(Case(name, kind, **TINY), measured, CPU)
    return results


def test_results_in_words_file_and_picture(tmp_path: Path) -> None:
    results = results_of({FUSED: [0.5, 0.6, 0.4], NCHW: [6.0, 5.0, 7.0]})
    results.add(MIXED_OP, {COMPILED: Measurement(error="not compiled after 9 s")}, CPU)
    text = results.table()
    assert "12.00x" in text
    assert "not compiled after 9 s" in text
    hours = 50 * 25_000 / (2 / 0.5) / 3600
    assert f"{hours:.1f} h" in text
    assert "4.0 GPU-days" in text
    assert "projected" in text
    path = results.write(tmp_path)
    assert path.name.endswith("-full.json")
    content = json.loads(path.read_text())
    assert content["projected_hours_per_search"][0]["hours"] == pytest.approx(hours)
    assert {row["median"] for row in content["rows"] if "median" in row} == {0.5, 6.0}
    rows = load(path)
    assert rows["weight step", FUSED] == results.row("weight step", FUSED)
    drawn = picture.draw(results, tmp_path / "p.png")
    assert drawn.read_bytes().startswith(b"\x89PNG")


def test_shares_of_a_step() -> None:
    results = results_of({FUSED: [0.5], NCHW: [6.0]})
    results.add(Case("sampling and augmentation", "data"), {FUSED: Measurement([0.01])}, CPU)
    assert "sampling and augmentation: 2.00% of the search step, second order, fused" in results.table()


def test_quantiles() -> None:
    row = Row("", "", "", 1, tuple(float(i) for i in range(1, 12)))
    assert (row.quantile(20), row.median, row.quantile(80)) == (3.0, 6.0, 9.0)
    assert Row("", "", "", 1, (2.0,)).quantile(80) == 2.0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([1.0, 1.0, 1.0], [1.2, 1.2, 1.2], "slower"),
        ([1.2, 1.2, 1.2], [1.0, 1.0, 1.0], "faster"),
        ([1.0, 1.0, 1.0], [1.04, 1.04, 1.04], ""),
        ([0.8, 1.0, 1.4], [1.1, 1.2, 1.3], ""),  # the spans overlap
    ],
)
def test_slower_beyond_noise(before: list[float], after: list[float], expected: str) -> None:
    one, other = (Row("", "", "", 1, tuple(seconds)) for seconds in (before, after))
    assert compare.verdict(one, other) == expected


def test_compare_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = results_of({FUSED: [1.0, 1.0, 1.0], NCHW: [5.0, 5.0, 5.0]}).write(tmp_path / "a")
    after = results_of({FUSED: [2.0, 2.0, 2.0], NCHW: [5.0, 5.0, 5.0]}, peak_bytes=2**31).write(tmp_path / "b")
    assert compare.main([str(before), str(before)]) == 0
    assert "0 of 4" in capsys.readouterr().out
    assert compare.main([str(before), str(after)]) == 1
    out = capsys.readouterr().out
    assert "slower, larger" in out
    assert "4 of 4 got worse" in out
    (tmp_path / "c.json").write_text("[]")
    assert compare.main([str(before), str(tmp_path / "c.json")]) == 2
    assert "no benchmark results" in capsys.readouterr().err
    assert compare.main([str(before), str(tmp_path / "none.json")]) == 2


def test_scaling_exponents_and_table() -> None:
    points = [scaling.Point("batch", n, FUSED, n, 0.01 * n, 1000 * 2**20 * n**2) for n in (8, 16, 32)]
    assert scaling.exponent(points, "time") == pytest.approx(1)
    assert scaling.exponent(points, "memory") == pytest.approx(2)
    sizes = [scaling.Point("size", s, FUSED, 100 // s, 3.0 * s**2 * (100 // s), 2**20) for s in (5, 10, 20)]
    assert scaling.exponent(sizes, "time") == pytest.approx(2)
    assert scaling.exponent(points[:1], "time") is None
    text = scaling.table([*points, scaling.Point("batch", 64, FUSED, 64, error="does not fit into memory")])
    assert "| 8 | 10.00 | 8000.0 | 64000 |" in text
    assert "| exponent | 1.00 |  | 2.00 |" in text
    assert "does not fit" in text


def test_ranks_model_and_bytes() -> None:
    """A step of 2 ms and 1 ms an image; all-reduces grow with the ranks; bytes are those of the flat buffers."""
    assert ranks.bytes_of_step(2) == 4 * (3 * 1_930_618 + 224)
    sending = [ranks.all_reduce_seconds(2, n) for n in ranks.SHARES]
    assert sending == sorted(sending)
    assert sending[0] == 0
    header, _, alone, *_, eight, _, _ = ranks.model_table(lambda images: 2e-3 + 1e-3 * images).splitlines()
    assert header == "| H100s | batch 64 | batch 256 | batch 1024 | of these all-reduces |"
    assert alone == "| 1 | 66.0 ms, 1.0x | 258.0 ms, 1.0x | 1026.0 ms, 1.0x | 0.00 ms |"
    assert eight.startswith(f"| 8 | {10 + 1e3 * sending[3]:.1f} ms, {66 / (10 + 1e3 * sending[3]):.1f}x |")


@pytest.mark.slow
def test_few_images_do_not_fill_a_gpu() -> None:
    seconds = [ranks.h100_seconds(images) for images in (2, 64)]
    assert 1 < seconds[1] / seconds[0] < 8


@pytest.mark.slow
def test_ranks_are_measured() -> None:
    found = ranks.measured(ranks.Setting(C=4, layers=2, batch=4, order=1), ranks=2, rounds=1)
    network = SearchNetwork(C=4, layers=2)
    weights = sum(weight.numel() for weight in network.parameters())
    assert found["bytes"] == ranks.bytes_of_step(1, weights, sum(a.numel() for a in network.arch_parameters()))
    assert min(found["ranks"], found["threads"]) > 0


def test_scaling_settings() -> None:
    base = Case("", "weight_step")
    assert [(value, case.C, threads) for value, case, threads in scaling.settings("C", (8, 16), base, 2)] == [
        (8, 8, 2),
        (16, 16, 2),
    ]
    assert [threads for _, _, threads in scaling.settings("threads", (1, 2), base, 2)] == [1, 2]
    batches = [case.batch for _, case, _ in scaling.settings("size", (8, 32, 224), base, 2)]
    assert batches == [512, 128, 2]


def test_peaks_of_the_machine() -> None:
    torch.set_num_threads(1)
    peaks = measure_peaks(CPU)
    assert all(math.isfinite(x) and x > 1e8 for x in (peaks.flops, peaks.matmul_flops, peaks.traffic))


@pytest.mark.slow
def test_as_they_are_started(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks", "--benchmark-only", "-q", "-p", "no:cacheprovider"]
    command += ["--results", str(tmp_path), "--threads", "1", "-k", "stride-2-c64 and (fused or nchw) and not amp"]
    # pytest-benchmark measures nothing in a process that pytest-xdist seems to have started.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    (file,) = tmp_path.glob("*.json")
    assert file.with_suffix(".png").is_file()
    assert file.stem.removesuffix("-full") in done.stdout
    assert "mixed op, stride 2, C=64" in done.stdout
    assert compare.main([str(file), str(file)]) == 0
    capsys.readouterr()
    assert scaling.main(["--small", "--axes", "batch", "--variants", "fused", "--out", str(tmp_path / "s")]) == 0
    assert "| exponent |" in capsys.readouterr().out


def test_other_libraries_take_turns_with_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A library's supernet learns both its weights and its alphas; one that is not installed is named."""
    made = []

    def toy() -> peers.Supernet:
        network = SearchNetwork(4, layers=3, backend="reference")
        made.append([p.clone() for p in (*network.parameters(), *network.arch_parameters())])
        made.append([*network.parameters(), *network.arch_parameters()])
        return peers.Supernet(network, network.arch_parameters(), lambda logits: logits)

    def missing() -> peers.Supernet:
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401

        raise AssertionError

    monkeypatch.setattr(peers, "CHANNELS", 4)
    monkeypatch.setattr(peers, "LAYERS", 3)
    monkeypatch.setattr(peers, "PEERS", {"toy": toy, "other": missing})
    assert peers.main(["--peers", "toy,other", "--batch-size", "2", "--image-size", "8", "--rounds", "1"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "without other: No module named 'no_such_library'"
    assert [line.split(":")[0] for line in shown[2:]] == ["fastdarts", "plain modules", "toy"]
    assert len({line.split("; ")[1] for line in shown[2:]}) == 1
    assert all(not torch.equal(before, after) for before, after in zip(*made, strict=True))


def test_the_page_of_all_methods_claims_no_more_than_its_intervals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two methods that overlap and one that is worse; a failed run is named."""
    for name in ("cat", "dog"):
        (tmp_path / "data" / "train" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "data" / "train" / name / f"{number}.png").write_bytes(b"")
    accuracies = {"gdas": (0.50, 0.52), "darts": (0.49, 0.52), "random": (0.20, 0.201)}
    configs = []

    def done(config: CompareConfig) -> Comparison:
        configs.append(config)
        runs = [
            {"method": method, "accuracy": value, "parameters": 5e5, "search_seconds": 3.0, "peak_bytes": 2**20}
            for method, values in accuracies.items()
            for value in values
        ]
        return Comparison([{"method": method} for method in accuracies], runs, {"darts, seed 2": "killed"}, tmp_path)

    monkeypatch.setattr(all_methods, "compare", done)
    out = tmp_path / "out"
    assert all_methods.main([str(out), "--data", str(tmp_path / "data"), "--images", "2", "--spaces", "darts,ofa"]) == 0
    assert sorted(path.name for path in (out / "images" / "train" / "dog").iterdir()) == ["0.png", "1.png"]
    assert configs[0].method_names() == methods_of("darts")
    assert configs[1].method_names() == ["ofa", "random"]
    lines = (out / "all-methods.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    assert [row.split()[1] for row in rows] == 2 * ["`gdas`", "`darts`", "`random`"]
    assert rows[0] == "| `gdas` | 51.0 % | 38.3 to 63.7 % | 0.500 | 3 s | 1 MiB |"
    assert "The interval of `gdas` overlaps with that of `darts`: this budget does not tell them apart." in lines
    assert "Failed: darts, seed 2: killed" in lines
    with pytest.raises(ValueError, match=r"--images: class 'cat' of .* has 3 of the 4"):
        all_methods.main([str(out), "--data", str(tmp_path / "data"), "--images", "4"])


def test_found_networks_are_compared_with_plain_modules(capsys: pytest.CaptureFixture[str]) -> None:
    assert found.main(["--small", "--rounds", "1", "--threads", "1", "--cases", "one-image"]) == 0
    _, plain, fused = capsys.readouterr().out.splitlines()
    assert plain.startswith("inference, batch 1, plain channels_last: ")
    assert re.search(
        r"^inference, batch 1, fused: .* s \(.*\), \d+ MiB; .*x plain channels_last, .* of its memory$", fused
    )


def test_recurrent_steps_are_compared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "measured_apart", recurrent.measure)  # processes of their own take seconds each
    small = ["--width", "16", "--batch", "8", "--window", "4", "--words", "50", "--repeats", "1"]
    assert recurrent.main([*small, "--variants", "plain", "fused amp"]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    names = [(step, variant) for step in recurrent.STEPS for variant in ("plain", "fused amp")]
    assert [line.split()[0] for line in lines] == [step for step, _ in names]
    assert all(variant in line for line, (_, variant) in zip(lines, names, strict=True))
    assert all(float(line[24:34]) >= 0 for line in lines)


def test_mask_noise_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    """Redrawn masks make the implicit term far longer than frozen ones do, after a few steps already."""
    assert mask_noise.main(["--steps", "2", "--windows", "2"]) == 0
    values = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(values) == 5
    assert values[2] > 10 * values[1]


def test_layers_of_candidates_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert layers.main(["--small", "--batch", "2", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    line = re.search(r"4 channels at\s+6x6\s*: modules [\d.]+ ms, fused [\d.]+ ms, [\d.]+x; kept", said)
    assert line is not None, said
