"""Command lines made from typed options: flags, over a file, over the data set's preset."""

import argparse
import dataclasses
import json
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from fastdarts.config.named_code import UnnamedCodeError
from fastdarts.config.options import Config, ConfigType, read_file, shown, table_of, without_none


def parse_cli(
    config_type: type[ConfigType],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str = "",
) -> ConfigType:
    """The config that a command line asks for: flags, over the file of --config, over the data set's preset.

    With --resume and no --config the file is config.json in the folder of --out: a resumed run needs no other flags.
    `--help` prints and exits with 0; a line that cannot be parsed ends with one line on stderr and exit code 2.
    """
    given = vars(_parser(config_type, argv, prog, description).parse_args(argv))
    tables = {name: dict(pairs) for name, pairs in given.items() if isinstance(pairs, list)}
    file = given.pop("config", None)
    values: dict[str, Any] = {}
    if file is not None:
        values = read_file(config_type, file, given)
    elif given.get("resume") and given.get("out") is not None:
        file = given["out"] / "config.json"
        if not file.is_file():
            raise FileNotFoundError(f"resume: {given['out']} holds nothing to continue; start without --resume")
        try:
            values = read_file(config_type, file, given)
        except UnnamedCodeError:
            raise
        except ValueError as error:
            raise ValueError(f"resume: {given['out']} holds no run of this program ({error})") from error
    merged = {name: table_of(values, name) | table for name, table in tables.items()}
    return config_type(**(values | given | merged))


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: {message} (see --help)\n")


def _parser(
    config_type: type[Config], argv: Sequence[str] | None, prog: str | None, description: str
) -> argparse.ArgumentParser:
    """Flags from the fields. They have no defaults of their own: what was given can be told from what was not."""
    parser = _OneLineParser(
        prog=prog,
        usage="%(prog)s [--dataset NAME] [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="a .toml or .json file of these values; flags override it"
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
                flag, type=_name_value, nargs="+", action="extend", metavar=meta["metavar"], help=meta["help"]
            )
        elif typing.get_origin(hint) is Literal:
            choices = typing.get_args(hint)
            group.add_argument(flag, type=type(choices[0]), choices=choices, help=help_text)
        else:
            parse = _image_size if typing.get_origin(hint) is tuple else hint
            group.add_argument(flag, type=parse, metavar=meta["metavar"] or _METAVARS.get(hint), help=help_text)
    return parser


_METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _shown_defaults(config_type: type[ConfigType], argv: Sequence[str] | None) -> ConfigType:
    """The defaults that --help shows: those of the data set named on the same line."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = [field.name for field in dataclasses.fields(config_type) if field.name in ("dataset", "method")]
    for name in names:
        early.add_argument(f"--{name}", nargs="?", default=argparse.SUPPRESS)
    try:
        return config_type(**vars(early.parse_known_args(argv)[0]))
    except (ValueError, TypeError):  # said again, in one line, when all is parsed
        return config_type()


def _name_value(text: str) -> tuple[str, Any]:
    """name=value; a value that reads as JSON (a number, true, false) is one, others are text."""
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"wanted NAME=VALUE, got {text!r}")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def _image_size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    try:
        return int(height), int(width if separator else height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"wanted SIZE or HEIGHTxWIDTH in pixels, got {text!r}") from None
