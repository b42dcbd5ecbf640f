"""From the flags that name data to the stream of batches that a process trains on."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline
from torch.utils.data import DataLoader, Dataset, default_collate

from depi.datasets.recording.cameras import camera_order
from depi.datasets.samples.annotations import AnnotatedEpisodes
from depi.datasets.samples.augment import Augmentation
from depi.datasets.samples.filters import FrameFilter, read_exclusions
from depi.datasets.samples.mixture import WEIGHTS, make_mixture
from depi.datasets.samples.order import StreamBatchSampler, position_generator
from depi.datasets.samples.outcomes import read_outcomes
from depi.datasets.samples.stream import TrainingStream
from depi.datasets.union.lists import CATALOG_FILE, catalogued, read_bad_episodes, read_id_list
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.files import read_json
from depi.policies import on_cpu, pack_batch, preprocess
from depi.policies.batches import to_float
from depi.policies.choices import choices_of
from depi.policies.families import family_of
from depi.policies.indicator import as_told
from depi.policies.lerobot_policy import SEED
from depi.policies.pi0 import INFERENCE_DELAY
from depi.training.conditioning import Conditioning, make_conditioning
from depi.training.config import DatasetConfig, TrainConfig
from depi.training.mixture import MixtureSource
from depi.training.value_targets import ValueTargets

logger = logging.getLogger(__name__)

# The stream of samples draws with other purposes; see `position_generator`.
_FLOW, _DELAY = 0, 5

# What a sample at a position gets in addition, or in place of what was recorded.
type Addition = Callable[[int, Mapping[str, Any]], dict[str, Any]]


def dataset_sources(config: TrainConfig) -> list[DatasetSource]:
    """Return the datasets that the flags name, at the revisions that the catalogue has judged.

    Raises:
        UserError: a list is missing, malformed, empty or shorter than `--num_datasets`.
    """
    data = config.dataset
    if data.repo_id is not None:
        return [DatasetSource(data.repo_id, data.revision, data.root)]
    if data.repo_ids is not None:
        return [DatasetSource(repo_id) for repo_id in read_id_list(data.repo_ids)]
    if data.mixture is not None:
        return [_source_of(entry) for entry in mixture_of(data)]
    assert config.num_datasets is not None
    path = data.data_ids / "dataset_list_valid.json"
    ids = read_id_list(path)
    if len(ids) < config.num_datasets:
        raise UserError(
            f"--num_datasets={config.num_datasets}, but {path} accepts {len(ids)}: "
            f"ask for at most {len(ids)}, or collect more with `depi collect-ids`"
        )
    revisions = catalogued(data.data_ids, "revision")
    return [DatasetSource(repo_id, revisions.get(repo_id)) for repo_id in ids[: config.num_datasets]]


def open_sources(
    config: TrainConfig,
    sources: Sequence[DatasetSource],
    *,
    began: Sequence[Mapping[str, Any]] | None = None,
    **shape: Any,
) -> MultiLeRobotDataset:
    """Open datasets with the flags that say how data is read.

    Args:
        config: whose `dataset` is used.
        sources: the datasets; see `dataset_sources`.
        began: of a resumed run, the entries of its `data_report.json`: the episodes that it left out.
        shape: arguments of MultiLeRobotDataset that say what a sample is, such as `chunk_size`.
    """
    data = config.dataset
    assert isinstance(data.conventions, dict)  # the configuration reads the file
    return MultiLeRobotDataset(
        sources,
        cameras=data.cameras,
        joint_convention=data.joint_convention,
        conventions=data.conventions,
        use_bad_episodes=_use_bad_episodes(config),
        bad_episodes=read_bad_episodes(data.data_ids) if began is None else _bad_before(began),
        correct_offsets=data.correct_offsets,
        max_bad_fraction=data.max_bad_fraction,
        max_bad_datasets=data.max_bad_datasets,
        episodes=data.episodes,
        offline=data.offline,
        **{"max_cameras": data.max_cameras, **shape},
    )


def _use_bad_episodes(config: TrainConfig) -> bool:
    """Whether episodes with faults are used: as the flag says, else where failures teach."""
    if config.dataset.use_bad_episodes is not None:
        return config.dataset.use_bad_episodes
    judges = config.policy is not None and not family_of(config.policy).acts
    return judges or config.advantage.mode == "use"


def _bad_before(began: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str | None], dict[int, str]]:
    """The bad episodes that a run left out; one of an earlier DePi left out none."""
    return {
        (entry["repo_id"], entry["revision"]): {
            int(episode): reason for episode, reason in entry.get("bad_episodes", {}).items()
        }
        for entry in began
    }


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


def _scores(folder: Path) -> dict[str, float]:
    path = folder / CATALOG_FILE
    if not path.exists():
        raise UserError(
            f"{path} does not exist: write it with `depi collect-ids`, or name --dataset.data_ids"
        )
    return catalogued(folder, "score")


def training_stream(
    dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig, split: str = "train"
) -> "PolicyStream":
    """Return the stream of samples that the flags describe.

    Args:
        dataset: as `open_dataset` opened it.
        config: of the run.
        policy: whose samples these are; see `additions`.
        split: `train`, or `eval` for the episodes that `--dataset.eval_split` holds out, whose images
            are left as they are.

    Raises:
        UserError: weights, exclusions or annotations cannot be read or do not fit the datasets.
    """
    data = config.dataset
    filters = FrameFilter(
        min_episode_frames=data.min_episode_frames,
        drop_last=getattr(policy, "drop_n_last_frames", 0),
        trim_idle=data.trim_idle,
        exclude=left_out(dataset, data),
        eval_split=data.eval_split,
        split=split,
        seed=config.seed,
    )
    mixture = make_mixture(
        dataset,
        weights=weighted_mixture(data)
        or (data.weights if data.weights in WEIGHTS else _read_weights(Path(data.weights))),
        scores=_scores(data.data_ids) if data.weights == "score" else None,
        balance_tasks=data.balance_tasks,
        filters=filters,
        seed=config.seed,
    )
    strength = (data.augment_color, data.augment_hue, data.augment_geometry) if split == "train" else ()
    stream = TrainingStream(
        dataset,
        mixture,
        seed=config.seed,
        cameras=data.cameras,
        augmentation=Augmentation(*strength),
        annotations=read_annotated(dataset, data),
        task_mix=data.task_mix if data.use_annotated_tasks else 0.0,
    )
    return PolicyStream(stream, additions(dataset, config, policy))


def left_out(dataset: MultiLeRobotDataset, data: DatasetConfig) -> dict[str, list[int]]:
    """Return the recorded numbers of the episodes that the flags leave out, by repo id.

    Raises:
        UserError: a file cannot be read, or `--dataset.only_successes` asks what nobody knows; see
            `read_outcomes`.
    """
    excluded = read_exclusions(data.exclude) if data.exclude else {}
    if not data.only_successes:
        return excluded
    success = read_outcomes(dataset, file=data.success, assume_success=data.assume_success).success
    logger.info("%s of %s episodes failed and are left out", int((~success).sum()), len(success))
    owner, recorded = np.asarray(dataset.episode_dataset), np.asarray(dataset.episode_recorded)
    for number, repo_id in enumerate(dataset.repo_ids):
        failed = recorded[(owner == number) & ~success].tolist()
        excluded[repo_id] = [*excluded.get(repo_id, []), *failed]
    return excluded


def read_annotated(dataset: MultiLeRobotDataset, data: DatasetConfig) -> AnnotatedEpisodes | None:
    """Return the annotations that the flags ask for; views of cameras are a help, where there are any."""
    by_views = camera_order(data.cameras).by_views and data.annotations.is_dir()
    return AnnotatedEpisodes(dataset, data.annotations) if data.use_annotated_tasks or by_views else None


def additions(dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig) -> list[Addition]:
    """Return what a policy's samples need beside what was recorded: noise, time and indicator, or the return.

    Raises:
        UserError: advantages or a value function's targets cannot be had; see `make_conditioning` and
            `ValueTargets`.
    """
    family = family_of(policy)
    if config.advantage.mode != "off" and not family.acts:
        raise UserError("--advantage.mode tells pi0 its advantages; a value function has none")
    conditioning = make_conditioning(config.advantage, dataset, config.seed)
    needed = [NEEDS[need](dataset, config, policy) for need in family.needs]
    return [*needed, *([conditioning] if conditioning else [])]


def _flow(dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig) -> Addition:
    return FlowDraws(policy, config.seed)


def _return(dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig) -> Addition:
    data = config.dataset
    return ValueTargets(dataset, policy, success=data.success, assume_success=data.assume_success)


def _seed(dataset: MultiLeRobotDataset, config: TrainConfig, policy: PreTrainedConfig) -> Addition:
    return SeedDraw(config.seed)


# What the record of a family may ask for.
NEEDS = {"flow": _flow, "return": _return, "seed": _seed}


def _read_weights(path: Path) -> dict[str, float]:
    if path.suffix != ".json":
        raise UserError(f"--dataset.weights={path} is none of {', '.join(WEIGHTS)}, and no .json file")
    content = read_json(path)
    if not isinstance(content, dict) or not all(type(weight) in (int, float) for weight in content.values()):
        raise UserError(f"{path} must hold a JSON object of repo ids, each with a number")
    return content


class PolicyStream(Dataset):
    """A stream of samples with what the policy needs beside each.

    That is a pure function of the position 0, 1, 2, ... and the sample. So the loss sequence depends
    neither on the number of processes and workers nor on where a run was stopped and resumed.
    """

    def __init__(self, samples: TrainingStream, added: Sequence[Addition]) -> None:
        self.samples = samples
        self.added = added

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The samples at many positions, each as by itself; a DataLoader reads its batches so."""
        samples = self.samples.__getitems__(positions)
        return [self._with_additions(*one) for one in zip(positions, samples, strict=True)]

    def sample(self, position: int, frame: int) -> dict[str, Any]:
        """The sample of a frame, with what is random about the one at a position."""
        return self._with_additions(position, self.samples.sample(position, frame))

    def _with_additions(self, position: int, sample: dict[str, Any]) -> dict[str, Any]:
        for add in self.added:
            sample = {**sample, **add(position, sample)}
        return sample

    @property
    def conditioning(self) -> Conditioning | None:
        """What tells samples their advantage."""
        return next((added for added in self.added if isinstance(added, Conditioning)), None)

    def report(self) -> dict[str, Any]:
        """What the stream is drawn from, for `data_report.json`."""
        conditioning = self.conditioning
        return {**self.samples.report(), "advantage": conditioning.report() if conditioning else None}


