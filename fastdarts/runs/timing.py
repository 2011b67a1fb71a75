"""Time modules on a device: one pass in inference, by several runtimes."""

import io
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key", bound=Hashable)
Pass = Callable[[], object]
_SHORTEST = 2e-3
"""Seconds that one measurement takes at least: shorter passes are repeated."""


def runner(module: nn.Module, x: Tensor, runtime: str) -> Pass:
    """Return a function that runs one pass and waits for its end.

    Args:
        module: in eval mode, on the device of x.
        x: the input.
        runtime: "eager"; "graph", a CUDA graph; "onnxruntime", on a CPU.

    Raises: ValueError for a runtime that the device does not have; ImportError that names a missing package.
    """
    if runtime == "onnxruntime":
        return _onnx_runner(module, x)
    if runtime == "graph":
        return _graph_runner(module, x)

    def run() -> None:
        with torch.inference_mode():
            module(x)
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    return run


def milliseconds(passes: Mapping[Key, Pass], rounds: int) -> dict[Key, float]:
    """Return the shortest time of each pass in milliseconds, measured in turns so that a busy machine slows all alike.

    Args:
        passes: the passes by any key.
        rounds: measurements of each.
    """
    repeats = {key: _repeats(run) for key, run in passes.items()}
    taken: dict[Key, list[float]] = {key: [] for key in passes}
    for _ in range(rounds):
        for key, run in passes.items():
            taken[key].append(_seconds(run, repeats[key]) / repeats[key] * 1e3)
    return {key: min(times) for key, times in taken.items()}


def _repeats(run: Pass) -> int:
    for _ in range(2):  # the first passes prepare primitives and caches
        run()
    return max(1, round(_SHORTEST / max(_seconds(run, 1), 1e-7)))


def _seconds(run: Pass, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return time.perf_counter() - start


def _graph_runner(module: nn.Module, x: Tensor) -> Pass:
    if not x.is_cuda:
        raise ValueError(f"runtime 'graph' needs a CUDA device; got {x.device}")
    stream = torch.cuda.Stream(x.device)
    with torch.cuda.stream(stream), torch.inference_mode():
        module(x)
    torch.cuda.synchronize(x.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream), torch.inference_mode():
        module(x)

    def run() -> None:
        graph.replay()
        torch.cuda.synchronize(x.device)

    return run


def _onnx_runner(module: nn.Module, x: Tensor) -> Pass:
    if x.device.type != "cpu":
        raise ValueError(f"runtime 'onnxruntime' runs on a CPU; got {x.device}")
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "runtime 'onnxruntime' needs that package; run: pip install onnx onnxscript onnxruntime"
        ) from error
    program = torch.onnx.export(module, (x.contiguous(),), input_names=["x"], verbose=False)
    assert program is not None  # it is None for the old exporter alone
    file = io.BytesIO()
    program.save(file)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    names: Sequence[str] = [output.name for output in session.get_outputs()]
    return lambda: session.run(names, feed)
