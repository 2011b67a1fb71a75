"""Make a checkout importable without installing it, with what a kit brings."""

import json
import os
import shutil
import sys
import sysconfig
import tarfile
from pathlib import Path

from benchmarks.gpu_day.day import ROOT

KIT = ROOT / "build" / "gpu-kit.tar.gz"


def unpack(archive: Path, work: Path) -> Path:
    """Unpack a kit made by `kit.py` below `work` and return its folder.

    Triton's cache names its files by their whole paths, so these are set to the new folder.
    """
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    kit = work / "gpu-kit"
    for group in kit.glob("triton/*/__grp__*.json"):
        children = json.loads(group.read_text())["child_paths"]
        group.write_text(json.dumps({"child_paths": {name: str(group.parent / name) for name in children}}))
    return kit


def images(given: Path | None, kit: Path | None, work: Path) -> Path | None:
    """Return the folder of images: `given`, unpacked if it is an archive, or the kit's; None without either."""
    if given is None and kit is not None:
        given = next(kit.glob("*images.tar.xz"), None)
    if given is None or given.is_dir():
        return given
    folder = work / "images"
    with tarfile.open(given) as tar:
        tar.extractall(folder, filter="data")
    return folder


def environment(kit: Path | None, work: Path, stand_in: bool) -> dict[str, str]:
    """Return the environment of processes that import the package from this checkout, and the kit's kernels.

    Installing maps kernels/ to fastdarts.kernels; a folder of links does so too, and needs neither pip nor network.
    """
    package = work / "path" / "fastdarts"
    package.mkdir(parents=True, exist_ok=True)
    extension = list(kit.glob(f"lib/fastdarts/_C*{sysconfig.get_config_var('EXT_SUFFIX')}")) if kit else []
    own = [entry for entry in (ROOT / "fastdarts").iterdir() if not (extension and entry.name == extension[0].name)]
    for entry in (*own, ROOT / "kernels", *extension):
        link = package / entry.name
        if not link.is_symlink():
            link.symlink_to(entry)
    paths = [package.parent, ROOT, ROOT / "tests"]
    found = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONUNBUFFERED": "1"}
    if stand_in:
        found |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    else:
        found.pop("TRITON_INTERPRET", None)
        if kit:
            found["TRITON_CACHE_DIR"] = str(kit / "triton")
    return found


def tool(name: str) -> str | None:
    """Return the path of one of NVIDIA's programs, also where it is not on PATH."""
    known = [*Path("/usr/local").glob("cuda*/bin"), *Path("/usr/local").glob("cuda*/compute-sanitizer")]
    known += Path("/opt/nvidia").glob("nsight-compute/*")
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, known)))


def python() -> list[str]:
    """Return the command of an interpreter that looks for modules in PYTHONPATH only, not in its working folder."""
    return [sys.executable, "-P"]
