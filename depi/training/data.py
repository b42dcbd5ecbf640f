"""From the flags that name data to the stream of batches that a process trains on."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.processor import PolicyProcessorPipeline
from torch.utils.data import DataLoader, Dataset, default_collate

from depi.datasets.augment import Augmentation
from depi.datasets.filters import FrameFilter, read_exclusions
from depi.datasets.mixture import WEIGHTS, make_mixture
from depi.datasets.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.sampling import StreamBatchSampler, position_generator
from depi.datasets.stream import TrainingStream, annotated_episodes
from depi.errors import UserError
from depi.files import read_json
from depi.policies import on_cpu, pack_batch, preprocess
from depi.training.config import DatasetConfig, TrainConfig
from depi.training.mixture import MixtureSource

# The stream of samples draws with other purposes; see `position_generator`.
_FLOW = 0


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
    if data.mixture is not None:
        return [_source_of(entry) for entry in mixture_of(data)]
    assert config.num_datasets is not None
    path = data.data_ids / "dataset_list_valid.json"
    ids = _read_id_list(path)
    if len(ids) < config.num_datasets:
        raise UserError(
            f"--num_datasets={config.num_datasets}, but {path} accepts {len(ids)}: "
            f"ask for at most {len(ids)}, or collect more with `depi collect-ids`"
        )
    catalog = data.data_ids / "catalog.parquet"
    revisions = _catalogued(catalog, "revision") if catalog.exists() else {}
    return [DatasetSource(repo_id, revisions.get(repo_id)) for repo_id in ids[: config.num_datasets]]


def resumed_sources(config: TrainConfig, used: Sequence[Mapping[str, Any]]) -> list[DatasetSource]:
    """Return the datasets that a run began with, by their entries in its `data_report.json`."""
    data = config.dataset
    if data.mixture is None:
        return [DatasetSource(entry["repo_id"], entry["revision"], data.root) for entry in used]
    named = {entry.repo_id: _source_of(entry) for entry in mixture_of(data)}
    return [replace(named[entry["repo_id"]], revision=entry["revision"]) for entry in used]


def mixture_of(data: DatasetConfig) -> list[MixtureSource]:
    """Return the datasets of `--dataset.mixture`, none without."""
    assert not isinstance(data.mixture, Path)  # the configuration has read it
    return data.mixture or []


def weighted_mixture(data: DatasetConfig) -> dict[str, float]:
    """Return the weights of `--dataset.mixture` by repo id, none where it has none."""
    return {entry.repo_id: entry.weight for entry in mixture_of(data) if entry.weight is not None}


def _source_of(entry: MixtureSource) -> DatasetSource:
    episodes = None if entry.episodes is None else tuple(entry.episodes)
    return DatasetSource(entry.repo_id, entry.revision, entry.root, episodes)


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


def _catalogued(path: Path, column: str) -> dict[str, Any]:
    """One column of the catalogue, by repo id, where it is known."""
    if not path.exists():
        raise UserError(
            f"{path} does not exist: write it with `depi collect-ids`, or name --dataset.data_ids"
        )
    table = pq.read_table(path, columns=["repo_id", column]).to_pydict()
    pairs = zip(table["repo_id"], table[column], strict=True)
    return {repo_id: value for repo_id, value in pairs if value is not None}


def training_stream(
    dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig, split: str = "train"
) -> "FlowStream":
    """Return the stream of samples that the flags describe.

    Args:
        dataset: as `open_dataset` opened it.
        config: of the run.
        policy: whose noise and time are drawn.
        split: `train`, or `eval` for the episodes that `--dataset.eval_split` holds out, whose images
            are left as they are.

    Raises:
        UserError: weights, exclusions or annotations cannot be read or do not fit the datasets.
    """
    data = config.dataset
    filters = FrameFilter(
        min_episode_frames=data.min_episode_frames,
        trim_idle=data.trim_idle,
        exclude=read_exclusions(data.exclude) if data.exclude else {},
        eval_split=data.eval_split,
        split=split,
        seed=config.seed,
    )
    mixture = make_mixture(
        dataset,
        weights=weighted_mixture(data)
        or (data.weights if data.weights in WEIGHTS else _read_weights(Path(data.weights))),
        scores=_catalogued(data.data_ids / "catalog.parquet", "score") if data.weights == "score" else None,
        balance_tasks=data.balance_tasks,
        filters=filters,
        seed=config.seed,
    )
    # Views of cameras are a help where they are annotated; annotated tasks were asked for.
    wanted = data.use_annotated_tasks or (data.cameras == "view" and data.annotations.is_dir())
    strength = (data.augment_color, data.augment_hue, data.augment_geometry) if split == "train" else ()
    stream = TrainingStream(
        dataset,
        mixture,
        seed=config.seed,
        cameras=data.cameras,
        augmentation=Augmentation(*strength),
        annotations=annotated_episodes(dataset, data.annotations) if wanted else None,
        task_mix=data.task_mix if data.use_annotated_tasks else 0.0,
    )
    return FlowStream(stream, policy, config.seed)


def _read_weights(path: Path) -> dict[str, float]:
    if path.suffix != ".json":
        raise UserError(f"--dataset.weights={path} is none of {', '.join(WEIGHTS)}, and no .json file")
    content = read_json(path)
    if not isinstance(content, dict) or not all(type(weight) in (int, float) for weight in content.values()):
        raise UserError(f"{path} must hold a JSON object of repo ids, each with a number")
    return content


class FlowStream(Dataset):
    """A stream of samples with the noise and time of flow matching that belong to each.

    Both are pure functions of the seed and the position 0, 1, 2, ... So the loss sequence depends
    neither on the number of processes and workers nor on where a run was stopped and resumed.
    """

    def __init__(self, samples: TrainingStream, policy: PreTrainedConfig, seed: int) -> None:
        self.samples = samples
        self.policy = policy
        self.seed = seed

    def __getitem__(self, position: int) -> dict[str, Any]:
        noise, time = flow_draws(self.policy, self.seed, position)
        return {**self.samples[position], "noise": torch.from_numpy(noise), "time": torch.tensor(time)}


def flow_draws(policy: PreTrainedConfig, seed: int, position: int) -> tuple[np.ndarray, np.float32]:
    """Draw the noise and the time of one sample.

    Returns:
        noise, standard normal, float32 (chunk_size, max_action_dim); and time in (0, 1], where 1 is
        pure noise, from pi0's shifted Beta(1.5, 1) (pi0 paper, appendix B).
    """
    generator = position_generator(seed, position, _FLOW)
    noise = generator.standard_normal((policy.chunk_size, policy.max_action_dim), dtype=np.float32)
    beta = generator.beta(policy.time_sampling_beta_alpha, policy.time_sampling_beta_beta)
    return noise, np.float32(beta * policy.time_sampling_scale + policy.time_sampling_offset)


class Collate:
    """Samples into a batch that is ready for the policy, still on the CPU: workers do it, tokenizer included.

    Args:
        pre: the policy's preprocessing; see `on_cpu`.
        policy: whose batches these are.
        ragged: leave out absent cameras and padded words; see `pack_batch`.
    """

    def __init__(self, pre: PolicyProcessorPipeline, policy: PI0Config, *, ragged: bool) -> None:
        self.pre, self.policy, self.ragged = on_cpu(pre), policy, ragged

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Tensors by the keys that `Pi0Policy.forward` reads, and where the samples come from."""
        batch = preprocess(default_collate(samples), self.pre)
        tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
        return pack_batch(self.policy, tensors) if self.ragged else tensors