class FlowDraws:
    """What is random about a sample's loss, which the seed and the position say."""

    def __init__(self, policy: PreTrainedConfig, seed: int) -> None:
        self.policy, self.seed = policy, seed

    def __call__(self, position: int, sample: Mapping[str, Any]) -> dict[str, Any]:
        """`noise` and `time`, see `flow_draws`; the inference delay where the policy is trained for it."""
        noise, time = flow_draws(self.policy, self.seed, position)
        drawn = {"noise": torch.from_numpy(noise), "time": torch.tensor(time)}
        if most := choices_of(self.policy).rtc_training_max_delay:
            # All are as likely, as in LeRobot.
            delay = position_generator(self.seed, position, _DELAY).integers(most + 1)
            drawn[INFERENCE_DELAY] = torch.tensor(delay)
        return drawn


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


class SeedDraw:
    """The seed of what a policy draws itself, which the run's seed and the position say."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, position: int, sample: Mapping[str, Any]) -> dict[str, Any]:
        """`seed`, below 2**63; a batch takes its first sample's."""
        return {SEED: int(position_generator(self.seed, position, _FLOW).integers(1 << 63))}


class Collate:
    """Samples into a batch that is ready for the policy, still on the CPU: workers do it, tokenizer included.

    Args:
        pre: the policy's preprocessing; see `on_cpu`, and `as_told` for its prompts.
        policy: whose batches these are.
        ragged: leave out absent cameras and padded words; see `pack_batch`.
    """

    def __init__(self, pre: PolicyProcessorPipeline, policy: PreTrainedConfig, *, ragged: bool) -> None:
        self.pre, self.policy, self.ragged = as_told(on_cpu(pre)), policy, ragged

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Tensors by the keys that the policy's `forward` reads, and where the samples come from."""
        batch = default_collate(samples)
        if not family_of(self.policy).own:
            # LeRobot's policies want floats, and their seed is for the host.
            batch |= {key: to_float(batch[key]) for key in self.policy.image_features}
            batch[SEED] = samples[0][SEED]
        batch = preprocess(batch, self.pre)
        kept = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor | int)}
        return pack_batch(self.policy, kept) if self.ragged else kept


