"""Journals of datasets that nobody recorded, for tests of what is done with annotations."""

from dataclasses import replace
from pathlib import Path

from depi.annotate.episode_journal import Failure, Result, Review, append
from depi.annotate.sidecar import write_sidecar

REVISION = "a" * 40
TOP, HAND = "observation.images.cam_a", "observation.images.image2"


def result(episode: int, **changes) -> Result:
    """What a model found out about an episode."""
    made = Result(
        episode=episode,
        revision=REVISION,
        backend="openai",
        model="some/vlm",
        prompts={"instruct": "1", "refine": "1", "views": "2"},
        recorded="test",
        proposed="Pick up the red cube.",
        task="Pick up the red cube.",
        confidence=0.9,
        views={TOP: "top", HAND: "wrist"},
        frames={TOP: (0, 5, 9), HAND: (0, 5, 9)},
        tokens={"prompt": 1000, "completion": 50},
        requests=3,
        at="2026-01-01T00:00:00+00:00",
    )
    return replace(made, **changes)


def failure(episode: int, reason: str) -> Failure:
    return Failure(episode, REVISION, "openai", "some/vlm", reason, "2026-01-01T00:00:00+00:00")


def write(folder: Path, repo_id: str, *items: Result | Failure | Review) -> None:
    append(folder, repo_id, *items)
    write_sidecar(folder, repo_id)
