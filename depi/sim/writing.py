"""Shared parts of recordings: a folder that appears complete or not at all, a card, checks of the expert."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from depi.errors import UserError
from depi.files import draft_folder

# Scripted experts fail rarely; one that fails this often is broken.
MAX_FAILURE_SHARE = 0.8


@dataclass(frozen=True)
class Recording:
    """A written recording: its folder, its size, and the seeds of the failed episodes."""

    repo_id: str
    root: Path
    episodes: int
    frames: int
    failed_seeds: tuple[int, ...]


def check_counts(episodes: int, seed: int) -> None:
    """Raise a UserError for no episodes or a negative seed."""
    if episodes < 1:
        raise UserError(f"{episodes} episodes make no dataset: ask for one or more")
    if seed < 0:
        raise UserError(f"the seed must not be negative, got {seed}")


def successes[Episode](
    task: str, play: Callable[[int], Episode | None], episodes: int, seed: int, failed: list[int]
) -> Iterator[Episode]:
    """Play one seed after the other until as many episodes as wanted have succeeded; yields those.

    Args:
        task: its name, for messages.
        play: plays the episode of a seed; None where it has failed.
        episodes: how many are wanted.
        seed: the first one.
        failed: gets the seeds of failed episodes.

    Raises:
        UserError: the expert keeps failing.
    """
    found = 0
    while found < episodes:
        episode = play(seed)
        if episode is not None:
            found += 1
            yield episode
        else:
            failed.append(seed)
            tried = len(failed) + found
            if tried >= 10 and len(failed) > MAX_FAILURE_SHARE * tried:
                raise UserError(
                    f"the expert failed {len(failed)} of {tried} episodes of {task}: change the setup"
                )
        seed += 1


def write_card(folder: Path, repo_id: str, robot_type: str) -> None:
    """Write the dataset card that the Hub lists it by."""
    from lerobot.datasets.utils import create_lerobot_dataset_card

    tags = list(dict.fromkeys([robot_type.removesuffix("_follower"), "robotics", "simulation"]))
    card = create_lerobot_dataset_card(tags=tags, license="apache-2.0", repo_id=repo_id)
    card.save(folder / "README.md")


class DatasetWriter(Protocol):
    """The interface of V21Writer and V30Writer."""

    def finalize(self) -> None:
        """Complete the dataset."""

    def abandon(self) -> None:
        """Stop writing; the caller removes the folder."""


@contextmanager
def finalized[Writer: DatasetWriter](writer: Writer) -> Iterator[Writer]:
    """Complete the dataset when the body ends without an error, else stop writing."""
    try:
        yield writer
        writer.finalize()
    except BaseException:
        writer.abandon()
        raise


@contextmanager
def new_folder(root: Path) -> Iterator[Path]:
    """Yield a path beside `root` to write the dataset to; it takes the name `root` if all goes well.

    Raises:
        UserError: `root` exists, or cannot be written.
    """
    if root.exists():
        raise UserError(f"{root} exists already: remove it or choose another --root")
    with ExitStack() as stack:
        try:
            draft = stack.enter_context(draft_folder(root))
        except OSError as error:
            raise UserError(f"{root} cannot be written: {error.strerror}") from None
        yield draft / "dataset"
        (draft / "dataset").rename(root)
