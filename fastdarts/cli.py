"""The command `fastdarts`: its sub-commands, each a program that is imported when it is called.

Nothing here imports torch, so that --help and --version answer at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import FrameType, ModuleType

from fastdarts.config.command_line import OneLineParser
from fastdarts.config.names import did_you_mean
from fastdarts.runs.interrupt import STOP_SIGNALS, Interrupted

COMMANDS = {
    "search": "search for a cell, on images of yours or of a known data set",
    "evaluate": "train a found or published cell from scratch and measure it",
    "compare": "search by several methods and seeds, and rank what they find",
    "suite": "rank methods on the nine benchmarks of DARTS-Bench-Suite",
    "latency": "measure how long each op of a space takes on this machine",
    "specialise": "find a network for a device in a trained search network, without training",
    "draw": "draw the cells of a genotype as SVG and PNG",
    "predict": "classify images with a trained network",
    "export": "write a trained network as a torch.export program, as ONNX or as PyTorch code",
    "list": "list methods, spaces, data sets and published genotypes",
    "env": "show versions and kernels in use, for bug reports",
}
"""One line each; sub-command NAME is the module fastdarts.NAME, which has `main(argv, prog)` and `parser(prog)`."""

SHELLS = ("bash", "zsh")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that a command line names; return its exit code."""
    parser = top_parser()
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if given.version:
        from fastdarts.config.version import __version__  # reads the metadata of the installation

        print(f"fastdarts {__version__}")
        return 0
    if given.print_completion is not None:
        return run("completion", [given.print_completion], "fastdarts --print-completion")
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    if given.command not in COMMANDS:
        hint = did_you_mean(given.command, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        parser.error(f"there is no command {given.command!r}{hint}")
    return run(given.command, given.arguments, f"fastdarts {given.command}")


def run(command: str, argv: Sequence[str], prog: str) -> int:
    """Import the module of a sub-command and run its `main`; `prog` names it in messages."""
    return int(_imported(f"fastdarts.{command}", prog).main(argv, prog))


def top_parser() -> argparse.ArgumentParser:
    """Make the parser of the options that need no sub-command."""
    width = max(map(len, COMMANDS))
    parser = OneLineParser(
        prog="fastdarts",
        usage="%(prog)s COMMAND [options]",
        description="Differentiable architecture search (DARTS) on CPUs and GPUs.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:{width}}  {line}" for name, line in COMMANDS.items()),
                "",
                "'fastdarts COMMAND --help' lists the options of a command.",
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--print-completion", choices=SHELLS, help="print a script that completes commands and options")
    return parser


def _imported(name: str, prog: str) -> ModuleType:
    with _stopped_by_signals(prog):
        return import_module(name)


@contextmanager
def _stopped_by_signals(prog: str) -> Iterator[None]:
    """Inside, a signal that stops runs ends the process with one line.

    An exception could come up anywhere in the imports of torch, be caught there or end in a traceback.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        if os.environ.get("RANK", "0") == "0":  # of several processes of torchrun, one speaks
            print(f"{prog}: stopped before it began; nothing was written, run it again", file=sys.stderr, flush=True)
        os._exit(Interrupted(signum, "").exit_code)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number, handler in before.items() if handler != signal.SIG_IGN]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])
