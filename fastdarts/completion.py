"""Shell completion: `fastdarts --print-completion bash|zsh`, by shtab."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from fastdarts import methods
from fastdarts.cli import COMMANDS, top_parser
from fastdarts.runs.program import run_program


def main(argv: Sequence[str], prog: str) -> int:
    """Print the script for the shell that `argv` names."""
    (shell,) = argv

    def run() -> int:
        print(script(shell))
        return 0

    return run_program(run, (), prog)


def script(shell: str) -> str:
    """Return the completion script.

    Raises: ImportError that says what to install.
    """
    if find_spec("shtab") is None:
        raise ImportError("completion needs shtab; run: pip install 'fastdarts[completion]'")
    import shtab

    parser = top_parser()
    commands = parser.add_subparsers()
    for name, line in COMMANDS.items():
        program = import_module(f"fastdarts.{name}").parser(f"fastdarts {name}")
        for action in program._actions:
            if action.type is Path:
                action.complete = shtab.FILE
            elif action.dest == "method":
                action.choices = methods.NAMES
        commands.add_parser(name, parents=[program], add_help=False, help=line)
    return str(shtab.complete(parser, shell))
