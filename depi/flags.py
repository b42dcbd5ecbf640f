"""Commands configured by dataclasses: one flag per field, parsed by draccus."""

import contextlib
import dataclasses
import difflib
import inspect
import io
import logging
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import draccus
import yaml
from draccus.utils import DecodingError, ParsingError

from depi.errors import UserError, one_line
from depi.flag_sources import Flag, Flags, read_flags
from depi.other_programs import HYDRA, SHORT, VALUES, named_configuration, replacement, todays_name

logger = logging.getLogger(__name__)

_SIMPLE_TYPES: dict[str, object] = {
    "int": int,
    "float": float,
    "bool": bool,
    "int | None": int | None,
    "float | None": float | None,
    "bool | None": bool | None,
}
_COLUMN = 38


def parse_flags[Config](
    config_class: type[Config],
    args: Sequence[str],
    command: str,
    positionals: Sequence[str] = (),
    parse: Callable[[list[str]], Config] | None = None,
) -> Config:
    """Parse `args` into `config_class`; see `check_flags` for how they may be written.

    Args:
        config_class: a dataclass; its docstring is the first part of `--help`.
        args: what follows the command.
        command: the command's name, for messages.
        positionals: fields that may be given without a flag, in order.
        parse: turns normalised arguments into a config, where plain draccus is not enough.

    Raises:
        UserError: unknown flag, value of the wrong type, a value that the dataclass refuses, or an empty
            path, which would silently mean the current folder.
        SystemExit: `--help`, after printing it.
    """
    source = Path(inspect.getsourcefile(config_class) or "")
    normalised = check_flags(source, config_class.__name__, args, command, positionals)
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
        raise UserError(f"{command}: {_decoding_problem(error)}") from None
    except (ParsingError, ValueError, TypeError) as error:
        # draccus hides the message of a dataclass's own check behind "could not instantiate".
        said = error.__cause__ if isinstance(error.__cause__, ValueError) else error
        raise UserError(f"{command}: {one_line(said)}") from None
    except yaml.YAMLError as error:
        raise UserError(
            f"{command}: a value or file is not valid YAML: {' '.join(str(error).split())}"
        ) from None
    except OSError as error:
        raise UserError(f"{command}: cannot read {error.filename}: {error.strerror}") from None


def take_flags(args: Sequence[str], config_class: type) -> tuple[list[str], list[str]]:
    """The flags of a dataclass among `args`, `--help` being one of them, and the others."""
    names = {"help", *(field.name for field in dataclasses.fields(config_class))}
    taken: list[str] = []
    others: list[str] = []
    chosen = others
    for arg in args:
        if arg.startswith("-"):
            name = arg.lstrip("-").partition("=")[0].replace("-", "_")
            chosen = taken if name in names or arg == "-h" else others
        chosen.append(arg)
    return taken, others


def check_ranges(config: object, prefix: str = "", /, **bounds: tuple[float, float | None]) -> None:
    """Check the numbers of a configuration; one that is None passes.

    Args:
        config: has the flags as attributes.
        prefix: of the flags' names, such as "eval.".
        bounds: flag -> the least and the largest value that are allowed, the latter None for no limit.

    Raises:
        UserError: a number is outside its bounds.
    """
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is not None and not (value >= low and (high is None or value <= high)):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise UserError(f"--{prefix}{name} must be {allowed}, not {value}")


