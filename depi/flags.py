"""Commands configured by dataclasses: one flag per field, parsed by draccus."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import TypeVar, get_type_hints

import draccus
from draccus.utils import DecodingError

from depi.errors import UserError

Config = TypeVar("Config")


def parse_flags(
    config_class: type[Config], args: Sequence[str], command: str, positionals: Sequence[str] = ()
) -> Config:
    """Parse `args` into `config_class`.

    Flags are the fields' names; `--list-rules` and `--list_rules` are the same, and a boolean flag
    may stand alone for `=true`. Leading arguments without dashes fill `positionals` in order.

    Raises:
        UserError: unknown flag, value of the wrong type, or a value that the dataclass refuses.
        SystemExit: `--help`, after printing it.
    """
    normalised = _normalise(config_class, args, positionals)
    if "--help" in normalised or "-h" in normalised:
        print(f"usage: {' '.join([command, *(name.upper() for name in positionals)])} [--flag=value ...]")
        print(f"\n{(config_class.__doc__ or '').strip()}\n")
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            return draccus.parse(config_class, args=normalised)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = complaints.getvalue().strip().splitlines()[-1].removeprefix("-: ").removeprefix("error: ")
        raise UserError(f"{command}: {reason}; see `{command} --help`") from None
    except DecodingError as error:
        raise UserError(f"{command}: {' '.join(str(error).split())}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{command}: {error}") from None


def _normalise(config_class: type, args: Sequence[str], positionals: Sequence[str]) -> list[str]:
    hints = get_type_hints(config_class)
    booleans = {f"--{field.name}" for field in dataclasses.fields(config_class) if hints[field.name] is bool}
    rest = list(args)
    normalised = []
    for name in positionals:
        if rest and not rest[0].startswith("-"):
            normalised.append(f"--{name}={rest.pop(0)}")
    for position, arg in enumerate(rest):
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        follower = rest[position + 1] if position + 1 < len(rest) else "--"
        if name in booleans and not equals and follower.lower() not in ("true", "false"):
            equals, value = "=", "true"
        normalised.append(name + equals + value)
    return normalised
