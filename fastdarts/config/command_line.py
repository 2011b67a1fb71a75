"""Command lines made from typed options: flags, over a file, over the data set's preset."""

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from fastdarts.config.named_code import UnnamedCodeError
from fastdarts.config.names import did_you_mean
from fastdarts.config.options import Config, ConfigType, read_file, shown, table_of, without_none
from fastdarts.config.plugins import FLAG, load_plugins


def parse_cli(
    config_type: type[ConfigType],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str = "",
    needs_folder: bool = True,
) -> ConfigType:
    """Return the config that a command line asks for: flags, over the file of --config, over the data set's preset.

    With --resume and no --config the file is config.json in the folder of --out: a resumed run needs no other flags.
    Without `needs_folder` that file may be missing, since the run gets the config of another process.
    `--help` prints and exits with 0; a line that cannot be parsed ends with one line on stderr and exit code 2.
    """
    load_plugins(sys.argv[1:] if argv is None else argv)
    given = vars(build_parser(config_type, argv, prog, description).parse_args(argv))
    for name in (*OUTPUT_FLAGS, "plugin"):
        given.pop(name, None)
    tables = {name: dict(pairs) for name, pairs in given.items() if isinstance(pairs, list)}
    file = given.pop("config", None)
    values: dict[str, Any] = {}
    if file is not None:
        values = read_file(config_type, file, given)
    elif given.get("resume") and given.get("out") is not None:
        file = given["out"] / "config.json"
        if needs_folder and not file.is_file():
            raise FileNotFoundError(f"resume: {given['out']} holds nothing to continue; start without --resume")
        try:
            values = read_file(config_type, file, given) if file.is_file() else {}
        except UnnamedCodeError:
            raise
        except ValueError as error:
            raise ValueError(f"resume: {given['out']} holds no run of this program ({error})") from error
    merged = {name: table_of(values, name) | table for name, table in tables.items()}
    return config_type(**(values | given | merged))


class OneLineParser(argparse.ArgumentParser):
    """Parse flags; errors are one line, with a suggestion for a misspelt flag."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; end the program with code 2 for those that are unknown."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag for action in self._actions for flag in action.option_strings]
            hint = did_you_mean(unknown[0].partition("=")[0], flags) if unknown[0].startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return known

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


OUTPUT_FLAGS = ("quiet", "verbose")


def output_flags() -> argparse.ArgumentParser:
    """Return a parser of -q and -v, to be a parent of a program's parser."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("-q", "--quiet", action="store_true", help="print results, warnings and errors only")
    group.add_argument("-v", "--verbose", action="store_true", help="print details, too")
    return parser


def one_of(names: Sequence[str]) -> Callable[[str], str]:
    """Return a parser of one of the names; its error suggests the closest one."""

    def parse(text: str) -> str:
        if text not in names:
            hint = did_you_mean(text, names)
            raise argparse.ArgumentTypeError(f"invalid choice: {text!r}{hint} (choose from {', '.join(names)})")
        return text

    return parse


def build_parser(
    config_type: type[Config], argv: Sequence[str] | None = (), prog: str | None = None, description: str = ""
) -> argparse.ArgumentParser:
    """Make a flag of each field. Flags have no defaults, so explicit values are distinguishable.

    Args:
        config_type: whose fields become flags.
        argv: the command line; --help shows the defaults of the data set and the method that it names.
        prog: name of the program in messages.
        description: first lines of --help.
    """
    parser = OneLineParser(
        prog=prog,
        parents=[output_flags()],
        usage="%(prog)s [--dataset NAME] [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a .toml, .yaml or .json file of these values; flags override it"
    )
    parser.add_argument(
        FLAG, action="append", metavar="MODULE", help="import a module of yours that registers ops, spaces or methods"
    )
    defaults = _shown_defaults(config_type, argv)
    parser.epilog = defaults.help_notes()
    hints = typing.get_type_hints(config_type)
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(config_type):
        meta = field.metadata
        group = groups.setdefault(meta["group"], None) or parser.add_argument_group(meta["group"])
        groups[meta["group"]] = group
        flag = "--" + field.name.replace("_", "-")
        default = getattr(defaults, field.name)
        help_text = meta["help"] if default is None else f"{meta['help']} (default: {shown(default)})"
        hint, _ = without_none(hints[field.name])
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=help_text)
        elif typing.get_origin(hint) is dict:
            group.add_argument(  # given twice, it adds to the pairs before
                flag, type=parse_name_value, nargs="+", action="extend", metavar=meta["metavar"], help=meta["help"]
            )
        elif typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            value: Callable[[str], Any] = one_of(choices) if isinstance(choices[0], str) else type(choices[0])
            group.add_argument(flag, type=value, choices=choices, help=help_text)
        else:
            parse = hint
            if typing.get_origin(hint) is tuple:
                parse = _names if typing.get_args(hint)[-1] is ... else parse_image_size
            group.add_argument(flag, type=parse, metavar=meta["metavar"] or _METAVARS.get(hint), help=help_text)
    return parser


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _shown_defaults(config_type: type[ConfigType], argv: Sequence[str] | None) -> ConfigType:
    """Return the defaults that --help shows: those of the data set named on the same line."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = [field.name for field in dataclasses.fields(config_type) if field.name in ("dataset", "method", "space")]
    for name in names:
        early.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS)
    try:
        return config_type(**vars(early.parse_known_args(argv)[0]))
    except (ValueError, TypeError):  # said again, in one line, when all is parsed
        return config_type()


def parse_name_value(text: str) -> tuple[str, Any]:
    """Return name and value of NAME=VALUE.

    A value that reads as JSON (a number, true, false), or as such values with commas, is one or a list of them; others
    are text.
    """
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"wanted NAME=VALUE, got {text!r}")
    for words in (value, f"[{value}]") if "," in value else (value,):
        try:
            return name.replace("-", "_"), json.loads(words)
        except ValueError:
            continue
    return name.replace("-", "_"), value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


def parse_image_size(text: str) -> tuple[int, int]:
    """Return height and width of SIZE or HxW."""
    height, separator, width = text.partition("x")
    try:
        return int(height), int(width if separator else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted SIZE or HEIGHTxWIDTH in pixels, got {text!r}") from None