def outlive_first_signal(worker: int) -> None:
    """Let a worker go on after the first SIGINT and SIGTERM, as the training loop does.

    Terminals and schedulers signal whole process groups, and the step under way still needs its data.
    """

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ignore_once)


def batches(
    stream: FlowStream,
    config: TrainConfig,
    collate: Collate,
    *,
    start_step: int,
    rank: int,
    world_size: int,
    pin: bool,
) -> Iterator[dict[str, Any]]:
    """Yield this process's micro-batches from the first of step `start_step` to the last of the run.

    The sampler splits the global stream by rank itself, so the loader must not be given to
    `accelerator.prepare`, which would split it once more.

    Raises:
        UserError: too many episodes turn out to be bad.
    """
    per_step = config.gradient_accumulation_steps
    sampler = StreamBatchSampler(
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        start_batch=start_step * per_step,
        num_batches=(config.steps - start_step) * per_step,
        accumulation=per_step,
        cost=stream.samples.images_at if config.ragged and stream.samples.ragged else None,
    )
    # Workers are forked after the tokenizer was used; it would warn that it must not run in threads there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        stream,
        batch_sampler=sampler,
        num_workers=config.num_workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=4 if config.num_workers else None,
        worker_init_fn=outlive_first_signal,
    )
    try:
        yield from loader
    except UserError as error:
        # What a worker process raised comes with its traceback; the sentence is the last line.
        sentence = str(error).strip().splitlines()[-1].removeprefix("depi.errors.UserError: ")
        raise UserError(sentence) from None
