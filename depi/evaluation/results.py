"""The files of an evaluation: episodes as they end, and the result."""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from depi.errors import UserError
from depi.evaluation.compare import flat, wilson
from depi.evaluation.rollout import Episode
from depi.files import atomic_write, read_json, write_json
from depi.journal import LineFile, read_lines

CONFIG, EPISODES, RESULT = "eval_config.json", "episodes.jsonl", "eval.json"
PACKAGES = ("depi", "lerobot", "torch", "gymnasium", "mujoco", "so101-nexus", "gym-pusht", "gym-aloha")


class Journal:
    """The episodes of one evaluation, appended as they end.

    Args:
        folder: the evaluation's `output_dir`.
        config: everything on which an episode's outcome depends, JSON-able.
        fresh: remove what is there.

    Raises:
        UserError: the folder has episodes of an evaluation with another configuration.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, fresh: bool = False):
        self.folder, self._path = folder, folder / EPISODES
        if fresh:
            for name in (EPISODES, CONFIG, RESULT):
                (folder / name).unlink(missing_ok=True)
        config = json.loads(json.dumps(config))
        self.episodes = self._read()
        if self.episodes and (folder / CONFIG).exists():
            _refuse_differences(folder, read_json(folder / CONFIG), config)
        else:
            write_json(folder / CONFIG, config)

    def _read(self) -> dict[int, Episode]:
        episodes = [Episode(**json.loads(line)) for line in read_lines(self._path)]
        return {episode.index: episode for episode in episodes}

    def append(self, episode: Episode) -> None:
        """Write an episode down: when this returns, it is on the disk."""
        with LineFile(self._path, wait=True) as file:
            file.add(json.dumps(dataclasses.asdict(episode)))
        self.episodes[episode.index] = episode


def _refuse_differences(folder: Path, old: Any, new: dict[str, Any]) -> None:
    before, now = flat(old), flat(new)
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise UserError(
                f"{folder} holds an evaluation with another {name}: {before.get(name)!r} there, "
                f"{now.get(name)!r} now; choose another --output_dir, or remove that one"
            )


def summarise(head: dict[str, Any], episodes: Sequence[Episode], timing: dict[str, Any]) -> dict[str, Any]:
    """The content of `eval.json`: rates over the episodes without an error, and each episode."""
    counted = [episode for episode in episodes if episode.error is None]
    successes = sum(episode.success for episode in counted)
    rate = interval = None
    if counted:
        rate, interval = successes / len(counted), list(wilson(successes, len(counted)))
    errors = Counter(episode.error for episode in episodes if episode.error is not None)
    return {
        **head,
        "success_rate": rate,
        "success_interval_95": interval,
        "n_episodes": len(counted),
        "n_successes": successes,
        "n_errors": len(episodes) - len(counted),
        "errors": dict(errors),
        "mean_length": _mean([episode.length for episode in counted]),
        "mean_reward": _mean([episode.reward for episode in counted]),
        "timing": timing,
        "versions": versions(),
        "episodes": [dataclasses.asdict(episode) for episode in episodes],
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def versions() -> dict[str, str]:
    """The versions of installed packages on which a result may depend."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def digest(path: Path, pieces: int = 64, size: int = 65_536) -> str:
    """A fingerprint of a large file: its length and pieces spread over it. Training changes all of it."""
    length = path.stat().st_size
    found = hashlib.sha256(str(length).encode())
    with path.open("rb") as file:
        for piece in range(pieces):
            file.seek(piece * max(0, length - size) // max(1, pieces - 1))
            found.update(file.read(size))
    return found.hexdigest()[:16]


def checkpoint_digest(folder: Path) -> str:
    """A fingerprint of what loading reads: weights, adapters, configuration, normalisation, units."""
    files = sorted({*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("assets/**/*.json")})
    names = [f"{path.relative_to(folder)} {digest(path)}" for path in files]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def contact_sheet(folder: Path, episodes: Sequence[Episode]) -> None:
    """Write `contact_sheet.png`: the last frames, bordered green (success), red (failure) or gray."""
    from PIL import Image, ImageOps

    from depi.evaluation.films import GRAY, GREEN, RED

    tiles = []
    for episode in episodes:
        path = frame_path(folder, episode.index)
        ended = episode.error is None and path.exists()
        tile = Image.open(path).convert("RGB") if ended else Image.new("RGB", (160, 120))
        color = GRAY if episode.error is not None else GREEN if episode.success else RED
        tiles.append(ImageOps.expand(ImageOps.pad(tile, (160, 120)), 4, color))
    columns = min(10, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * 168, rows * 128), "white")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * 168, number // columns * 128))
    with atomic_write(folder / "contact_sheet.png") as temporary:
        sheet.save(temporary, format="PNG")


def frame_path(folder: Path, index: int) -> Path:
    """The path of the small last frame of an episode."""
    return folder / "last_frames" / f"episode_{index:03d}.png"


def save_frame(folder: Path, index: int, frame: Any) -> None:
    """Keep the last frame of an episode, uint8 (H, W, 3), for the contact sheet."""
    from PIL import Image

    image = Image.fromarray(frame)
    image.thumbnail((320, 240))
    with atomic_write(frame_path(folder, index)) as temporary:
        image.save(temporary, format="PNG")
