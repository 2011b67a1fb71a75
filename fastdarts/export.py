"""A trained network as files that need no fastdarts: a torch.export program and an ONNX model."""

import argparse
import copy
import io
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from fastdarts.config.command_line import OneLineParser, output_flags
from fastdarts.config.files import write_atomically
from fastdarts.runs import checkpoint
from fastdarts.runs.console import LOGGER
from fastdarts.runs.folder import check_writable
from fastdarts.runs.program import run_parsed
from fastdarts.spaces.network import DiscreteNetwork
from fastdarts.spaces.registry import read_architecture, space_of
from fastdarts.spaces.space import material_of

_PROGRAM = "fastdarts export"
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


def export_run(folder: Path, path: Path) -> tuple[Path, Path]:
    """Export the network that an evaluation has trained into `folder`; see `export`.

    Raises: FileNotFoundError or ValueError unless a finished evaluation is there; those of `export`.
    """
    check_export_packages()
    check_writable("out", path.parent)
    saved = checkpoint.load(folder / "checkpoint.pt", "evaluation")
    if not (folder / "result.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished evaluation: it has no result.json; resume it first")
    architecture = read_architecture(saved["genotype"])
    if material_of(space_of(architecture)) == "text":
        raise ValueError(f"{folder} holds a language model; only networks for images are exported")
    channels, *image_size = json.loads((folder / "result.json").read_text(encoding="utf-8"))["image_shape"]
    config, weights = saved["config"], saved["network"]
    network = space_of(architecture).discrete(
        architecture,
        C=config["init_channels"],
        num_classes=len(weights["classifier.weight"]),
        layers=config["layers"],
        auxiliary=config["auxiliary"],
        in_channels=channels,
        stem=config["stem"],
    )
    network.load_state_dict(weights)
    return export(network, image_size, path)


def parser(prog: str = _PROGRAM) -> argparse.ArgumentParser:
    """Make the program's parser."""
    made = OneLineParser(
        prog=prog,
        description="Write the network that an evaluation trained as FILE.pt2 (torch.export) and FILE.onnx.",
        parents=[output_flags()],
    )
    made.add_argument("run", type=Path, metavar="RUN", help="folder of a finished evaluation")
    made.add_argument("--out", type=Path, metavar="FILE", help="the files' name without suffix (default: RUN/network)")
    return made


def main(argv: Sequence[str] | None = None, prog: str = _PROGRAM) -> int:
    return run_parsed(parser(prog), _run, argv)


def _run(given: argparse.Namespace) -> int:
    for path in export_run(given.run, given.out or given.run / "network"):
        print(path)
    LOGGER.info("they take normalised images; mean, std and classes are in %s", given.run / "result.json")
    return 0
