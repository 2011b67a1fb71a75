"""Log lines of the programs on the console. The library itself only logs, to the logger "fastdarts"."""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from fastdarts.config.command_line import output_flags

LOGGER = logging.getLogger("fastdarts")


class _Console(logging.Handler):
    """Write lines to stdout, and those of warnings to stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno >= logging.WARNING else sys.stdout
        tqdm.write(self.format(record), file=stream)
        stream.flush()


def level_of(argv: Sequence[str]) -> int:
    """Return the logging level that -q or -v asks for; INFO without them."""
    try:
        given = output_flags().parse_known_args(argv)[0]
    except argparse.ArgumentError:  # the program's own parser reports it
        return logging.INFO
    if "quiet" in given:
        return logging.WARNING
    return logging.DEBUG if "verbose" in given else logging.INFO


@contextmanager
def console(level: int) -> Iterator[None]:
    """Show the lines of `LOGGER` from this level on."""
    handler, before = _Console(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(level)
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before)


def quiet() -> bool:
    """Return whether the logger was set to warnings and errors only; a library's default does not count."""
    return LOGGER.level > logging.INFO
