"""Code of one's own (MODULE:CLASS) is imported when a person names it, never because a file does."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class UnnamedCodeError(ValueError):
    """Raised when a file asks for code that neither the command line nor the caller has named."""


def refuse_unnamed_code(
    config_type: type[Any], values: Mapping[str, Any], named: Mapping[str, Any], file: Path
) -> None:
    """Refuse values of a file that ask for code which neither the command line nor the caller has named.

    Args:
        config_type: the Config whose fields with `names_code` are looked at.
        values: of the file, by the names of fields; nothing has been made of them yet.
        named: values of the command line or the caller.
        file: for the message.

    Raises: UnnamedCodeError with the flag that names the code.
    """
    for field in dataclasses.fields(config_type):
        if field.metadata.get("names_code"):
            trusted = foreign_names(named.get(field.name))
            unnamed = [name for name in foreign_names(values.get(field.name)) if name not in trusted]
            if unnamed:
                raise UnnamedCodeError(
                    f"{file} asks for code of its own, {', '.join(map(repr, unnamed))}, which is imported only when "
                    f"you name it; if you trust it, add --{field.name} {values[field.name]} (in Python: {field.name}=)"
                )


def foreign_names(value: Any) -> list[str]:
    """Return the MODULE:CLASS parts of a name, or of names with commas between."""
    return [name.strip() for name in value.split(",") if ":" in name] if isinstance(value, str) else []


def flags_naming_code(values: Mapping[str, Any]) -> list[str]:
    """Return the words that a command line needs to name the code of its own that a run's config asks for."""
    given = [(f"--{name}", values.get(name)) for name in ("method", "methods")]
    return [word for flag, value in given if foreign_names(value) for word in (flag, str(value))]
