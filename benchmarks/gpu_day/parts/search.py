"""A real search, second order with --amp, for all the time that is left; ended by SIGTERM as a user would."""

import json
import signal
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.gpu_day import place
from benchmarks.gpu_day.day import ROOT, Day, Notes
from benchmarks.results import EPOCHS, TRAIN_IMAGES

TO_END = 15  # seconds in which a search writes its last checkpoint
TRY_FOR = 2  # seconds of a stand-in's steps


def run(day: Day, notes: Notes) -> None:
    out = Path(day.work) / "search"
    if day.images:
        data = ["--dataset", "imagefolder", "--data", day.images]
    else:
        notes["images"] = "none were given: scikit-learn's digits, which tell nothing about CIFAR"
        data = ["--dataset", "digits"]
    g = day.geometry
    size = ["--init-channels", str(g.C), "--layers", str(g.layers), "--batch-size", str(g.batch)]
    device = ["--device", day.device.type, "--order", "2", "--epochs", str(EPOCHS), "--out", str(out)]
    command = [*place.python(), "-m", "fastdarts.search", *data, *size, *device, *([] if day.stand_in else ["--amp"])]
    notes["command"] = " ".join(command[1:])
    start = time.time()
    search = subprocess.Popen(command, cwd=ROOT)
    try:
        if day.stand_in:
            _wait_until_begun(search, out, day)
        search.wait(TRY_FOR if day.stand_in else day.left - TO_END)
    except subprocess.TimeoutExpired:
        search.send_signal(signal.SIGTERM)
        search.wait(TO_END - 2)
    notes["ended with"], notes["seconds"] = search.returncode, time.time() - start
    notes["checkpoint is there"] = any(out.glob("checkpoint*"))
    metrics = out / "metrics.jsonl"
    epochs = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.is_file() else []
    notes["epochs"] = epochs
    if epochs:
        seconds = [epoch["seconds"] for epoch in epochs]
        notes["seconds an epoch"] = statistics.median(seconds)
        if day.images and not day.stand_in:
            notes["images a second"] = TRAIN_IMAGES / statistics.median(seconds)
            notes["GPU-hours of 50 epochs, extrapolated"] = EPOCHS * statistics.median(seconds) / 3600


def _wait_until_begun(search: subprocess.Popen[bytes], out: Path, day: Day) -> None:
    """Wait until a search can be resumed, has ended, or has no time left."""
    while search.poll() is None and not (out / "config.json").is_file() and day.left > TO_END:
        time.sleep(0.1)
