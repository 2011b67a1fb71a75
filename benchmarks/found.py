"""Measure found networks, fused and by plain modules, in training and in use: `python -m benchmarks.found`.

The networks are the paper's: DARTS_V2 with 36 channels and 20 cells for CIFAR-10, with auxiliary head and drop path,
and with 48 channels and 14 cells for ImageNet. Ratios are of medians; the variants of a case run in turns.
"""

import sys
from argparse import ArgumentParser
from dataclasses import replace

import torch

from benchmarks.cases import AUTOCAST, CHANNELS_LAST, FUSED, FUSED_AMP, NCHW, Case
from benchmarks.machine import device, device_name
from benchmarks.worker import Measurement, measure

CIFAR = Case("training step", "evaluation_step", (NCHW, CHANNELS_LAST, AUTOCAST, FUSED, FUSED_AMP), 36, 32, 32, 20)
USE = replace(CIFAR, kind="inference", variants=(CHANNELS_LAST, FUSED))
CASES = {
    "training": CIFAR,
    "inference": replace(USE, name="inference, batch 64", batch=64),
    "one-image": replace(USE, name="inference, batch 1", batch=1),
    "imagenet": Case("ImageNet training step", "evaluation_step", (CHANNELS_LAST, FUSED), 48, 8, 224, 14),
}
COMPARED = {FUSED: (NCHW, CHANNELS_LAST), FUSED_AMP: (AUTOCAST,)}
"""With which plain variants a fused one is compared."""


def lines(case: Case, found: dict[str, Measurement]) -> list[str]:
    """Return a line for each variant: seconds of a step and peak memory; of a fused one also ratios to plain ones."""
    made = []
    for variant, result in found.items():
        if result.error:
            made.append(f"{case.name}, {variant}: {result.error}")
            continue
        spread = f"{min(result.seconds):.3f} to {max(result.seconds):.3f}"
        line = f"{case.name}, {variant}: {result.median:.3f} s ({spread}), {result.peak_bytes / 2**20:.0f} MiB"
        for plain in COMPARED.get(variant, ()):
            if plain in found and not found[plain].error:
                share = result.peak_bytes / max(found[plain].peak_bytes, 1)
                line += f"; {found[plain].median / result.median:.2f}x {plain}, {share:.2f} of its memory"
        made.append(line)
    return made


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m benchmarks.found", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="what to measure (default: all)")
    parser.add_argument("--variants", nargs="+", choices=CIFAR.variants, help="which variants (default: all of a case)")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps a variant (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="small networks, to test the benchmark")
    arguments = parser.parse_args(argv)
    print(f"{device_name(device())}, {arguments.threads} threads, torch {torch.__version__}", flush=True)
    for name in arguments.cases:
        case = CASES[name]
        if arguments.small:
            case = replace(case, C=4, layers=3, batch=min(case.batch, 4), size=min(case.size, 64))
        variants = [v for v in case.variants if not arguments.variants or v in arguments.variants]
        rounds = arguments.rounds, arguments.rounds
        found = measure(case, variants, device(), arguments.threads, budget=0, rounds=rounds, limit=0)
        print("\n".join(lines(case, found)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
