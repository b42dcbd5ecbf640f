"""How good a value function is on recorded episodes: rank correlation with the return, and separation."""

from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr
from torch.utils.data import default_collate

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.policies import load_processors, preprocess
from depi.policies.factory import load_value
from depi.training.value_targets import ValueTargets


class Judge:
    """All frames of a dataset, ready for the value function of a checkpoint."""

    def __init__(self, checkpoint: Path, root: Path, repo_id: str, cameras: int = 1):
        self.policy = load_value(checkpoint)
        self.pre, _ = load_processors(checkpoint)
        size = self.policy.config.image_resolution[0]
        self.dataset = MultiLeRobotDataset(
            [DatasetSource(repo_id, root=root)], chunk_size=1, image_size=size, max_cameras=cameras
        )
        self.samples = [self.dataset[index] for index in range(self.dataset.num_frames)]
        self.returns = ValueTargets(self.dataset, self.policy.config).values
        length = np.diff(self.dataset.episode_start)
        self.success = np.repeat(self.returns[self.dataset.episode_start[1:] - 1] == 0, length)
        frame = np.concatenate([np.arange(each) for each in length])
        self.last_quarter = frame >= 0.75 * np.repeat(length, length)

    def values(self, images: np.ndarray | None = None, task: str | None = None, size: int = 64) -> np.ndarray:
        """Values of all frames; with the images of other frames, or another prompt."""
        samples = [dict(sample) for sample in self.samples]
        for number, sample in enumerate(samples):
            for key in self.dataset.camera_slots:
                sample[key] = self.samples[number if images is None else int(images[number])][key]
            sample["task"] = sample["task"] if task is None else task
        batches = [
            preprocess(default_collate(samples[start : start + size]), self.pre)
            for start in range(0, len(samples), size)
        ]
        return torch.cat([self.policy.predict_value(batch) for batch in batches]).numpy()

    def figures(self, values: np.ndarray) -> tuple[float, float]:
        """Spearman's correlation with the return; AUC of success against failure in the last quarters."""
        ranks = rankdata(values[self.last_quarter])
        good = self.success[self.last_quarter]
        wins = ranks[good].sum() - good.sum() * (good.sum() + 1) / 2
        return spearmanr(values, self.returns).statistic, wins / (good.sum() * (~good).sum())
