"""Measure a trained network beyond its accuracy: errors between classes, and the time of a forward pass."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from fastdarts.data import ImageSet
from fastdarts.data.images import in_order
from fastdarts.runs.eval_state import EvalState

_SECONDS = 0.3  # of measuring, for each size of batch
_PASSES = 3  # at least


def confusion(state: EvalState, images: ImageSet, between_batches: Callable[[], object]) -> Tensor | None:
    """Count the images of each class by the class that the network takes them for: [classes, classes], on the CPU.

    Returns: None if the targets are not class indices.
    """
    classes = len(images.classes)
    if not classes or images.targets.is_floating_point() or images.targets.dim() != 1:
        return None
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    state.network.eval()
    for batch, targets in in_order(images, state.config.batch_size):
        between_batches()
        with torch.inference_mode():
            _, outputs = state.test_batch((state.augment.normalise(batch), targets))
            pairs = targets * classes + outputs.argmax(1)
        counts += torch.bincount(pairs.cpu(), minlength=len(counts))
    return counts.view(classes, classes)


def class_accuracies(counts: Tensor) -> list[float | None]:
    """Return the share of each class's images that are classified right; None for a class without images."""
    return [row[index] / sum(row) if sum(row) else None for index, row in enumerate(counts.tolist())]


def balanced_accuracy(counts: Tensor) -> float:
    """Return the mean of the classes' accuracies, in which rare classes count as much as frequent ones."""
    return statistics.mean(share for share in class_accuracies(counts) if share is not None)


def latency(network: nn.Module, image_shape: Sequence[int], batch_size: int) -> float:
    """Return the median time of a forward pass in eval mode, in seconds, with images that are on the device already.

    Args:
        network: float32, on its device.
        image_shape: (C, H, W).
        batch_size: images of a pass.
    """
    device = next(network.parameters()).device
    images = torch.randn(batch_size, *image_shape, device=device).contiguous(memory_format=torch.channels_last)
    network.eval()
    times: list[float] = []
    with torch.inference_mode():
        network(images)  # prepares kernels
        while len(times) < _PASSES or sum(times) < _SECONDS:
            _wait(device)
            start = time.perf_counter()
            network(images)
            _wait(device)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
