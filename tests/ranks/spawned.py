"""Run a function on several ranks of a gloo process group on this machine."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

# Ranks are forks of one process that has imported all and computed nothing.
multiprocessing.set_forkserver_preload(["fastdarts.search", "fastdarts.evaluate"])


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def on_ranks(size: int, function: Callable[..., Any], tmp_path: Path, *arguments: Any) -> list[Any]:
    """Return what function(*arguments) returns on each of `size` ranks, one thread each; it must be importable."""
    folder = tmp_path / f"ranks-{size}-{free_port()}"
    folder.mkdir()
    start_processes(_run, (size, free_port(), folder, function, arguments), size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _run(rank: int, size: int, port: int, folder: Path, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    result = function(*arguments)
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()
