"""Thresholds and disabled rules from a YAML file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import draccus
import yaml
from draccus.utils import DecodingError

from depi.catalog.facts import Thresholds
from depi.errors import UserError


@dataclass
class RulesFile(Thresholds):
    """The keys of such a file."""

    disable_rules: list[str] = field(default_factory=list)


def parse_with_rules[Config](config_class: type[Config], args: Sequence[str]) -> Config:
    """Parse flags; values of the file named by `--rules` are used where no flag sets them.

    Args:
        config_class: a dataclass with the fields of RulesFile and `rules`, a path or None.
        args: flags as draccus takes them.

    Raises:
        UserError: the file is missing or malformed, or has an unknown key.
    """
    config = draccus.parse(config_class, args=args)
    path = getattr(config, "rules", None)
    if path is None:
        return config
    check_rules(path)
    return draccus.parse(config_class, config_path=path, args=args)


def check_rules(path: Path) -> None:
    """Check a file's keys and types against RulesFile; a UserError names the file and the key."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read --rules={path}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--rules={path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--rules={path} is not a list of `threshold: value` lines")
    known = RulesFile.__dataclass_fields__
    for key in values:
        if key not in known:
            raise UserError(f"--rules={path} has {key!r}, which is none of {', '.join(known)}")
    try:
        draccus.decode(RulesFile, values)
    except DecodingError as error:
        reason = " ".join(error.message.split())
        raise UserError(f"--rules={path}: {'.'.join(error.key_path)}: {reason}") from None
