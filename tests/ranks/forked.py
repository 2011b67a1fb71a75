"""Start the ranks of a run as torchrun does, as forks of one process that has imported all and computed nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from spawned import free_port


class Ended(NamedTuple):
    codes: list[int]
    """Exit code of each rank, negative for a signal."""
    said: list[str]
    """What each rank printed."""
    seconds: float


class Starter:
    """Run command lines on several ranks."""

    def __init__(self, program: "subprocess.Popen[str]", folder: Path) -> None:
        self.program = program
        self.folder = folder
        self.runs = 0
        self.seconds = 0.0
        """Length of a run that nothing disturbed, which a test may note here."""

    def run(
        self, size: int, arguments: list[str], acts: dict[str, Any] | None = None, apart: Path | None = None
    ) -> Ended:
        """Return how a run on `size` ranks ended.

        Args:
            size: number of ranks.
            arguments: the command line, beginning with the program: search or evaluate.
            acts: {"rank": r, "step": s, "signal": n} sends rank r a signal before step s; {"seconds": t} after a time
                instead of a step; {"error": text} raises an error there.
            apart: a folder in which each rank gets a working folder, named by its number, as on machines without a
                common disk; None for this process's.
        """
        self.runs += 1
        said = [self.folder / f"said-{self.runs}-{rank}.txt" for rank in range(size)]
        start = time.monotonic()
        folders = [str(apart / str(rank)) if apart else "." for rank in range(size)]
        line = json.dumps([size, free_port(), arguments, acts or {}, [str(path) for path in said], folders])
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(line + "\n")
        self.program.stdin.flush()
        codes = json.loads(self.program.stdout.readline())
        return Ended(codes, [path.read_text() for path in said], time.monotonic() - start)


@contextmanager
def starter(folder: Path) -> Iterator[Starter]:
    """Yield a Starter; its processes end with it."""
    with subprocess.Popen([sys.executable, __file__], stdin=-1, stdout=-1, text=True) as program:
        yield Starter(program, folder)
        program.communicate()


def _serve() -> None:
    import sklearn.datasets  # noqa: F401 - the search does so late, and each fork again
    import torch.utils.tensorboard

    import fastdarts.evaluate
    import fastdarts.search  # noqa: F401
    from fastdarts.runs import launch

    launch._CONNECTING = timedelta(seconds=10)
    torch.set_num_threads(1)
    for line in sys.stdin:
        size, port, arguments, acts, said, folders = json.loads(line)
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                os.makedirs(folders[rank], exist_ok=True)
                os.chdir(folders[rank])
                _rank(rank, size, port, arguments, acts, said[rank])
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def _rank(rank: int, size: int, port: int, arguments: list[str], acts: dict[str, Any], said: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    file = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if acts and rank == acts["rank"]:
        _prepare(acts)
    from importlib import import_module

    import fastdarts.search

    fastdarts.search._write_results = lambda *_: None  # type: ignore[assignment] - drawing takes longer than a tiny search
    code = import_module(f"fastdarts.{arguments[0]}").main(arguments[1:])
    sys.stdout.flush()
    os._exit(code)


def _prepare(acts: dict[str, Any]) -> None:
    import threading

    from fastdarts.runs.launch import Board
    from fastdarts.runs.state import RunState

    if "seconds" in acts:  # after this process has met the others: torch itself waits for one that never came
        meet = Board.meet

        def met(board: Board) -> None:
            meet(board)
            if acts["seconds"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(acts["seconds"], lambda: os.kill(os.getpid(), signal.SIGKILL)).start()

        Board.meet = met  # type: ignore[method-assign]
        return
    step = RunState.train_step

    def acting(self: RunState) -> None:
        if self.steps_done == acts["step"]:
            if "error" in acts:
                raise OSError(acts["error"])
            os.kill(os.getpid(), acts["signal"])
        step(self)

    RunState.train_step = acting  # type: ignore[method-assign]


if __name__ == "__main__":
    _serve()
