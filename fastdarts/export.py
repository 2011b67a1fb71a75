"""A trained network as files that need no fastdarts: a torch.export program and an ONNX model."""

import copy
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from fastdarts.config.files import write_atomically
from fastdarts.spaces.network import DiscreteNetwork

_ONNX_PACKAGES = ("onnx", "onnxscript")


def check_export_packages() -> None:
    """ImportError that names what to install, unless everything that `export` needs is there."""
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {' and '.join(missing)}; run: pip install 'fastdarts[export]'")


def export(network: DiscreteNetwork, image_size: Sequence[int], path: Path) -> tuple[Path, Path]:
    """Write the network in eval mode, without its auxiliary head, as `path`.pt2 and `path`.onnx.

    Both take normalised float32 images [N, in_channels, H, W] named "images" and give "logits" [N, num_classes].

    Args:
        network: stays as it is.
        image_size: (H, W), fixed in the files.
        path: where to; a suffix .pt2 or .onnx is replaced by each.

    Returns: the two files, for `torch.export.load` and for any ONNX runtime.

    Raises: ImportError without the onnx packages; DiskFullError, OSError.
    """
    check_export_packages()
    network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format).eval()
    if hasattr(network, "auxiliary_head"):
        del network.auxiliary_head
    images = torch.zeros(2, network.in_channels, *image_size)
    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    onnx_program = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "N"},), verbose=False
    )
    assert onnx_program is not None  # it is None for the old exporter alone

    base = path.with_suffix("") if path.suffix in (".pt2", ".onnx") else path
    files = base.with_name(f"{base.name}.pt2"), base.with_name(f"{base.name}.onnx")
    write_atomically(files[0], buffer.getvalue())
    write_atomically(files[1], onnx_program.model_proto.SerializeToString())
    return files
