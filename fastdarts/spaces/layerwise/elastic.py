"""A layer whose choices share one set of weights: parts of the kernel and of the channels (Cai et al., ICLR 2020)."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, linear

from fastdarts.spaces.layerwise.blocks import InvertedResidual, LeftOut, SqueezeExcite, squeezed
from fastdarts.spaces.layerwise.chain import SKIP, Activation, Chain, Layer, parse_block, sides_of
from fastdarts.spaces.layerwise.choice import ChoiceLayer


class ElasticNorm(nn.BatchNorm2d):
    """Normalise the first channels by the batch, [N, c, H, W] with c up to its size; move their statistics alone."""

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        used = not self.training or self.track_running_stats
        if self.training and self.track_running_stats:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        return batch_norm(
            x,
            self.running_mean[:channels] if used else None,
            self.running_var[:channels] if used else None,
            self.weight[:channels],
            self.bias[:channels],
            self.training,
            self.momentum,
            self.eps,
        )


class ElasticResidual(InvertedResidual):
    """Hold an inverted residual block of the largest kernel and expansion; compute parts of it.

    A smaller kernel is the centre of the next larger one, times a learned matrix that all channels share and that
    begins as the identity. A smaller expansion takes the first channels.

    Args:
        layer: its shape.
        blocks: names of the choices, all pairs of some kernels and some expansions.
        activation, eps: as of `InvertedResidual`.
    """

    def __init__(self, layer: Layer, blocks: Sequence[str], activation: Activation, eps: float) -> None:
        self.kernels, self.expansions = sides_of(blocks)
        super().__init__(layer, f"k{self.kernels[-1]} e{self.expansions[-1]}", activation, eps)
        self.in_channels = layer.in_channels
        middle = self.conv_pw.out_channels
        self.bn1, self.bn2 = ElasticNorm(middle, eps), ElasticNorm(middle, eps)
        self.transforms = nn.ParameterList(nn.Parameter(torch.eye(kernel**2)) for kernel in self.kernels[-2::-1])
        """[k², k²] for each kernel but the largest, from the larger to the smaller."""

    def part(self, x: Tensor, kernel: int, expansion: int) -> Tensor:
        """Compute the block with a smaller kernel and expansion: [N, C, H, W] -> [N, width, H', W']."""
        channels = expansion * self.in_channels
        y = self.act1(self.bn1(conv2d(x, self.conv_pw.weight[:channels])))
        weight = self.depthwise(kernel, channels)
        y = self.act2(self.bn2(conv2d(y, weight, None, self.conv_dw.stride, kernel // 2, groups=channels)))
        if isinstance(self.se, SqueezeExcite):
            y = _excited(self.se, y)
        out: Tensor = self.bn3(conv2d(y, self.conv_pwl.weight[:, :channels]))
        return out

    def depthwise(self, kernel: int, channels: int) -> Tensor:
        """Return the depthwise weights [channels, 1, kernel, kernel]."""
        weight = self.conv_dw.weight[:channels]
        descending = self.kernels[::-1]
        for (larger, smaller), matrix in zip(pairwise(descending), self.transforms, strict=True):
            if larger == kernel:
                break
            edge = (larger - smaller) // 2
            centre = weight[:, :, edge : edge + smaller, edge : edge + smaller]
            weight = linear(centre.flatten(1), matrix).view(channels, 1, smaller, smaller)
        return weight

    @torch.no_grad()
    def state_of_part(self, kernel: int, expansion: int) -> dict[str, Tensor]:
        """Return weights and buffers of a plain `InvertedResidual` that computes what `part` does."""
        channels = expansion * self.in_channels
        state = self.state_dict()
        found = {name: state[name] for name in state if not name.startswith("transforms.")}
        for name in found:
            module, _, _ = name.partition(".")
            if module in ("bn1", "bn2", "conv_pw") and found[name].dim():
                found[name] = found[name][:channels]
        found["conv_dw.weight"] = self.depthwise(kernel, channels)
        found["conv_pwl.weight"] = found["conv_pwl.weight"][:, :channels]
        if isinstance(self.se, SqueezeExcite):
            inside = squeezed(channels)
            found["se.conv_reduce.weight"] = found["se.conv_reduce.weight"][:inside, :channels]
            found["se.conv_reduce.bias"] = found["se.conv_reduce.bias"][:inside]
            found["se.conv_expand.weight"] = found["se.conv_expand.weight"][:channels, :inside]
            found["se.conv_expand.bias"] = found["se.conv_expand.bias"][:channels]
        return found

    @torch.no_grad()
    def sort_channels(self, shared: Sequence[int]) -> None:
        """Sort the channels inside by the sum of |weight| of the last convolution, the largest first.

        The outputs of the whole block stay the same.

        Args:
            shared: expansions below the largest that have been trained; each keeps its set of channels.
        """
        sizes = [expansion * self.in_channels for expansion in sorted(shared)]
        order = _order(self.conv_pwl.weight.abs().sum((0, 2, 3)), sizes)
        rows: list[Tensor] = [*self.conv_pw.parameters(), *self.conv_dw.parameters()]
        for norm in (self.bn1, self.bn2):
            rows += [*norm.parameters(), *(buffer for buffer in norm.buffers() if buffer.dim())]
        columns: list[Tensor] = [self.conv_pwl.weight]
        if isinstance(self.se, SqueezeExcite):
            rows += list(self.se.conv_expand.parameters())
            columns.append(self.se.conv_reduce.weight)
        for tensor in rows:
            tensor.copy_(tensor[order])
        for tensor in columns:
            tensor.copy_(tensor[:, order])
        if isinstance(self.se, SqueezeExcite):
            inside = _order(self.se.conv_expand.weight.abs().sum((0, 2, 3)), [squeezed(size) for size in sizes])
            for tensor in self.se.conv_reduce.parameters():
                tensor.copy_(tensor[inside])
            self.se.conv_expand.weight.copy_(self.se.conv_expand.weight[:, inside])


class ElasticLayer(ChoiceLayer):
    """Sum the choices of a layer, each but "skip" a part of one block; see `ChoiceLayer`."""

    shared: ElasticResidual

    def _make(self, layer: Layer, chain: Chain) -> list[nn.Module]:
        self.shared = ElasticResidual(layer, chain.blocks, layer.activation or chain.activation, chain.eps)
        made: list[nn.Module] = []
        for name in layer.choices:
            if name == SKIP:
                made.append(LeftOut())
            else:
                kernel, expansion, _ = parse_block(name)
                made.append(_Part(partial(self.shared.part, kernel=kernel, expansion=expansion)))
        return made

    def state_of(self, column: int) -> dict[str, Tensor]:
        kernel, expansion, _ = parse_block(self.primitives[column])
        return self.shared.state_of_part(kernel, expansion)


class _Part(nn.Module):
    """Compute a part of a block that another module owns."""

    def __init__(self, compute: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x)


def _excited(se: SqueezeExcite, x: Tensor) -> Tensor:
    """Compute squeeze and excitation of the first channels."""
    channels = x.shape[1]
    inside = squeezed(channels)
    reduce, expand = se.conv_reduce, se.conv_expand
    assert reduce.bias is not None
    assert expand.bias is not None
    y = se.act1(conv2d(x.mean((2, 3), keepdim=True), reduce.weight[:inside, :channels], reduce.bias[:inside]))
    gated: Tensor = x * se.gate(conv2d(y, expand.weight[:channels, :inside], expand.bias[:channels]))
    return gated


def _order(importance: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the channels by falling importance, sorted apart between the channels numbered `sizes`."""
    edges = [0, *sizes, len(importance)]
    return torch.cat(
        [start + importance[start:stop].argsort(descending=True, stable=True) for start, stop in pairwise(edges)]
    )