def check_flags(
    source: Path,
    class_name: str,
    args: Sequence[str],
    command: str,
    positionals: Sequence[str] = (),
) -> list[str]:
    """Check what can be checked without importing the configuration class, and return normal arguments.

    Flags are the fields' names; `--list-rules` and `--list_rules` are the same, a boolean flag may stand
    alone for `=true`, lists may do without brackets (`--episodes=0,1`, `--episodes 0 1`). Leading arguments
    without dashes fill `positionals` in order. `--help=policy` prints one section of the help. What users of
    other programs may type is answered as `depi.other_programs` says; some of it is accepted, with a hint.

    Args:
        source: the file of the configuration class.
        class_name: its name there.
        args: what follows the command.
        command: the command's name, for messages.
        positionals: fields that may be given without a flag, in order.

    Raises:
        UserError: an unknown flag, a number or boolean that is not valid, or an empty path.
        SystemExit: `--help`, after printing it.
    """
    flags = read_flags(source, class_name)
    for position, arg in enumerate(args):
        if arg in ("-h", "--help") or arg.startswith("--help="):
            follower = args[position + 1] if position + 1 < len(args) else ""
            section = arg.partition("=")[2] or ("" if follower.startswith("-") else follower)
            print(help_text(flags, command, positionals, section, _chosen_types(flags, args)))
            raise SystemExit(0)
    chosen = _chosen_types(flags, args)
    for name, kind in chosen.items():
        if kind not in flags.choices[name]:
            gone = VALUES.get(f"{name}.type", {}).get(kind or "")
            why = f": {gone}" if gone else f" is none of {', '.join(flags.choices[name])}"
            raise UserError(f"{command}: --{name}.type={kind}{why}")
    known = flags.known(chosen)
    normalised = _normalise(known, args, positionals, command)
    taken = False  # whether the argument before is a flag that waits for its value
    for arg, follower in zip_longest(normalised, normalised[1:], fillvalue="--"):
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            given = value if equals else None if follower.startswith("--") else follower
            _check_flag(flags, known, name[2:], given, command)
            taken = not equals
        elif not taken:
            raise UserError(f"{command}: {_stray(arg, command)}; see `{command} --help`")
        else:
            taken = False
    return normalised


def _stray(arg: str, command: str) -> str:
    """What to say of an argument that no flag takes."""
    name, equals, value = arg.partition("=")
    remedy = replacement(name, command) if equals else named_configuration(arg, command)
    if remedy is not None:
        return f"{arg} is not a flag here: {remedy}"
    if name in SHORT:
        return f"{arg!r} is not a flag here: use --{SHORT[name]}={value or '...'}"
    if not equals:
        return f"{arg!r} belongs to no flag: flags are --name=value"
    return f"{arg} is written --{HYDRA.get(name, name)}={value}"


def _chosen_types(flags: Flags, args: Sequence[str]) -> dict[str, str | None]:
    """The types chosen by flags such as `--policy.type=pi0`."""
    chosen: dict[str, str | None] = {}
    for arg, follower in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        if name.startswith("--") and name.endswith(".type") and name[2:-5] in flags.choices:
            chosen[name[2:-5]] = value if equals else follower
    return chosen


def _normalise(
    known: Mapping[str, Flag], args: Sequence[str], positionals: Sequence[str], command: str
) -> list[str]:
    rest = list(args)
    normalised = []
    for name in positionals:
        if rest and not rest[0].startswith("-"):
            normalised.append(f"--{name}={rest.pop(0)}")
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            normalised.append(name + equals + value)
            continue
        typed = name[2:].replace("-", "_")
        name = "--" + todays_name(typed, command, known)
        if name != f"--{typed}":
            logger.warning("%s: --%s is called %s; the old name is accepted for now", command, typed, name)
        flag = known.get(name[2:])
        types = flag.types if flag else set()
        if types & {"list", "tuple"} and "Path" not in types:
            values = [value] if equals else []
            while rest and not rest[0].startswith("--") and not equals:
                values.append(rest.pop(0))
            equals, value = "=", _as_list(values)
        elif "bool" in types and not equals:
            has_value = bool(rest) and rest[0].lower() in ("true", "false")
            equals, value = "=", rest.pop(0) if has_value else "true"
        normalised.append(name + equals + value)
    return normalised


def _as_list(values: list[str]) -> str:
    if len(values) == 1 and (values[0].startswith("[") or values[0] in ("null", "None", "")):
        return values[0]
    return f"[{','.join(values)}]"


def _check_flag(
    flags: Flags,
    known: Mapping[str, Flag],
    name: str,
    value: str | None,
    command: str,
) -> None:
    """Raise a UserError for a wrong flag; draccus refuses one without a value (None)."""
    group, _, field = name.rpartition(".")
    if group in flags.choices and field in ("type", "path"):
        return
    if name == "config_path" or name in flags.sections or name in flags.choices:
        return
    flag = known.get(name)
    if flag is None:
        raise UserError(f"{command}: {_unknown(flags, known, name, command)}")
    if value is None:
        return
    if "Path" in flag.types and not value:
        raise UserError(f"{command}: --{name} is empty: name a path")
    if flag.type in _SIMPLE_TYPES:
        try:
            draccus.decode(_SIMPLE_TYPES[flag.type], yaml.safe_load(value))
        except DecodingError as error:
            raise UserError(f"{command}: --{name}: {_decoding_problem(error)}") from None
        except yaml.YAMLError:
            raise UserError(f"{command}: --{name}: {value!r} is no {flag.type}") from None


