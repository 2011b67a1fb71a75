"""Call the operators directly with random arguments, most of them malformed: each call ends in a result or in an error.

    python tests/fuzz/fuzz_ops.py --calls 1000 --seed 0

Meant for a build with AddressSanitizer, which ends the program where a kernel leaves its tensors: `make fuzz`. There
fresh memory is NaN, so that a result that was not written shows too.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastdarts
import fastdarts.ops.operators
from fastdarts.ops.plan import KIND_CODES, MOST, MixedPlan, PlannedEdge, norm_count, param_count, param_size
from fastdarts.primitives.table import CANDIDATES

OPS = [c for c in CANDIDATES.values() if c.kind in KIND_CODES]
NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 300, MOST + 1, 2**31, 2**40, 2**62, 2**63 - 1)
ERRORS = (ValueError, TypeError, RuntimeError)  # the last: of memory, and torch's own
Call = dict[str, Any]


def random_plan(draw: random.Random, columns: int, K: int, even: bool) -> MixedPlan:
    """A plan that makes sense, but for sizes: its first input has them, the others may or may not."""
    inputs, nodes = draw.randint(1, 3), draw.randint(1, 3)
    strides = [draw.choice((1, 2)) for _ in range(inputs)]
    edges = []
    for _ in range(draw.randint(1, 5)):
        node = draw.randrange(inputs, inputs + nodes)
        source = draw.randrange(node)
        stride = strides[source] if source < inputs else 1
        chosen = draw.sample(range(columns), draw.randint(0, columns))
        fit = [c for c in OPS if even or stride == 1 or c.kind != "skip"]
        edges.append(PlannedEdge(source, node, stride, tuple((column, draw.choice(fit)) for column in chosen)))
    edges.append(PlannedEdge(0, inputs, strides[0], ()))
    return MixedPlan(inputs, nodes, tuple(edges), K)


def mixed_sum_call(draw: random.Random) -> Call:
    """Arguments that fit."""
    K, C, columns = draw.choice((1, 1, 2, 3)), draw.choice((1, 2, 3, 4, 6, 16, 17)), draw.randint(0, 5)
    plan = random_plan(draw, columns, K, C % 2 == 0)
    dtype = draw.choice((torch.float32, torch.float64, torch.bfloat16))
    compute = torch.promote_types(dtype, torch.float32)
    N, H, W = draw.randint(1, 4), draw.randint(1, 5), draw.randint(1, 5)
    strides = {edge.source: edge.stride for edge in plan.edges}
    states = []
    for i in range(plan.inputs):
        stride = strides.get(i, draw.randint(1, 3))
        h, w = (max(1, size * stride - draw.randint(0, stride - 1)) for size in (H, W))
        states.append(torch.randn(N, C * K, h, w).to(dtype))
    params = [
        torch.randn(param_size(c, i, C), dtype=compute)
        for edge in plan.edges
        for _, c in edge.ops
        for i in range(param_count(c, edge.stride))
    ]
    norms = sum(norm_count(c, edge.stride) for edge in plan.edges for _, c in edge.ops)
    running = draw.choice((None, torch.rand(norms, 2, C, dtype=compute) + 0.5))
    weights = torch.randn(len(plan.edges), columns + (K > 1), dtype=compute)
    factors = None if K > 1 else draw.choice((None, torch.rand(len(plan.edges), N, dtype=compute).round()))
    return {
        "states": states,
        "weights": weights,
        "params": params,
        "running": running,
        "plan": plan.encoded,
        "eps": 1e-5,
        "affine": draw.choice((None, torch.randn(norms, 2, C, dtype=compute))),
        "factors": factors,
    }


def project_call(draw: random.Random) -> Call:
    C_in, C, parts = draw.choice((1, 3, 8, 16, 33)), draw.choice((1, 4, 16, 20)), draw.choice((1, 2))
    dtype = draw.choice((torch.float32, torch.float64, torch.bfloat16))
    compute = torch.promote_types(dtype, torch.float32)
    x = torch.randn(draw.randint(1, 3), C_in, draw.randint(1, 6), draw.randint(1, 6)).to(dtype)
    params = [torch.randn(C, C_in, 1, 1, dtype=compute) for _ in range(parts)]
    running = draw.choice((None, torch.rand(1, 2, C * parts, dtype=compute) + 0.5))
    affine = draw.choice((None, torch.randn(1, 2, C * parts, dtype=compute)))
    return {"x": x, "params": params, "running": running, "eps": 1e-5, "affine": affine}


def spoiled_tensor(t: Tensor, draw: random.Random) -> Tensor:
    """Another shape, type, layout or device."""
    kind = draw.randrange(11)
    if kind == 0:
        return t.to("meta")
    if kind == 1:
        return t.to(
            draw.choice((torch.float16, torch.float64, torch.float32, torch.int64, torch.complex64, torch.bool))
        )
    if kind == 2:
        return t.flatten()[: draw.randint(0, t.numel())]
    if kind == 3 and t.dim():
        return t.narrow(draw.randrange(t.dim()), 0, 0)
    if kind == 4 and t.dim():
        at = draw.randrange(t.dim())
        return t.narrow(at, 0, draw.randint(0, t.shape[at]))
    if kind == 5 and t.dim():
        return torch.cat([t, t], draw.randrange(t.dim()))
    if kind == 6 and t.dim() > 1:
        return t.transpose(draw.randrange(t.dim()), draw.randrange(t.dim()))
    if kind == 7:
        return t.unsqueeze(draw.randint(0, t.dim()))
    if kind == 8 and t.dim() and len(t):
        return t[:1].expand(draw.choice((1, 2, 3, 64)), *t.shape[1:])
    if kind == 9 and t.dim():
        return torch.stack([t, t], -1)[..., 0]  # the same numbers, twice as far apart
    return t.new_zeros([draw.randint(0, 3) for _ in range(draw.randint(0, 5))])


def spoiled_numbers(numbers: list[int], draw: random.Random) -> list[int]:
    numbers = list(numbers)
    at = draw.randrange(len(numbers) + 1)
    kind = draw.randrange(4)
    if kind == 0:
        del numbers[at:]
    elif kind == 1:
        numbers.insert(at, draw.choice(NUMBERS))
    elif at < len(numbers):
        numbers[at] = draw.choice(NUMBERS)
    return numbers


def spoil(call: Call, draw: random.Random) -> None:
    """Change one argument for another of its kind, which may or may not fit."""
    name = draw.choice(list(call))
    value = call[name]
    if name == "eps":
        call[name] = draw.choice((-1.0, -1e-5, 0.0, 1.0, float("nan"), float("inf")))
    elif isinstance(value, bool):
        call[name] = not value
    elif isinstance(value, Tensor):
        call[name] = spoiled_tensor(value, draw)
    elif value is None:
        call[name] = torch.zeros([draw.randint(0, 4) for _ in range(draw.choice((1, 2, 3, 3, 3, 4)))])
    elif name in ("plan", "need_states"):
        call[name] = spoiled_numbers(value, draw)
    elif value:
        at = draw.randrange(len(value))
        changed = [value[at]] * draw.randint(0, 2) if draw.random() < 0.2 else [spoiled_tensor(value[at], draw)]
        call[name] = [*value[:at], *changed, *value[at + 1 :]]


def attempt(operator: Callable[..., Any], call: Call, sound: bool, told: Counter[str]) -> Any:
    """The operator's result, or None where it refuses the call, which it may not where the call is sound."""
    try:
        result = operator(**call)
    except ERRORS as error:
        if sound:
            raise
        told[type(error).__name__] += 1
        return None
    told["results"] += 1
    return result


