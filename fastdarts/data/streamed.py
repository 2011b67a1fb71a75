"""Images that are decoded when they are needed, by processes that read ahead: for data sets that memory cannot hold."""

import itertools
import math
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastdarts.data.decoding import Decoder
from fastdarts.data.files import Files
from fastdarts.data.images import Batch
from fastdarts.data.memory import shared_bytes
from fastdarts.data.pixels import FULL_RANGE, GreyRange

_AHEAD = 2  # batches that each process has ready or is decoding


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Hold a data set by its encoded files; `fetch` decodes them in worker processes.

    The batches are those of the same files in memory (`ImageData`), bit for bit.

    Attributes:
        files: the encoded images.
        targets: class indices [N], on the CPU.
        classes, mean, std, grey_range: as of ImageData.
        shape: (C, H, W) of the decoded images.
        resize: resize the images to `shape`; if False they all have it.
        workers: processes that decode, for each stream of batches.
        device: of the batches.
    """

    files: Files
    targets: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    resize: bool
    workers: int
    grey_range: GreyRange | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    published_order: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return torch.uint8

    def __len__(self) -> int:
        return len(self.files)

    def to(self, device: torch.device | str) -> "StreamedImages":
        return replace(self, device=torch.device(device))

    def subset(self, indices: Tensor) -> "StreamedImages":
        indices = indices.cpu()
        return replace(self, files=self.files.subset(indices.numpy()), targets=self.targets[indices])

    def with_statistics(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "StreamedImages":
        return replace(self, mean=mean, std=std)

    def bytes_ahead(self, batch_size: int) -> int:
        """Return the largest size of the decoded batches that wait for `fetch`."""
        return self.workers * _AHEAD * batch_size * math.prod(self.shape)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield the batch of each tensor of indices; `batches` is read ahead by `workers` times two.

        Raises: ValueError that names an image that cannot be decoded; MemoryError where shared memory cannot hold the
            batches ahead.
        """
        batches = iter(batches)
        first = next(batches)
        self._check_shared_memory(len(first))
        loader = DataLoader(
            _Decoded(self),
            batch_size=None,
            sampler=itertools.chain([first], batches),
            num_workers=self.workers,
            prefetch_factor=_AHEAD,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # else the loader would move the global one, and with it what a run draws
        )
        for indices, images in loader:
            if isinstance(images, Exception):
                raise images
            yield images.to(self.device, non_blocking=True), self.targets[indices].to(self.device, non_blocking=True)

    def _check_shared_memory(self, batch_size: int) -> None:
        needed, free = self.bytes_ahead(batch_size), shared_bytes()
        if needed > free:
            raise MemoryError(
                f"{self.workers} workers keep {needed / 2**20:,.0f} MiB of batches in shared memory, of which "
                f"{free / 2**20:,.0f} MiB are free: give fewer workers, a smaller batch_size or image_size, or more "
                "shared memory (docker run --shm-size)"
            )


class _Decoded(Dataset[tuple[Tensor, Tensor | Exception]]):
    """Map a tensor of indices [B] to itself and the decoded images [B, C, H, W], or to what went wrong."""

    def __init__(self, images: StreamedImages) -> None:
        self._files, self._shape = images.files, images.shape
        size = images.shape[1:] if images.resize else None
        self._decoder = Decoder(images.shape[0] == 1, size, images.grey_range or FULL_RANGE)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor | Exception]:
        batch = torch.empty((len(indices), *self._shape), dtype=torch.uint8).share_memory_()
        try:
            for place, index in enumerate(indices.tolist()):
                image = self._files.read(index, self._decoder)
                if image.shape != self._shape:
                    raise ValueError(
                        f"images must have one size unless image_size is given: {self._files.name(index)} is "
                        f"{image.shape[1]}x{image.shape[2]}, the first is {self._shape[1]}x{self._shape[2]} "
                        "(height x width)"
                    )
                batch[place] = image
        except (ValueError, MemoryError) as error:  # raised by the parent, without the traceback of another process
            return indices, error
        return indices, batch


def _leave_signals_to_the_parent(worker: int) -> None:
    """Ignore what ends a run: it may come to all processes, and the parent still needs batches to stop cleanly.

    Of SIGTERM only the first is ignored, since a process that exits ends its children with it.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.signal(number, signal.SIG_DFL))
