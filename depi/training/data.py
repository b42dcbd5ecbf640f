"""From the flags that name data to the stream of batches that a process trains on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from lerobot.configs import PreTrainedConfig
from torch.utils.data import DataLoader, Dataset

from depi.datasets.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.sampling import StreamBatchSampler, shuffled_index
from depi.errors import UserError
from depi.files import read_json
from depi.training.config import TrainConfig


def dataset_sources(config: TrainConfig) -> list[DatasetSource]:
    """Return the datasets that the flags name, at the revisions that the catalogue has judged.

    Raises:
        UserError: a list is missing, malformed, empty or shorter than `--num_datasets`.
    """
    data = config.dataset
    if data.repo_id is not None:
        return [DatasetSource(data.repo_id, data.revision, data.root)]
    if data.repo_ids is not None:
        return [DatasetSource(repo_id) for repo_id in _read_id_list(data.repo_ids)]
    assert config.num_datasets is not None
    path = data.data_ids / "dataset_list_valid.json"
    ids = _read_id_list(path)
    if len(ids) < config.num_datasets:
        raise UserError(
            f"--num_datasets={config.num_datasets}, but {path} accepts {len(ids)}: "
            f"ask for at most {len(ids)}, or collect more with `depi collect-ids`"
        )
    revisions = _catalogued_revisions(data.data_ids / "catalog.parquet")
    return [DatasetSource(repo_id, revisions.get(repo_id)) for repo_id in ids[: config.num_datasets]]


def _read_id_list(path: Path) -> list[str]:
    ids = read_json(path)
    if not isinstance(ids, list) or not all(isinstance(repo_id, str) for repo_id in ids):
        raise UserError(f"{path} must hold a JSON list of repo ids")
    if not ids:
        raise UserError(f"{path} lists no dataset: collect some with `depi collect-ids`")
    duplicates = (
        sorted({repo_id for repo_id in ids if ids.count(repo_id) > 1}) if len(set(ids)) < len(ids) else []
    )
    if duplicates:
        raise UserError(f"{path} lists {duplicates[0]} more than once")
    return ids


def _catalogued_revisions(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    table = pq.read_table(path, columns=["repo_id", "revision"]).to_pydict()
    return dict(zip(table["repo_id"], table["revision"], strict=True))


class TrainingStream(Dataset):
    """The endless stream of training samples, addressed by position 0, 1, 2, ...

    A sample, with the noise and time of flow matching that belong to it, is a pure function of the
    seed and the position. So the loss sequence depends neither on the number of processes and
    workers nor on where a run was stopped and resumed.
    """

    def __init__(self, dataset: MultiLeRobotDataset, policy: PreTrainedConfig, seed: int) -> None:
        self.dataset = dataset
        self.policy = policy
        self.seed = seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        sample = self.dataset[shuffled_index(position, len(self.dataset), self.seed)]
        noise, time = flow_draws(self.policy, self.seed, position)
        return {**sample, "noise": torch.from_numpy(noise), "time": torch.tensor(time)}


def flow_draws(policy: PreTrainedConfig, seed: int, position: int) -> tuple[np.ndarray, np.float32]:
    """Draw the noise and the time of one sample.

    Returns:
        noise, standard normal, float32 (chunk_size, max_action_dim); and time in (0, 1], where 1 is
        pure noise, from pi0's shifted Beta(1.5, 1) (pi0 paper, appendix B).
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, position]))
    noise = generator.standard_normal((policy.chunk_size, policy.max_action_dim), dtype=np.float32)
    beta = generator.beta(policy.time_sampling_beta_alpha, policy.time_sampling_beta_beta)
    return noise, np.float32(beta * policy.time_sampling_scale + policy.time_sampling_offset)


def batches(
    stream: TrainingStream, config: TrainConfig, *, start_step: int, rank: int, world_size: int, pin: bool
) -> Iterator[dict[str, Any]]:
    """Yield this process's micro-batches from the first of step `start_step` to the last of the run.

    The sampler splits the global stream by rank itself, so the loader must not be given to
    `accelerator.prepare`, which would split it once more.
    """
    per_step = config.gradient_accumulation_steps
    sampler = StreamBatchSampler(
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        start_batch=start_step * per_step,
        num_batches=(config.steps - start_step) * per_step,
    )
    loader = DataLoader(
        stream,
        batch_sampler=sampler,
        num_workers=config.num_workers,
        pin_memory=pin,
        prefetch_factor=4 if config.num_workers else None,
    )
    return iter(loader)
