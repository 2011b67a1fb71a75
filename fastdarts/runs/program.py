"""Run a program from its command line: exit codes, and one line on stderr for a user's mistake."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial

from fastdarts.bilevel.ranks import RankLostError, RanksError
from fastdarts.config.command_line import parse_cli
from fastdarts.config.options import ConfigType
from fastdarts.runs.console import console, level_of
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.launch import rank_of_process
from fastdarts.runs.resources import is_out_of_memory

_ERRORS = (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError, RuntimeError)


def run_cli(
    config_type: type[ConfigType],
    run: Callable[[ConfigType], int],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
) -> int:
    """Run a program whose options are a Config; see `run_program` for what it returns."""
    argv = sys.argv[1:] if argv is None else argv
    first = rank_of_process() == 0  # the others get its config
    program = partial(parse_cli, config_type, argv, prog=prog, description=description, needs_folder=first)
    return run_program(lambda: run(program()), argv, prog)


def run_parsed(
    parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int], argv: Sequence[str] | None
) -> int:
    """Run a program whose options are a parser's; see `run_program` for what it returns."""
    argv = sys.argv[1:] if argv is None else argv
    return run_program(lambda: run(parser.parse_args(argv)), argv, parser.prog)


def run_program(run: Callable[[], int], argv: Sequence[str], prog: str) -> int:
    """Run with log lines on the console and return the exit code.

    Returns: that of `run`; 2, with one line on stderr and no traceback, for a user's mistake; `Interrupted.exit_code`
        for a signal.
    """
    stderr = sys.stderr
    if rank_of_process():  # the first rank speaks for all
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with console(level_of(argv)):
            return run()
    except Interrupted as interruption:
        print(f"{prog}: {interruption}", file=sys.stderr)
        return interruption.exit_code
    except KeyboardInterrupt:
        again = "run it again, or with --resume where its folder holds a checkpoint"
        print(f"{prog}: interrupted; to continue: {again}", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # of a reader that has seen enough, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes stdout once more
        return 128 + signal.SIGPIPE
    except RanksError as error:
        told = error.told if isinstance(error, RankLostError) else rank_of_process() > 0
        if not told:
            print(f"{prog}: {error}", file=stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)  # a process group that has lost a rank may wait for it without end
    except _ERRORS as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
