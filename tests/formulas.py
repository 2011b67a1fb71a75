"""The search space written out: sums over taps, in whatever dtype comes in. The yardstick of the plain modules."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fastdarts.spaces.darts.genotype import edges_of

EPS = 1e-5  # of every batch norm
State = Mapping[str, Tensor]


def taps(
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int = 1,
    fill: float = 0.0,
) -> Iterator[tuple[int, int, Tensor]]:
    """Each tap (u, v) of a window and, for all outputs, the input it meets: [N, C, H', W']."""
    N, C, H, W = x.shape
    padded = x.new_full((N, C, H + 2 * padding[0], W + 2 * padding[1]), fill)
    padded[:, :, padding[0] : padding[0] + H, padding[1] : padding[1] + W] = x
    rows, columns = ((padded.shape[2 + i] - dilation * (kernel[i] - 1) - 1) // stride[i] + 1 for i in (0, 1))
    for u in range(kernel[0]):
        for v in range(kernel[1]):
            top, left = u * dilation, v * dilation
            yield u, v, padded[:, :, top :: stride[0], left :: stride[1]][:, :, :rows, :columns]


def depthwise(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int = 1) -> Tensor:
    k = weight.shape[-1]
    windows = taps(x, (k, k), (stride, stride), (padding, padding), dilation)
    return sum(weight[:, 0, u, v].view(-1, 1, 1) * seen for u, v, seen in windows)


def dense(x: Tensor, weight: Tensor, stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (0, 0)) -> Tensor:
    windows = taps(x, tuple(weight.shape[2:]), stride, padding)
    return sum(torch.einsum("oc,nchw->nohw", weight[:, :, u, v], seen) for u, v, seen in windows)


def batch_norm(x: Tensor) -> Tensor:
    """By the batch's mean and biased variance; no scale, no shift."""
    count = x.shape[0] * x.shape[2] * x.shape[3]
    mean = x.sum((0, 2, 3), keepdim=True) / count
    variance = (x - mean).pow(2).sum((0, 2, 3), keepdim=True) / count
    return (x - mean) / (variance + EPS).sqrt()


def max_pool(x: Tensor, stride: int) -> Tensor:
    seen = [t for _, _, t in taps(x, (3, 3), (stride, stride), (1, 1), fill=-torch.inf)]
    return torch.stack(seen).max(dim=0).values


def avg_pool(x: Tensor, stride: int) -> Tensor:
    """The mean over the pixels that exist: padding is not counted."""
    total = sum(t for _, _, t in taps(x, (3, 3), (stride, stride), (1, 1)))
    return total / sum(t for _, _, t in taps(torch.ones_like(x), (3, 3), (stride, stride), (1, 1)))


def factorized_reduce(x: Tensor, w1: Tensor, w2: Tensor) -> Tensor:
    N, C, H, W = x.shape
    even = x.new_zeros(N, C, H + H % 2, W + W % 2)
    even[:, :, :H, :W] = x.clamp(min=0)
    return batch_norm(torch.cat([dense(even[:, :, ::2, ::2], w1), dense(even[:, :, 1::2, 1::2], w2)], dim=1))


def candidate(name: str, x: Tensor, stride: int, state: State) -> Tensor:
    """The op `name` without the batch norm that a search puts behind a pool; `state` holds its weights."""

    def stage(x: Tensor, first: int, kernel: int, stride: int, dilation: int = 1) -> Tensor:
        x = depthwise(x.clamp(min=0), state[f"op.{first}.weight"], stride, dilation * (kernel // 2), dilation)
        return batch_norm(dense(x, state[f"op.{first + 1}.weight"]))

    match name.split("_"):
        case ["none"]:
            return torch.zeros_like(x[:, :, ::stride, ::stride])
        case ["max", "pool", "3x3"]:
            return max_pool(x, stride)
        case ["avg", "pool", "3x3"]:
            return avg_pool(x, stride)
        case ["bare", *pool]:
            return candidate("_".join(pool), x, stride, state)
        case ["skip", "connect"]:
            return x if stride == 1 else factorized_reduce(x, state["conv_1.weight"], state["conv_2.weight"])
        case ["sep", "conv", size]:
            k = int(size[0])
            return stage(stage(x, 1, k, stride), 5, k, 1)
        case ["dil", "conv", size]:
            return stage(x, 1, int(size[0]), stride, dilation=2)
        case ["nor", "conv", size]:
            k = int(size[0])
            return batch_norm(dense(x.clamp(min=0), state["op.1.weight"], (stride, stride), (k // 2, k // 2)))
        case ["conv", "7x1", "1x7"]:
            x = dense(x.clamp(min=0), state["1.weight"], (1, stride), (0, 3))
            return batch_norm(dense(x, state["2.weight"], (stride, 1), (3, 0)))
    raise KeyError(name)


def mixed(x: Tensor, weights: Tensor, primitives: tuple[str, ...], stride: int, state: State) -> Tensor:
    """A mixed edge; `state` is the edge's state_dict."""
    total: Tensor | int = 0
    for o, name in enumerate(primitives):
        y = candidate(name, x, stride, below(state, f"_ops.{o}."))
        total = total + weights[o] * (batch_norm(y) if name.startswith(("max_pool", "avg_pool")) else y)
    assert isinstance(total, Tensor)
    return total


def cell(
    s0: Tensor,
    s1: Tensor,
    weights: Tensor,
    primitives: tuple[str, ...],
    steps: int,
    multiplier: int,
    reduction: bool,
    reduction_prev: bool,
    state: State,
) -> Tensor:
    if reduction_prev:
        w1, w2 = state["preprocess0.conv_1.weight"], state["preprocess0.conv_2.weight"]
        states = [factorized_reduce(s0, w1, w2)]
    else:
        states = [batch_norm(dense(s0.clamp(min=0), state["preprocess0.op.1.weight"]))]
    states.append(batch_norm(dense(s1.clamp(min=0), state["preprocess1.op.1.weight"])))
    sums: dict[int, Tensor] = {}
    for e, (source, target) in enumerate(edges_of(steps)):
        if len(states) <= source:
            states.append(sums[source])
        stride = 2 if reduction and source < 2 else 1
        y = mixed(states[source], weights[e], primitives, stride, below(state, f"_ops.{e}."))
        sums[target] = sums[target] + y if target in sums else y
    return torch.cat([sums[2 + steps - multiplier + i] for i in range(multiplier)], dim=1)


def below(state: State, prefix: str) -> State:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