def _decoding_problem(error: DecodingError) -> str:
    flag = f"--{'.'.join(error.key_path)}: " if error.key_path else ""
    return f"{flag}{one_line(error.message)}"


def _unknown(flags: Flags, known: Mapping[str, Flag], name: str, command: str) -> str:
    remedy = replacement(name, command)
    if remedy is not None:
        return f"--{name} is not a flag here: {remedy}"
    takers = [
        f"--{group}.type={kind}"
        for group, choice in flags.choices.items()
        for kind, choices in choice.items()
        if any(flag.name == name for flag in choices)
    ]
    if takers:
        return f"--{name} goes with {' or '.join(takers)}"
    names = [*known, *(f"{group}.{field}" for group in flags.choices for field in ("type", "path"))]
    last = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, names, n=1)
    close = close or [candidate for candidate in names if candidate.endswith(("." + last, "_" + last))]
    hint = f"did you mean --{close[0]}?" if close else "there is none of a similar name;"
    return f"unknown flag --{name}: {hint} see `{command} --help`"


def help_text(
    flags: Flags,
    command: str,
    positionals: Sequence[str] = (),
    section: str = "",
    types: Mapping[str, str | None] | None = None,
) -> str:
    """The text of `--help`, or of `--help=SECTION`.

    Raises:
        UserError: there is no such section.
    """
    if section in flags.choices:
        return "\n".join(_choice_lines(section, flags.choices[section], (types or {}).get(section)))
    if section in flags.sections:
        return "\n".join(_line(flag) for flag in flags.own if flag.name.startswith(f"{section}."))
    if section:
        names = ", ".join([*flags.sections, *flags.choices]) or "no sections"
        raise UserError(f"{command}: --help={section} is none of {names}")
    usage = f"usage: {' '.join([command, *(name.upper() for name in positionals)])} [--flag=value ...]"
    lines = [usage, "", flags.doc.strip(), ""]
    lines += [_line(flag) for flag in flags.own if "." not in flag.name]
    for name in (name for name in flags.sections if name not in flags.foreign):
        title = flags.sections[name]
        inside = [flag for flag in flags.own if flag.name.rpartition(".")[0] == name]
        lines += ["", f"{name}: {title}" if title else name, *map(_line, inside)]
    if flags.choices or flags.foreign:
        lines.append("")
    for name, choice in flags.choices.items():
        kinds = list(choice)
        shown = "|".join(kinds[:3]) + ("|..." if len(kinds) > 3 else "")
        lines.append(_columns(f"--{name}.type={shown}", f"and more flags: --help={name} lists them"))
    for name in sorted(flags.foreign):
        said = f"{flags.sections[name]} " if flags.sections[name] else ""
        lines.append(_columns(f"--{name}.*", f"{said}--help={name} lists them"))
    return "\n".join(lines)


def _choice_lines(name: str, choice: Mapping[str, Sequence[Flag]], chosen: str | None) -> list[str]:
    """The flags that all types have, then those that only some have."""
    kinds = {kind: flags for kind, flags in choice.items() if chosen in (None, kind)}
    first = next(iter(kinds.values()), ())
    shared = {flag.name for flag in first}.intersection(
        *({flag.name for flag in flags} for flags in kinds.values())
    )
    lines = [_columns(f"--{name}.type", ", ".join(choice)), *(_line(f) for f in first if f.name in shared)]
    for kind, flags in kinds.items():
        extra = [_line(flag) for flag in flags if flag.name not in shared]
        if extra:
            lines += ["", f"--{name}.type={kind}", *extra]
    return lines


def _line(flag: Flag) -> str:
    value = flag.default if flag.default is not None else flag.type.removesuffix(" | None").upper()
    return _columns(f"--{flag.name}={value}", flag.comment)


def _columns(left: str, right: str) -> str:
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    lines = textwrap.wrap(right, width - _COLUMN) or [""]
    if len(left) > _COLUMN - 4:
        return "\n".join([f"  {left}", *(" " * _COLUMN + line for line in lines if line)])
    return "\n".join([f"  {left:<{_COLUMN - 2}}{lines[0]}".rstrip(), *(" " * _COLUMN + x for x in lines[1:])])