def flat(values: Any) -> list[Tensor]:
    return [values] if isinstance(values, Tensor) else [t for value in values for t in flat(value)]


def run(calls: int, seed: int) -> Counter[str]:
    """Make so many calls; what they came to, by name."""
    draw, told = random.Random(seed), Counter[str]()
    torch.manual_seed(seed)
    made = 0
    while made < calls:
        mixed = draw.random() < 0.75
        call = mixed_sum_call(draw) if mixed else project_call(draw)
        name = "mixed_sum" if mixed else "project"
        spoils = draw.choice((0, 1, 1, 1, 2, 3))
        later = draw.random() < 0.5  # spoil the backward
        for _ in range(0 if later else spoils):
            spoil(call, draw)
        result = attempt(getattr(torch.ops.fastdarts, name), call, later or spoils == 0, told)
        made += 1
        if result is None or any(t.device.type == "meta" for t in result):
            continue
        out, saved, stats = result
        training = call.pop("running") is None
        needs: Call = {"need_states": [draw.randint(0, 1) for _ in call["states"]]} if mixed else {"need_x": True}
        back = {"grad_out": torch.randn(out.shape).to(out.dtype), **call, "saved": saved, "stats": stats} | needs
        back |= {"training": training, "need_params": draw.random() < 0.7}
        back |= {"out": out, "need_weights": draw.random() < 0.7} if mixed else {}
        for _ in range(spoils if later else 0):
            spoil(back, draw)
        grads = attempt(getattr(torch.ops.fastdarts, f"{name}_backward"), back, spoils == 0, told)
        made += 1
        if spoils == 0:
            assert all(t.isfinite().all() for t in flat([out, stats, *grads])), "a result that is not finite"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(2)
    told = run(args.calls, args.seed)
    words = ", ".join(f"{count} {name}" for name, count in told.most_common())
    print(f"{args.calls} calls of {fastdarts.__name__}, seed {args.seed}: {words}", file=sys.stderr)


if __name__ == "__main__":
    main()
