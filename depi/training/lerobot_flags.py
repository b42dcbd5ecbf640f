"""The flags of training as they are typed, and the configurations of LeRobot and others as they are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depi.errors import UserError
from depi.flag_sources import read_flags
from depi.flags import check_flags
from depi.other_programs import TRAIN, means_more_here, replacement

_CONFIG = Path(__file__).with_name("config.py")

# Fields of LeRobot's train_config.json, of some version, that are no flags.
_NO_FLAGS = ("checkpoint_path", "dataset.local_files_only")


def without_lerobots_own(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A `train_config.json` without what only LeRobot has: what `depi.other_programs` names.

    Returns:
        what is left, and the names of what was left out, but for values that are null, false or empty.
    """
    flags = read_flags(_CONFIG, "TrainConfig")
    kinds = {name: content[name].get("type") for name in flags.choices if isinstance(content.get(name), dict)}
    ours = flags.known(kinds).keys()
    gone: list[str] = []

    def keep(part: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in part.items():
            name = prefix + key
            if name in flags.sections and isinstance(value, dict):
                kept[key] = keep(value, f"{name}.")
            elif name == "env_eval_freq":
                kept.setdefault("eval_freq", value)
            elif name not in ours and (name in _NO_FLAGS or replacement(name, TRAIN)):
                gone.extend([name] if value else [])
            else:
                kept[key] = value
        return kept

    return keep(content, ""), gone


def refuse_other_programs(content: Mapping[str, Any], file: str) -> None:
    """Raise a UserError where a configuration of OpenTau or openpi says something in words that count there.

    Args:
        content: of the file.
        file: its name, for the message.
    """
    found: dict[str, str] = {}
    for key, value in content.items():
        inner = [f"{key}.{name}" for name in value] if isinstance(value, Mapping) else []
        # What is said of a section is not said again of each of its fields.
        told = [key] if means_more_here(key) else inner
        found |= {name: remedy for name in told if (remedy := means_more_here(name))}
    if found:
        words = "; ".join(f"{name}: {remedy}" for name, remedy in found.items())
        raise UserError(f"{file} is the configuration of another program (docs/coming-from.md): {words}")


def check_train_flags(args: Sequence[str]) -> list[str]:
    """Print the help or refuse wrong flags, before slow imports.

    Returns:
        the flags as `depi.flags.check_flags` normalises them.

    Raises:
        UserError: a flag is unknown, or a number is not valid.
        SystemExit: `--help`, after printing it.
    """
    return check_flags(_CONFIG, "TrainConfig", args, TRAIN)