# Signals that ask training to stop: the trainer finishes its step, for which its workers still load data.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Seconds after which a worker notices that the trainer is gone.
_ORPHANED = 5.0
# Seconds from the end of a killed worker's connections to its SIGCHLD, at most.
_DYING = 2.0


@contextlib.contextmanager
def stop_signals_held_back() -> Iterator[None]:
    """Deliver SIGINT and SIGTERM after the body; to processes that are forked in it, never by themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_the_trainer(worker: int) -> None:
    """Let a worker, forked with stop signals held back, end when the trainer ends it or is gone.

    Terminals and schedulers signal whole process groups, and the step under way still needs its data: their
    SIGINT and SIGTERM do nothing. The trainer's do: multiprocessing sends one, then waits for ever.
    """
    if not hasattr(signal, "sigtimedwait"):  # macOS: there any signal ends a worker
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        return
    parent = multiprocessing.parent_process()
    assert parent is not None
    trainer = parent.pid

    def wait() -> None:
        while os.getppid() == trainer:
            received = signal.sigtimedwait(STOP_SIGNALS, _ORPHANED)
            if received is not None and received.si_pid == trainer:
                break
        os._exit(0)

    threading.Thread(target=wait, name="end", daemon=True).start()


def load_batches(
    stream: PolicyStream,
    config: TrainConfig,
    collate: Collate,
    batch_sampler: Iterable[list[int]],
    *,
    pin: bool,
    prefetch: int = 2,
) -> Iterator[dict[str, Any]]:
    """Yield batches of the positions that a sampler names; `prefetch` are made ahead by each worker.

    Raises:
        UserError: too many episodes turn out to be bad.
    """
    # Workers are forked after the tokenizer was used; it would warn that it must not run in threads there.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader = DataLoader(
        stream,
        batch_sampler=batch_sampler,
        num_workers=config.num_workers,
        collate_fn=collate,
        pin_memory=pin,
        prefetch_factor=prefetch if config.num_workers else None,
        worker_init_fn=end_with_the_trainer,
    )
    with stop_signals_held_back():
        loaded = iter(loader)
    try:
        yield from loaded
    except UserError as error:
        # What a worker raised comes as the text of its traceback, which ends with the sentence.
        name = f"{type(error).__module__}.{type(error).__qualname__}: "
        raise UserError(str(error).rpartition(name)[2].strip()) from None
    except (EOFError, OSError):
        # The connections of a killed worker may end before the system says that it is dead: then PyTorch
        # interrupts this with what `lost_workers_named` understands.
        time.sleep(_DYING)
        raise


@contextlib.contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turn the error that a worker was killed into a sentence.

    PyTorch raises it on SIGCHLD, so wherever the main thread is.

    Raises:
        UserError: a worker was killed, as by the system when memory is short.
    """
    try:
        yield
    except RuntimeError as error:
        texts = (str(error.__cause__), str(error))  # the cause, if it is one of these too, says how
        reason = next((text for text in texts if text.startswith("DataLoader worker")), None)
        if reason is None:
            raise
        raise UserError(
            f"{reason.partition('. ')[0].rstrip('. ')}: if memory is short, take fewer --num_workers, "
            "and go on from the last checkpoint with --resume=true"
        ) from error


def batch_sampler(
    stream: PolicyStream, config: TrainConfig, steps: range, rank: int, world_size: int
) -> StreamBatchSampler:
    """The positions of a process's micro-batches, at steps numbered from 0."""
    per_step = config.gradient_accumulation_steps
    return StreamBatchSampler(
        batch_size=config.batch_size,
        rank=rank,
        world_size=world_size,
        start_batch=steps.start * per_step,
        num_batches=len(steps) * per_step,
        accumulation=per_step,
        cost=stream.samples.images_at if config.ragged and stream.samples.ragged else None,
    )


def batches(
    stream: PolicyStream,
    config: TrainConfig,
    collate: Collate,
    *,
    start_step: int,
    rank: int,
    world_size: int,
    pin: bool,
) -> Iterator[dict[str, Any]]:
    """Return this process's micro-batches from the first of step `start_step` to the last of the run.

    The sampler splits the global stream by rank itself, so the loader must not be given to
    `accelerator.prepare`, which would split it once more.

    Raises:
        UserError: too many episodes turn out to be bad.
    """
    sampler = batch_sampler(stream, config, range(start_step, config.steps), rank, world_size)
    return load_batches(stream, config, collate, sampler, pin=pin, prefetch=4)
