"""What the episodes of one dataset must agree on: the view of a camera, and texts that mean the same."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

_FILLERS = frozenset({"a", "an", "the", "its", "and", "then", "up"})
_SAME = {
    "grab": "pick",
    "grasp": "pick",
    "put": "place",
    "into": "in",
    "inside": "in",
    "onto": "on",
    "upon": "on",
    "grey": "gray",
}
_WORD = re.compile(r"\w+")


def majority_views(votes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """camera key -> the view that most episodes have; of equally frequent ones, the first."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        for camera, view in vote.items():
            counts[camera][view] += 1
    return {camera: counter.most_common(1)[0][0] for camera, counter in counts.items()}


def gist(text: str) -> tuple[str, ...]:
    """The words that carry the meaning, in order: no articles, singulars only, one word for synonyms.

    Texts with the same gist differ only in wording; "red cube" and "blue cube" do not have the same.
    """
    words = [word for word in _WORD.findall(text.casefold()) if word not in _FILLERS]
    return tuple(_SAME.get(word, word.removesuffix("s") if len(word) > 3 else word) for word in words)


def unify(texts: Sequence[tuple[str, str | None, float | None]]) -> list[str | None]:
    """Give episodes with the same recorded task and new texts of the same gist one and the same text.

    Args:
        texts: of each episode the recorded text, the new one, and its confidence.

    Returns:
        The new texts: of each group the wording with the largest sum of confidence, of equals the first.
    """
    weights: dict[tuple[str, tuple[str, ...]], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    groups = [None if new is None else (recorded.casefold(), gist(new)) for recorded, new, _ in texts]
    for group, (_, new, confidence) in zip(groups, texts, strict=True):
        if group is not None and new is not None:
            weights[group][new] += 1.0 if confidence is None else confidence
    best = {group: max(wordings, key=wordings.__getitem__) for group, wordings in weights.items()}
    return [None if group is None else best[group] for group in groups]
