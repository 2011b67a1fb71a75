"""Images in memory or streamed from files, of known data sets, folders or anyone's Dataset, and batches of them."""

from fastdarts.data.dataset import from_dataset
from fastdarts.data.images import ImageData, ImageSet, split
from fastdarts.data.opening import Streaming, open_images
from fastdarts.data.sources import DATASETS, Split, load
from fastdarts.data.stream import BatchStream
from fastdarts.data.streamed import StreamedImages

__all__ = [
    "DATASETS",
    "BatchStream",
    "ImageData",
    "ImageSet",
    "Split",
    "StreamedImages",
    "Streaming",
    "from_dataset",
    "load",
    "open_images",
    "split",
]
