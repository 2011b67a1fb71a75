"""Call the operators directly with random arguments, most of them malformed: each call ends in a result or in an error.

    python tests/fuzz/fuzz_ops.py --calls 1000 --seed 0

Meant for a build with AddressSanitizer, which ends the program where a kernel leaves its tensors: `make fuzz`. There
fresh memory is NaN, so that a result that was not written shows too.
"""

import argparse
import random
import sys
from collections import Counter
from typing import Any

import torch
from sound_calls import OPERATORS, SHARES, Call
from torch import Tensor

import fastdarts
from fastdarts.ops import eval_cell, mbconv, operators, recurrent, running  # noqa: F401 - they define the operators
from fastdarts.ops.plan import MOST

NUMBERS = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 5, 6, 7, 9, 300, MOST + 1, 2**31, 2**40, 2**62, 2**63 - 1)
NUMBER_LISTS = ("plan", "need_states", "kernels", "parts", "concat", "values")
ERRORS = (ValueError, TypeError, RuntimeError)  # the last: of memory, and torch's own


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
    if name in ("eps", "momentum"):
        call[name] = draw.choice((-1.0, -1e-5, 0.0, 1.0, float("nan"), float("inf")))
    elif isinstance(value, bool):
        call[name] = not value
    elif isinstance(value, Tensor):
        call[name] = spoiled_tensor(value, draw)
    elif value is None:
        call[name] = torch.zeros([draw.randint(0, 4) for _ in range(draw.choice((1, 2, 3, 3, 3, 4)))])
    elif isinstance(value, torch.dtype):
        call[name] = draw.choice((torch.float16, torch.float64, torch.bfloat16, torch.int64, torch.bool))
    elif isinstance(value, int):
        call[name] = draw.choice(NUMBERS)
    elif name in NUMBER_LISTS:
        call[name] = spoiled_numbers(value, draw)
    elif value:
        at = draw.randrange(len(value))
        changed = [value[at]] * draw.randint(0, 2) if draw.random() < 0.2 else [spoiled_tensor(value[at], draw)]
        call[name] = [*value[:at], *changed, *value[at + 1 :]]


def attempt(name: str, call: Call, sound: bool, told: Counter[str]) -> Any:
    """The operator's result, or None where it refuses the call, which it may not where the call is sound."""
    try:
        result = getattr(torch.ops.fastdarts, name)(**call)
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
        (name,) = draw.choices(list(SHARES), list(SHARES.values()))
        operator = OPERATORS[name]
        call = operator.draw(draw)
        spoils = draw.choice((0, 1, 1, 1, 2, 3))
        later = operator.after is not None and draw.random() < 0.5  # spoil the call after it
        for _ in range(0 if later else spoils):
            spoil(call, draw)
        result = attempt(name, call, later or spoils == 0, told)
        made += 1
        if result is None or any(t.device.type == "meta" for t in flat(result)):
            continue
        found = flat(result)
        if operator.after is not None:
            after, back = operator.after(draw, call, result)
            for _ in range(spoils if later else 0):
                spoil(back, draw)
            gradients = attempt(after, back, spoils == 0, told)
            found += [] if gradients is None else flat(gradients)
            made += 1
        if spoils == 0:
            assert all(t.isfinite().all() for t in found), f"{name}: a result that is not finite"
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
