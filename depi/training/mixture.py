"""`--dataset.mixture`: datasets with a folder, revision, choice of episodes and weight each."""

import math
from dataclasses import dataclass
from pathlib import Path

import draccus
import yaml
from draccus.utils import DecodingError


@dataclass
class MixtureSource:
    """One dataset of a mixture."""

    # A Hub repo id, or the name of the local tree at `root`.
    repo_id: str
    root: Path | None = None
    revision: str | None = None
    # Recorded episode indices; null for all.
    episodes: list[int] | None = None
    # How often it is drawn, next to the others; all have a weight, or none.
    weight: float | None = None


def read_mixture(mixture: list[MixtureSource] | Path) -> list[MixtureSource]:
    """A mixture that is sound, read from its JSON or YAML file where it is one.

    Raises:
        ValueError: the file cannot be read or holds something else, a dataset is named twice or none is, some
            have weights and others none, or a weight is negative or not finite.
    """
    if isinstance(mixture, Path):
        mixture = _read_file(mixture)
    names = [source.repo_id for source in mixture]
    if not names:
        raise ValueError("--dataset.mixture is empty: name a dataset")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--dataset.mixture names {twice[0]} more than once")
    weights = [source.weight for source in mixture if source.weight is not None]
    if weights and len(weights) < len(mixture):
        bare = next(source.repo_id for source in mixture if source.weight is None)
        raise ValueError(f"--dataset.mixture: {bare} has no weight, others have: weigh all of them or none")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"--dataset.mixture: a weight must be 0 or more, not one of {weights}")
    return mixture


def decode_mixture(content: object) -> list[MixtureSource]:
    """The datasets that a file's content lists, one by one as it should be; see `read_mixture` for the rest.

    Raises:
        ValueError: it is no such list.
    """
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise ValueError("it holds no list of datasets, each with its repo_id")
    try:
        sources: list[MixtureSource] = draccus.decode(list[MixtureSource], content)
    except DecodingError as error:
        raise ValueError(" ".join(str(error).split())) from None
    return sources


def _read_file(path: Path) -> list[MixtureSource]:
    try:
        return decode_mixture(yaml.safe_load(path.read_text("utf-8")))  # JSON is YAML too
    except OSError as error:
        raise ValueError(f"--dataset.mixture={path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"--dataset.mixture={path}: {' '.join(str(error).split())}") from None
