"""What sidecars are laid onto, without opening any dataset."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np


def training_set(
    recorded: Mapping[str, Sequence[int]],
    lengths: Sequence[int] = (),
    revisions: Sequence[str | None] | None = None,
) -> Any:
    """Those columns of a MultiLeRobotDataset that say which episodes there are.

    Args:
        recorded: repo id -> recorded indices of its episodes.
        lengths: frames of all episodes; none where only episodes matter.
        revisions: of the datasets.
    """
    revisions = revisions or [None] * len(recorded)
    pairs = zip(recorded, revisions, strict=True)
    return SimpleNamespace(
        entries=[{"repo_id": repo_id, "revision": revision} for repo_id, revision in pairs],
        dataset_start=np.cumsum([0, *map(len, recorded.values())]),
        episode_start=np.cumsum([0, *lengths]),
        episode_recorded=np.array([index for indices in recorded.values() for index in indices], int),
    )
