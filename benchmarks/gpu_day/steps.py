"""A search's steps on random images, as several parts run them."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from benchmarks.gpu_day.day import Day, Geometry
from benchmarks.traffic import Planning
from fastdarts import Architect, SearchNetwork
from fastdarts.bilevel.flat import FlatSGD
from fastdarts.bilevel.step import SearchStep, StepResult
from fastdarts.kernels import bank
from fastdarts.mixed.mixed_op import Backend

Run = Callable[[], object]


def network_of(g: Geometry, backend: Backend) -> SearchNetwork:
    """Return a search network of these sizes."""
    return SearchNetwork(
        C=g.C, layers=g.layers, steps=g.nodes, multiplier=g.nodes, primitives=g.primitives, backend=backend
    )


class Steps:
    """Hold a network at the sizes of the day, in bfloat16 by autocast, with all that its steps need.

    Args:
        cuda_graphs: capture the search step once and replay it.
    """

    def __init__(self, day: Day, cuda_graphs: bool = True) -> None:
        torch.manual_seed(0)
        g = day.geometry
        self.network = network_of(g, "auto").to(day.device).to(memory_format=torch.channels_last)
        self.architect = Architect(self.network, amp_dtype=torch.bfloat16)
        self.sgd = FlatSGD(self.network.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4)
        self.search = self.search_step(cuda_graphs)
        self.train, self.valid = self._batch(day), self._batch(day)

    def _batch(self, day: Day) -> tuple[Tensor, Tensor]:
        g = day.geometry
        x = torch.randn(g.batch, 3, g.size, g.size).to(day.device)
        return x.contiguous(memory_format=torch.channels_last), torch.randint(10, (g.batch,)).to(day.device)

    def search_step(self, cuda_graphs: bool) -> SearchStep:
        return SearchStep(self.network, self.architect, self.sgd, cuda_graphs=cuda_graphs)

    def step(self) -> StepResult:
        """Run a search step, of second order."""
        return self.search.step(self.train, self.valid)

    def weight(self) -> None:
        """Run a weight step."""
        loss, _ = self.architect.forward(self.train)
        gradients = torch.autograd.grad(loss, self.architect.flat.weights, materialize_grads=True)
        self.sgd.step(gradient=self.architect.flat.gather(gradients), max_norm=5.0)

    def alpha(self, order: int) -> None:
        """Run an alpha step of this order."""
        self.architect.step(self.train, self.valid, 0.025, self.sgd, order)

    def state(self) -> list[Tensor]:
        """Return every tensor that a step changes."""
        adam = self.architect.optimizer.state
        moments = [value for alpha in self.architect.alphas for value in adam[alpha].values()]
        of_network = [*self.network.parameters(), *self.network.buffers(), *self.architect.alphas]
        return [*of_network, self.sgd.momentum, *moments]


def by_kernels(day: Day, run: Run) -> None:
    """Run a step by the Triton kernels; on a CPU in Triton's interpreter, in place of the C++ ones."""
    with Planning(bank.launch) if day.stand_in else nullcontext():
        run()


def captured(run: Run, device: torch.device) -> Run:
    """Return a callable that replays `run` as a CUDA graph; on a CPU `run` itself.

    Raises: RuntimeError if `run` cannot be captured.
    """
    if device.type != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    return graph.replay
