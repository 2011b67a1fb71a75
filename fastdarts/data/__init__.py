"""Images as one uint8 tensor on the device, from known data sets, folders or anyone's Dataset, and batches of them."""

from fastdarts.data.dataset import from_dataset
from fastdarts.data.images import ImageData, split
from fastdarts.data.sources import DATASETS, load
from fastdarts.data.stream import BatchStream

__all__ = ["DATASETS", "BatchStream", "ImageData", "from_dataset", "load", "split"]
