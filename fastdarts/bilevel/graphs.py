"""Replay a step as a CUDA graph once its inputs keep their shapes."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Work = Callable[..., Tensor]
"""work(*inputs) -> measurements; reads nothing back from the device."""

_EAGER_STEPS = 3  # of one kind before capture: libraries choose their algorithms, optimizers create their state


class Replay:
    """Run steps on a GPU: the first few of a kind eagerly, later ones as a CUDA graph."""

    def __init__(self) -> None:
        self.captured: CapturedStep | None = None
        self._stream: torch.cuda.Stream | None = None  # runs eager steps and captures
        self._kind: Hashable = None
        self._seen = 0

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
        seen = self._seen + 1 if kind == self._kind else 1  # consecutive steps of this kind
        self._kind, self._seen = kind, seen
        if self.captured is None or self.captured.kind != kind:
            self._stream = self._stream or torch.cuda.Stream(inputs[0].device)
            if seen <= _EAGER_STEPS:
                with _beside(self._stream):
                    return work(*inputs)
            self.captured = None  # free the old graph's memory before the next capture
            self.captured = CapturedStep(work, kind, inputs, self._stream)
        return self.captured.replay(inputs, carried)


class CapturedStep:
    """Capture a step as a CUDA graph, with static tensors for its inputs."""

    def __init__(self, work: Work, kind: Hashable, inputs: Sequence[Tensor], stream: torch.cuda.Stream) -> None:
        self.kind = kind
        self.inputs = [t.clone() for t in inputs]
        self.graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.device(stream.device), torch.cuda.graph(self.graph, stream=stream):
                self.measured = work(*self.inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise RuntimeError(
                "the step could not be captured as a CUDA graph (does the network or the loss synchronise with "
                "the device?); cuda_graphs=False runs it eagerly"
            ) from error

    def replay(self, inputs: Sequence[Tensor], carried: Sequence[int]) -> Tensor:
        """Replay the graph on other inputs of the same shapes, of which it changes those `carried` in place.

        Returns: a copy of its measurements.
        """
        for place, tensor in zip(self.inputs, inputs, strict=True):
            place.copy_(tensor)
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
