"""Measure layers of candidates, fused and by channels-last modules: `python -m benchmarks.layers`.

A training pass (forward and backward) of one layer with eight candidates and skip; the variants run in turns. Ratios
are of medians; memory is that of the tensors kept for the backward pass.
"""

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.machine import device_name, in_turns
from fastdarts.spaces.layerwise.chain import CHAINS, SKIP, Layer
from fastdarts.spaces.layerwise.choice import ChoiceLayer

SIZES = ((24, 56), (16, 16), (184, 7))
"""Channels and side of FBNet's layers."""


def layer_of(channels: int, dtype: torch.dtype, fused: bool) -> ChoiceLayer:
    """Return a layer of FBNet that keeps the shape."""
    torch.manual_seed(0)
    chain = CHAINS["fbnet"]
    made = ChoiceLayer(Layer(0, channels, channels, 1, (*chain.blocks, SKIP)), chain, fused).to(dtype)
    return made.to(memory_format=torch.channels_last)


def passes(channels: int, side: int, batch: int, dtype: torch.dtype) -> dict[str, tuple[Callable[[], object], int]]:
    """Return a training pass of each variant and the bytes that it keeps."""
    x = torch.randn(batch, channels, side, side, dtype=dtype).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    made: dict[str, tuple[Callable[[], object], int]] = {}
    for name, fused in (("modules", False), ("fused", True)):
        layer = layer_of(channels, dtype, fused)
        weights = torch.full((len(layer.primitives),), 1 / len(layer.primitives), dtype=dtype, requires_grad=True)

        def run(layer: ChoiceLayer = layer, weights: Tensor = weights) -> object:
            out = layer(x, weights)
            return torch.autograd.grad(out, [x, weights, *layer.parameters()], torch.ones_like(out))

        made[name] = run, kept_bytes(layer, x, weights)
    return made


def kept_bytes(layer: ChoiceLayer, x: Tensor, weights: Tensor) -> int:
    """Return the bytes that a pass keeps for its backward, without parameters."""
    known = {tensor.data_ptr() for tensor in (*layer.parameters(), *layer.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in known:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(x, weights)
    return sum(kept.values())


def main(argv: list[str] | None = None) -> int:
    """Print a line for each layer: milliseconds, ratio, bytes kept."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--small", action="store_true", help="small layers, to test the benchmark")
    given = parser.parse_args(argv)
    dtype = getattr(torch, given.dtype)
    cpu = torch.device("cpu")
    print(f"{device_name(cpu)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {given.dtype}")
    for channels, side in ((4, 6),) if given.small else SIZES:
        made = passes(channels, side, given.batch, dtype)
        seconds = in_turns({name: run for name, (run, _) in made.items()}, given.rounds)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        kept = {name: size / 2**20 for name, (_, size) in made.items()}
        print(
            f"{channels:>4} channels at {side:>3}x{side:<3}: modules {1e3 * medians['modules']:.1f} ms, fused "
            f"{1e3 * medians['fused']:.1f} ms, {medians['modules'] / medians['fused']:.2f}x; kept "
            f"{kept['modules']:.1f} and {kept['fused']:.1f} MiB, {kept['fused'] / kept['modules']:.2f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
