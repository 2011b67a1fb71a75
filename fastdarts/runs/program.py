"""Run a program from its command line: exit codes, and one line on stderr for a user's mistake."""

import signal
import sys
from collections.abc import Callable, Sequence

from fastdarts.config.command_line import parse_cli
from fastdarts.config.options import ConfigType
from fastdarts.runs.interrupt import Interrupted
from fastdarts.runs.resources import is_out_of_memory


def run_cli(
    config_type: type[ConfigType],
    run: Callable[[ConfigType], int],
    argv: Sequence[str] | None,
    prog: str,
    description: str,
) -> int:
    """Parse, run and return the exit code: 2, with one line on stderr and no traceback, for a user's mistake; 128 + the
    signal's number for an interruption."""
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return run(parse_cli(config_type, argv, prog=prog, description=description))
    except Interrupted as interruption:
        print(f"{prog}: {interruption}", file=sys.stderr)
        return 128 + interruption.signum
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, TypeError, OSError, ImportError, MemoryError, FloatingPointError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
