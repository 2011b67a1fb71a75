"""Random edges and cells through the kernels against plain modules: at most twice their error against float64.

    PYTHONPATH=tests python tests/fuzz/fuzz_differential.py --cases 5000 --seed 0

Shapes are odd, memory layouts of every kind, ops any list with repetitions, some of them inactive; cells also with
partial channels. FASTDARTS_CPU chooses the instruction set. In bfloat16 all ops have kernels: dense convolutions of
torch 2.14 read uninitialised memory there, where images are one or two pixels wide.
"""

import argparse
import copy
import random
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from as_plain import assert_as_good, run, with_backend
from torch import Tensor, nn

from fastdarts.mixed.mixed_op import MixedOp
from fastdarts.primitives.table import CANDIDATES
from fastdarts.spaces.darts.cell import Cell
from fastdarts.spaces.darts.genotype import edges_of

NAMES = [name for name in CANDIDATES if name != "noise"]  # the candidates that are functions of their input
WITHOUT_SKIP = [name for name in NAMES if name != "skip_connect"]
DTYPES = (torch.float32, torch.float32, torch.float64, torch.bfloat16)
LAYOUTS = ("nchw", "channels_last", "channel_slice", "every_other_column", "transposed", "expanded")
ROUNDINGS = (1, 32)
"""Random roundings that a case is measured by, and those of a second look where it is worse than the first ones."""


class Part(nn.Module):
    """An edge or a cell, called with the active ops; of partial channels, the last input is `passing`."""

    def __init__(self, module: nn.Module, active: Any) -> None:
        super().__init__()
        self.module = module
        self.active = active

    def forward(self, *inputs: Tensor) -> Tensor:
        if getattr(self.module, "K", 1) == 1:
            return self.module(*inputs, active=self.active)
        *states, passing = inputs
        return self.module(*states, passing=passing, active=self.active)


Case = tuple[Part, list[Tensor], Tensor]
"""A plain module, its inputs and the gradient of its output."""


def laid_out(shape: Sequence[int], layout: str) -> Tensor:
    """Return random numbers in a memory layout."""
    N, C, H, W = shape
    if layout == "channel_slice":
        return torch.randn(N, C + 3, H, W)[:, 1 : 1 + C]
    if layout == "every_other_column":
        return torch.randn(N, C, H, 2 * W)[..., ::2]
    if layout == "transposed":
        return torch.randn(N, C, W, H).transpose(2, 3)
    if layout == "expanded":
        return torch.randn(1, C, H, W).expand(N, C, H, W)
    x = torch.randn(N, C, H, W)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def op_weights(draw: random.Random, *shape: int) -> Tensor:
    """Return op weights of some kind: of a softmax, signed, one a row, or with zeros among them."""
    weights, kind = torch.randn(shape), draw.randrange(4)
    if kind == 0:
        return weights
    if kind == 1:
        return nn.functional.one_hot(torch.randint(shape[-1], shape[:-1]), shape[-1]).float()
    weights = weights.softmax(-1)
    return weights * (torch.rand(shape) < 0.5) if kind == 2 else weights


def some_ops(draw: random.Random, C: int, stride: int) -> list[str]:
    """Draw one to six ops; a skip connection of stride 2 needs an even number of channels."""
    return draw.choices(WITHOUT_SKIP if stride == 2 and C % 2 else NAMES, k=draw.randint(1, 6))


def some_columns(draw: random.Random, count: int) -> list[int]:
    return draw.sample(range(count), draw.randint(0, count))


def edge_case(draw: random.Random) -> tuple[Part, list[Tensor]]:
    """A mixed op and its inputs."""
    stride, C, N = draw.choice((1, 2)), draw.choice((1, 2, 3, 4, 5, 8, 12, 16, 17, 24, 33)), draw.randint(1, 5)
    names = some_ops(draw, C, stride)
    x = laid_out((N, C, draw.randint(1, 13), draw.randint(1, 13)), draw.choice(LAYOUTS))
    active = some_columns(draw, len(names)) if draw.random() < 0.3 else None
    edge = Part(MixedOp(C, stride, names, "reference"), active)
    return edge, [10 ** draw.uniform(-3, 3) * x, op_weights(draw, len(names))]


