"""From values to advantages, the threshold on them, and the sidecars that training reads."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.samples.advantages import SUMMARY_NAME, write_advantages, write_summary
from depi.datasets.samples.outcomes import Outcomes, normalised_returns
from depi.errors import UserError
from depi.recap.advantage import (
    Threshold,
    episode_advantages,
    indicators,
    percentiles,
    threshold,
    thresholds,
)
from depi.recap.frames import FrameReader, LeftOut
from depi.recap.values import Part, dataset_values

FORMAT = 1
_NAMED = 1000


@dataclass(frozen=True)
class Settings:
    """The settings from which, with values and outcomes, advantages are computed.

    look_ahead: N, in frames.
    share: of all frames, whose advantage is above the threshold.
    per_task: a threshold for each task text, instead of one for all.
    force_interventions: frames where a human intervened are positive.
    c_fail, reward_normalizer: as the value network was trained; see `depi.datasets.samples.outcomes`.
    clamp: returns below -1 become -1, instead of being refused.
    """

    look_ahead: int
    share: float
    per_task: bool
    force_interventions: bool
    c_fail: float
    reward_normalizer: float
    clamp: bool = False


class Labels:
    """Advantages and indicators of all frames of a training set.

    Args:
        reader: of the training set.
        parts: of its values, all computed.
        outcomes: of its episodes.
        settings: see `Settings`.
        clamped: frames whose return is, as `check_normalizer` counts them.

    Raises:
        UserError: no advantage is known.
    """

    def __init__(
        self,
        reader: FrameReader,
        parts: list[list[Part]],
        outcomes: Outcomes,
        settings: Settings,
        clamped: int,
    ) -> None:
        self.dataset, self.parts, self.outcomes, self.settings = reader.dataset, parts, outcomes, settings
        self.clamped = clamped
        forced = outcomes.intervention
        self.forced = forced if settings.force_interventions else np.zeros_like(forced)
        self.left_out: dict[str, list[LeftOut]] = {}
        # As stored, so that `advantage > epsilon` in a sidecar equals the indicator.
        self.advantages = np.concatenate([self._advantages(number) for number in range(len(parts))])
        if np.isnan(self.advantages).all():
            raise UserError("no frame has an advantage: no image can be decoded")
        self.task, self.tasks = reader.task_texts()
        self.thresholds = self._thresholds()
        epsilon = np.array([self._epsilon(text) for text in self.tasks])[self.task]
        self.indicators = indicators(self.advantages, epsilon, self.forced)

    def _advantages(self, number: int) -> np.ndarray:
        """Of one dataset, float32 [f]."""
        values, left_out = dataset_values(self.parts[number])
        if left_out:
            self.left_out[self.dataset.repo_ids[number]] = left_out
        settings, found = self.settings, np.empty(len(values), np.float32)
        for episode, rows in self._episodes(number):
            found[rows] = episode_advantages(
                values[rows],
                bool(self.outcomes.success[episode]),
                look_ahead=settings.look_ahead,
                c_fail=settings.c_fail,
                reward_normalizer=settings.reward_normalizer,
            )
        return found

    def _episodes(self, number: int) -> list[tuple[int, slice]]:
        """The episodes of a dataset, and their frames among its own."""
        first, last = self.dataset.dataset_start[number : number + 2].tolist()
        start = (self.dataset.episode_start[first : last + 1] - self.dataset.episode_start[first]).tolist()
        return [(first + at, slice(*start[at : at + 2])) for at in range(last - first)]

    def _thresholds(self) -> dict[str, Threshold]:
        """By task text, or a single one under the empty text."""
        if not self.settings.per_task:
            return {"": threshold(self.advantages, self.settings.share)}
        return thresholds(self.advantages, self.settings.share, self.task, self.tasks)

    def _epsilon(self, text: str) -> float:
        found = self.thresholds.get(text if self.settings.per_task else "")
        return np.inf if found is None else found.epsilon  # a task without any known advantage

    def run_digest(self, sha256: str) -> str:
        """A digest of everything that the sidecars depend on, including the checkpoint's."""
        plans = [parts[0].plan for parts in self.parts]
        facts = json.dumps([FORMAT, sha256, plans, asdict(self.settings)])
        flags = np.packbits(self.outcomes.success).tobytes() + np.packbits(self.forced).tobytes()
        return hashlib.blake2b(facts.encode() + flags, digest_size=16).hexdigest()

    def write(self, folder: Path, value: dict[str, Any]) -> dict[str, Any]:
        """Write a sidecar for each dataset, then the summary, and return that.

        Args:
            folder: of the sidecars.
            value: about the value network, with its `sha256`.
        """
        run = self.run_digest(value["sha256"])
        # Removed until the new one is written: the old one describes other sidecars.
        (folder / SUMMARY_NAME).unlink(missing_ok=True)
        datasets = {
            repo_id: self._write_dataset(folder, number, run)
            for number, repo_id in enumerate(self.dataset.repo_ids)
        }
        summary = {"format": FORMAT, "run": run, "value": value, **self._numbers(), "datasets": datasets}
        write_summary(folder, summary)
        return summary

    def _frames(self, number: int) -> slice:
        return slice(*self.dataset.episode_start[self.dataset.dataset_start[number : number + 2]].tolist())

    def _write_dataset(self, folder: Path, number: int, run: str) -> dict[str, Any]:
        data, settings, frames = self.dataset, self.settings, self._frames(number)
        entry, values = data.entries[number], dataset_values(self.parts[number])[0]
        episodes = self._episodes(number)
        lengths = [rows.stop - rows.start for _, rows in episodes]
        success = self.outcomes.success[[episode for episode, _ in episodes]]
        returns = normalised_returns(
            lengths, success, settings.c_fail, settings.reward_normalizer, clamp=settings.clamp
        )
        advantages, positive = self.advantages[frames], self.indicators[frames]
        columns = {
            "episode_index": np.repeat(data.episode_recorded[[episode for episode, _ in episodes]], lengths),
            "frame_index": np.concatenate([np.arange(length) for length in lengths]),
            "value": np.ma.masked_invalid(values),
            "return": returns.astype(np.float32),
            "advantage": np.ma.masked_invalid(advantages),
            "intervention": self.outcomes.intervention[frames],
            "indicator": positive,
        }
        write_advantages(folder, entry["repo_id"], columns, run=run, revision=entry["revision"])
        return {
            "revision": entry["revision"],
            "episodes": len(lengths),
            "successes": int(success.sum()),
            "success_from": self.outcomes.sources[entry["repo_id"]],
            "frames": len(values),
            "positive": int(positive.filled(False).sum()),
            "left_out": int(np.isnan(values).sum()),
        }

    def _numbers(self) -> dict[str, Any]:
        epsilon: float | dict[str, float] = (
            {text: found.epsilon for text, found in self.thresholds.items()}
            if self.settings.per_task
            else self.thresholds[""].epsilon
        )
        left_out = sum(len(frames) for frames in self.left_out.values())
        named = [(repo_id, frame) for repo_id, frames in self.left_out.items() for frame in frames]
        frames = len(self.advantages)
        return {
            "settings": {**asdict(self.settings), "unit": "returns divided by reward_normalizer, -1 to 0"},
            "epsilon": epsilon,
            "frames": frames,
            "frames_above_epsilon": sum(found.positive for found in self.thresholds.values()),
            "frames_positive": int(self.indicators.filled(False).sum()),
            "frames_forced_positive": int(self.forced.sum()),
            "frames_left_out": left_out,
            "frames_without_advantage": int(np.isnan(self.advantages).sum()),
            "frames_with_clamped_return": self.clamped,
            "percentiles": percentiles(self.advantages),
            "left_out": [{"repo_id": repo_id, **asdict(frame)} for repo_id, frame in named[:_NAMED]],
        }
