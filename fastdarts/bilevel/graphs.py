"""Replay a step as a CUDA graph once its inputs keep their shapes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastdarts.bilevel.host_values import recording

Work = Callable[..., Tensor]
"""work(*inputs) -> measurements; reads nothing back from the device, and takes from the host only by `from_host`."""

_EAGER_STEPS = 3  # of one kind before capture: libraries choose their algorithms, optimizers create their state


class Replay:
    """Run steps on a GPU: the first few of a kind eagerly, later ones as a CUDA graph.

    Args:
        kinds: number of kinds that keep a graph, such as the lengths of a text's windows. The graphs share their
            memory, since one runs at a time. With one kind, only consecutive steps of it lead to a graph.
    """

    def __init__(self, kinds: int = 1) -> None:
        self.kinds = kinds
        self.captured: OrderedDict[Hashable, CapturedStep] = OrderedDict()  # the latest used last
        self._seen: OrderedDict[Hashable, int] = OrderedDict()  # eager steps of the latest kinds
        self._stream: torch.cuda.Stream | None = None  # runs eager steps and captures
        self._pool: Any = None  # memory of all graphs

    def run(self, work: Work, kind: Hashable, inputs: Sequence[Tensor], carried: Sequence[int] = ()) -> Tensor:
        """Return work(*inputs).

        Args:
            work: the step.
            kind: all that a capture fixes and a caller may change; steps with equal kinds can share one graph.
            inputs: tensors on the GPU; what changes between steps of a kind.
            carried: which of them the step changes in place.

        Raises:
            RuntimeError: the step cannot be captured.
        """
        if kind not in self.captured:
            if self._stream is None:
                self._stream, self._pool = torch.cuda.Stream(inputs[0].device), torch.cuda.graph_pool_handle()
            seen = self._seen.pop(kind, 0) + 1
            if seen <= _EAGER_STEPS:
                self._seen[kind] = seen
                self._forget(self._seen, self.kinds)
                with _beside(self._stream):
                    return work(*inputs)
            self._forget(self.captured, self.kinds - 1)  # free the oldest graph's memory before the next capture
            self.captured[kind] = CapturedStep(work, inputs, self._stream, self._pool)
        elif self.kinds == 1:
            self._seen.clear()
        self.captured.move_to_end(kind)
        return self.captured[kind].replay(inputs, carried)

    @staticmethod
    def _forget(kept: OrderedDict[Hashable, Any], most: int) -> None:
        while len(kept) > most:
            kept.popitem(last=False)


class CapturedStep:
    """Capture a step as a CUDA graph, with static tensors for its inputs and for the values that the host computes.

    Its memory comes from a pool that graphs share.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], stream: torch.cuda.Stream, pool: Any) -> None:
        self.inputs = [t.clone() for t in inputs]
        self.graph = torch.cuda.CUDAGraph()
        try:
            with (
                torch.cuda.device(stream.device),
                recording() as self.host_values,
                torch.cuda.graph(self.graph, pool=pool, stream=stream),
            ):
                self.measured = work(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "the step could not be captured as a CUDA graph (does the network or the loss synchronise with "
                "the device?); cuda_graphs=False runs it eagerly"
            ) from error
        self._replayed = False

    def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
        """Replay the graph on other inputs of the same shapes, of which it changes those `carried` in place.

        Returns: a copy of its measurements.
        """
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
        for value in self.host_values:
            if self._replayed:
                value.renew()
            else:  # those of the capture, so that the host's generators advance as in an eager step
                value.write(value.first)
        self._replayed = True
        self.graph.replay()
        for i in carried:
            inputs[i].copy_(self.inputs[i])
        return self.measured.clone()


@contextmanager
def _beside(stream: torch.cuda.Stream) -> Iterator[None]:
    """Run on a side stream: capture forbids the default one, and autograd returns to the stream of first use."""
    main = torch.cuda.current_stream(stream.device)
    stream.wait_stream(main)
    with torch.cuda.stream(stream):
        yield
    main.wait_stream(stream)