def cell_case(draw: random.Random) -> tuple[Part, list[Tensor]]:
    """A cell and its inputs."""
    steps, K = draw.randint(1, 2), draw.choice((1, 1, 2, 4))
    reduction, reduction_prev = draw.random() < 0.5, draw.random() < 0.5
    C = K * draw.choice((2, 4, 6, 8))
    N, H, W = draw.randint(2, 4), draw.randint(2, 9), draw.randint(2, 9)
    before = [draw.randint(2 * size - 1, 2 * size) if reduction_prev else size for size in (H, W)]
    ends, widths = edges_of(steps), (draw.randint(1, 20), draw.randint(1, 20))
    names = some_ops(draw, C // K, 2)
    inputs = [
        laid_out((N, widths[0], *before), draw.choice(LAYOUTS)),
        laid_out((N, widths[1], H, W), draw.choice(LAYOUTS)),
    ]
    inputs.append(op_weights(draw, len(ends), len(names)))
    if K > 1:
        inputs.append(torch.rand(len(ends)))
    active = [some_columns(draw, len(names)) for _ in ends] if draw.random() < 0.3 else None
    cell = Cell(steps, draw.randint(1, steps), *widths, C, reduction, reduction_prev, names, "reference", K)
    return Part(cell, active), inputs


def make_case(draw: random.Random) -> Case:
    """Draw a case in which every batch norm sees more than one value a channel, or uses running statistics."""
    part, inputs = cell_case(draw) if draw.random() < 0.25 else edge_case(draw)
    dense = any(
        isinstance(layer, nn.Conv2d) and layer.groups == 1 and max(layer.kernel_size) > 1 for layer in part.modules()
    )
    dtype = draw.choice([dtype for dtype in DTYPES if not (dense and dtype == torch.bfloat16)])
    compute = torch.promote_types(dtype, torch.float32)
    part.to(compute)
    for norm in part.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        shape = copy.deepcopy(part).eval()(*(t.to(compute) for t in inputs)).shape
    part.train(draw.random() < 0.7 and shape[0] * shape[2] * shape[3] > 1)
    inputs = [t.to(dtype if t.dim() == 4 else compute) for t in inputs]
    return part, inputs, torch.randn(shape).to(dtype)


def difference(case: Case) -> str | None:
    """Say where the kernels are worse than the plain modules, or None."""
    part, inputs, g = case
    ours, said = run(with_backend(part, "fused"), inputs, g), None
    for roundings in ROUNDINGS:
        try:
            assert_as_good(ours, copy.deepcopy(part), inputs, g, roundings)
        except AssertionError as worse:
            said = str(worse)
        else:
            return None
    return said


def described(case: Case) -> str:
    part, inputs, g = case
    sizes = [f"{tuple(t.shape)} strides {t.stride()}" for t in inputs]
    mode = "train" if part.training else "eval"
    return f"{part.module} active {part.active} in {mode} mode, {g.dtype}, inputs {', '.join(sizes)}"


def run_cases(cases: int, seed: int) -> Counter[str]:
    """Compare so many cases; return how many there were of each kind, and print each finding."""
    told = Counter[str]()
    for number in range(cases):
        draw = random.Random(f"{seed} {number}")
        torch.manual_seed(draw.randrange(2**31))
        case = make_case(draw)
        worse = difference(case)
        told[type(case[0].module).__name__] += 1
        told[str(case[2].dtype).removeprefix("torch.")] += 1
        if worse is not None:
            told["worse"] += 1
            print(f"case {number} of seed {seed}: {worse}\n{described(case)}", flush=True)
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # cases are small
    told = run_cases(args.cases, args.seed)
    words = ", ".join(f"{count} {name}" for name, count in told.most_common())
    print(f"{args.cases} cases, seed {args.seed}: {words or 'nothing'}; {told['worse']} worse than plain modules")
    return int(told["worse"] > 0)


if __name__ == "__main__":
    sys.exit(main())
