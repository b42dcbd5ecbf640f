"""Commands configured by dataclasses: one flag per field, parsed by draccus."""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args, get_type_hints

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError

from depi.errors import UserError


def parse_flags[Config](
    config_class: type[Config],
    args: Sequence[str],
    command: str,
    positionals: Sequence[str] = (),
    parse: Callable[[list[str]], Config] | None = None,
) -> Config:
    """Parse `args` into `config_class`.

    Flags are the fields' names; `--list-rules` and `--list_rules` are the same, and a boolean flag
    may stand alone for `=true`. Leading arguments without dashes fill `positionals` in order.

    Args:
        config_class: a dataclass; its docstring is the first part of `--help`.
        args: what follows the command.
        command: the command's name, for messages.
        positionals: fields that may be given without a flag, in order.
        parse: how to turn normalised arguments into a config, where plain draccus is not enough.

    Raises:
        UserError: unknown flag, value of the wrong type, a value that the dataclass refuses, or an empty
            path, which would silently mean the current folder.
        SystemExit: `--help`, after printing it.
    """
    normalised = _normalise(config_class, args, positionals)
    _refuse_empty_paths(config_class, normalised, command)
    if "--help" in normalised or "-h" in normalised:
        print(f"usage: {' '.join([command, *(name.upper() for name in positionals)])} [--flag=value ...]")
        print(f"\n{(config_class.__doc__ or '').strip()}\n")
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            return parse(normalised) if parse else draccus.parse(config_class, args=normalised)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        reason = complaints.getvalue().strip().splitlines()[-1].partition("error: ")[2]
        raise UserError(f"{command}: {reason}; see `{command} --help`") from None
    except DecodingError as error:
        flag = f"--{'.'.join(error.key_path)}: " if error.key_path else ""
        raise UserError(f"{command}: {flag}{' '.join(error.message.split())}") from None
    except (ParsingError, ValueError, TypeError) as error:
        # draccus hides what a dataclass's own check said behind "could not instantiate".
        said = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise UserError(f"{command}: {' '.join(str(said).split())}") from None
    except yaml.YAMLError as error:
        raise UserError(
            f"{command}: a value or file is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    except OSError as error:
        raise UserError(f"{command}: cannot read {error.filename}: {error.strerror}") from None


def _normalise(config_class: Any, args: Sequence[str], positionals: Sequence[str]) -> list[str]:
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


def _refuse_empty_paths(config_class: Any, args: Sequence[str], command: str) -> None:
    hints = get_type_hints(config_class)
    paths = {f"--{name}" for name, hint in hints.items() if Path in (hint, *get_args(hint))}
    for arg, follower in zip_longest(args, args[1:]):
        name, equals, value = arg.partition("=")
        if name in paths and (value if equals else follower) == "":
            raise UserError(f"{command}: {name} is empty: name a path")
