"""A trained network as files that need no fastdarts: a torch.export program, an ONNX model, or PyTorch code."""

if __name__ == "__main__":  # before the imports, so that a signal while they run is answered
    import sys

    from fastdarts.cli import run

    sys.exit(run("export", sys.argv[1:], "python -m fastdarts.export"))

import argparse
import copy
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdarts.config.command_line import OneLineParser, output_flags
from fastdarts.config.files import write_atomically
from fastdarts.runs.console import LOGGER
from fastdarts.runs.folder import check_writable
from fastdarts.runs.program import run_parsed
from fastdarts.runs.trained import TrainedNetwork, load
from fastdarts.spaces.darts.discrete import EvalNetwork
from fastdarts.spaces.darts.source import ImageFormat, network_source
from fastdarts.spaces.network import DiscreteNetwork

_PROGRAM = "fastdarts export"
_ONNX_PACKAGES = ("onnx", "onnxscript")
_ONNX_TOLERANCE = 1e-3  # of the logits' size: a wrong graph differs in the first digit, rounding in the sixth

Statistics = tuple[Sequence[float], Sequence[float]]


def check_export_packages(path: Path | None = None) -> None:
    """ImportError that names what to install, unless everything that an export to `path` needs is there."""
    if path is not None and path.suffix == ".py":
        return
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        raise ImportError(f"export to ONNX needs {' and '.join(missing)}; run: pip install 'fastdarts[export]'")


class Normalised(nn.Module):
    """Normalise images, then call the network: bytes [N, C, H, W], or floats of 0 to 255 -> outputs."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images.float() / 255 - self.mean) / self.std)


def export(
    network: DiscreteNetwork, image_size: Sequence[int], path: Path, statistics: Statistics | None = None
) -> tuple[Path, Path]:
    """Write the network in eval mode, without its auxiliary head, as `path`.pt2 and `path`.onnx.

    Both take images [N, in_channels, H, W] named "images", for any N, and give "logits" [N, num_classes]. Where
    onnxruntime is installed, the ONNX file's logits are compared with the network's.

    Args:
        network: stays as it is.
        image_size: (H, W), fixed in the files.
        path: where to; a suffix .pt2 or .onnx is replaced by each.
        statistics: mean and standard deviation of each channel, for files that take bytes (uint8) and normalise them;
            None for files that take normalised float32 images.

    Returns: the two files, for `torch.export.load` and for any ONNX runtime.

    Raises: ImportError without the onnx packages; DiskFullError, OSError; RuntimeError if ONNX gives other logits.
    """
    check_export_packages()
    network = copy.deepcopy(network).cpu().float().to(memory_format=torch.contiguous_format).eval()
    if hasattr(network, "auxiliary_head"):
        del network.auxiliary_head
    shape = 2, network.in_channels, *image_size
    images = torch.zeros(shape, dtype=torch.uint8 if statistics else torch.float32)
    module = Normalised(network, *statistics) if statistics else network
    program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    onnx_program = torch.onnx.export(
        program, input_names=["images"], output_names=["logits"], dynamic_shapes=({0: "N"},), verbose=False
    )
    assert onnx_program is not None  # it is None for the old exporter alone
    model = onnx_program.model_proto.SerializeToString()
    if find_spec("onnxruntime") is not None:
        _check_onnx(model, module, images)

    base = path.with_suffix("") if path.suffix in (".pt2", ".onnx") else path
    files = base.with_name(f"{base.name}.pt2"), base.with_name(f"{base.name}.onnx")
    write_atomically(files[0], buffer.getvalue())
    write_atomically(files[1], model)
    return files


def _check_onnx(model: bytes, module: nn.Module, images: Tensor) -> None:
    """Raise a RuntimeError unless a model gives the logits of the module, for batches of 1 and 3."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for count in (1, 3):
        batch = torch.rand(count, *images.shape[1:], generator=generator)
        batch = (batch * 255).to(torch.uint8) if images.dtype == torch.uint8 else batch
        ours = torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])
        with torch.inference_mode():
            plain = module(batch)
        scale = max(float(plain.abs().max()), 1.0)
        if ours.shape != plain.shape or float((ours - plain).abs().max()) > _ONNX_TOLERANCE * scale:
            raise RuntimeError(f"the ONNX model's logits differ from the network's by more than {_ONNX_TOLERANCE:.0e}")


def write_source(trained: TrainedNetwork, path: Path) -> tuple[Path, Path]:
    """Write a trained network as PyTorch code that does not import fastdarts, and its weights beside it.

    Args:
        trained: of DARTS' space.
        path: of the code, NAME.py; the weights are NAME.pt.

    Returns: the two files.

    Raises: ValueError for another space, or ops of the user's own.
    """
    if not isinstance(trained.network, EvalNetwork):
        raise ValueError(f"{path.name}: only networks of DARTS' space are written as code; take .pt2 or .onnx")
    shape = (len(trained.mean), *trained.transform_shape[1:])
    images = ImageFormat(shape, trained.mean, trained.std, trained.takes_bytes)
    weights = path.with_suffix(".pt")
    code = network_source(trained.architecture, trained.options, images, weights.name)
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu() for name, tensor in trained.network.state_dict().items()}, buffer)
    write_atomically(path, code)
    write_atomically(weights, buffer.getvalue())
    return path, weights


def export_run(folder: Path, path: Path) -> tuple[Path, Path]:
    """Export the network that an evaluation has trained into `folder`, with the normalisation of its images inside.

    Args:
        folder: of a finished evaluation.
        path: NAME.py for code and weights (see `write_source`), else see `export`.

    Raises: FileNotFoundError or ValueError unless a finished evaluation is there; those of `export`.
    """
    check_export_packages(path)
    check_writable("out", path.parent)
    return export_trained(load(folder, "cpu"), path)


def export_trained(trained: TrainedNetwork, path: Path) -> tuple[Path, Path]:
    """Export a trained network, see `export_run`."""
    if path.suffix == ".py":
        return write_source(trained, path)
    statistics = (trained.mean, trained.std) if trained.takes_bytes else None
    return export(trained.network, trained.transform_shape[1:], path, statistics)


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(
        prog=prog,
        description="Write the network that an evaluation trained as FILE.pt2 (torch.export) and FILE.onnx, or, for "
        "FILE.py, as PyTorch code with the weights beside it.",
        parents=[output_flags()],
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a finished evaluation")
    made.add_argument("--out", type=Path, metavar="FILE", help="name of the files (default: RUN/network)")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    for path in export_run(given.run, given.out or given.run / "network"):
        print(path)
    LOGGER.info("they normalise the images themselves; the classes are in %s", given.run / "result.json")
    return 0
