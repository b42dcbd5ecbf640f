"""The configuration of a training run: every field is a flag, and is saved with each checkpoint."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import draccus
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import PeftConfig
from lerobot.configs.default import WandBConfig as LeRobotWandBConfig
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import CHECKPOINTS_DIR

import depi.evaluation.registered  # noqa: F401  registers --env.type=so101
from depi.datasets.recording.cameras import check_slots
from depi.datasets.recording.joints import SPACES
from depi.datasets.union.lists import read_conventions
from depi.evaluation.config import EpisodesConfig
from depi.policies.choices import choices_beside
from depi.policies.families import family_of
from depi.training.mixture import MixtureSource, read_mixture

TRAIN_CONFIG_NAME = "train_config.json"
ADVANTAGE_MODES = ("off", "on", "use")
REDUCE_DTYPES = ("float32", "bfloat16")
SHARDINGS = ("none", "full", "hybrid")


@dataclass
class DatasetConfig:
    """Which datasets, and how they are read."""

    # One dataset: a Hub repo id, an address (s3://bucket/folder), or the name of the local tree at `root`.
    repo_id: str | None = None
    root: Path | None = None
    revision: str | None = None
    episodes: list[int] | None = None
    # Several datasets: a JSON file with a list of repo ids and addresses.
    repo_ids: Path | None = None
    # Or a list of {repo_id, root, revision, episodes, weight}, here or in a JSON or YAML file.
    mixture: list[MixtureSource] | Path | None = None
    # Where `--num_datasets` finds `dataset_list_valid.json` and `catalog.parquet`.
    data_ids: Path = Path("data_ids")
    # No network: everything must have been fetched by an earlier run.
    offline: bool = False
    # A folder of `depi prepare`, read instead of the videos.
    prepared: Path | None = None
    # The run stops when more than this share of the datasets cannot be used,
    max_bad_datasets: float = 0.25
    # or more than this share of the episodes in use cannot be read.
    max_bad_fraction: float = 0.02
    # Train also on episodes with faults. null: only value functions and advantages, which failures teach.
    use_bad_episodes: bool | None = None

    # Units of state and action: degrees, normalized (±100 is a nominal range) or native (as recorded).
    joint_convention: str = "degrees"
    # The units that datasets were recorded in, where they do not show them: a JSON file
    # {repo_id: degrees_v1, degrees, normalized, radians or native}.
    conventions: dict[str, str] | Path = field(default_factory=dict)
    # Take constant offsets between leader and follower out of the commands.
    correct_offsets: bool = False
    # Action steps per second; null keeps each dataset's own rate.
    action_freq: float | None = None

    # Camera slots; further cameras of a dataset are not read.
    max_cameras: int = 3
    # LeRobot's own policies: pixels of a side, letterboxed; null: one dataset as recorded, several 224.
    image_size: int | None = None
    # Slots of the cameras: by name, by view (wrist, front, top, side), shuffle for each sample, or a list of
    # cameras or views such as front,wrist,top: slot 0 is for the first, others are left out.
    cameras: str = "name"
    # Random changes of the images, 0 to 2 with 1 the usual strength. Hue is slow; geometry spares the wrist.
    augment_color: float = 0.0
    augment_hue: float = 0.0
    augment_geometry: float = 0.0

    # How often each dataset is drawn: proportional (to its frames), sqrt, uniform, score (frames times the
    # catalogue's score), or a JSON file {repo_id: weight}.
    weights: str = "proportional"
    # Draw the tasks of a dataset equally often.
    balance_tasks: bool = False
    # Leave out shorter episodes, the rest before and after the motion, and those of a JSON file
    # {repo_id: [episode, ...]}.
    min_episode_frames: int = 1
    trim_idle: bool = False
    exclude: Path | None = None
    # Hold this share of the episodes out of training.
    eval_split: float = 0.0

    # Successes where recordings do not say: JSON, {repo_id: true} or {repo_id: {episode: true}}.
    success: Path | None = None
    # Take episodes of which nothing is known for successes.
    assume_success: bool = False
    # Leave out the episodes that failed.
    only_successes: bool = False

    # Take task texts from annotation sidecars, for this share of the samples.
    use_annotated_tasks: bool = False
    task_mix: float = 1.0
    # Where the sidecars are; `--dataset.cameras=view` reads the cameras' views there.
    annotations: Path = Path("so100_data/annotations")

    def __post_init__(self) -> None:
        if self.mixture is not None:
            self.mixture = read_mixture(self.mixture)
        self.conventions = read_conventions(self.conventions)
        if self.joint_convention not in SPACES:
            raise ValueError(
                f"--dataset.joint_convention={self.joint_convention} is none of {', '.join(SPACES)}"
            )
        for name, high in (
            ("max_bad_datasets", 1.0),
            ("max_bad_fraction", 1.0),
            ("task_mix", 1.0),
            ("augment_color", 2.0),
            ("augment_hue", 2.0),
            ("augment_geometry", 2.0),
        ):
            if not 0 <= getattr(self, name) <= high:
                raise ValueError(f"--dataset.{name} must be 0 to {high:g}, not {getattr(self, name)}")
        if not 0 <= self.eval_split < 1:
            raise ValueError(f"--dataset.eval_split must be at least 0 and below 1, not {self.eval_split}")
        for name in ("max_cameras", "min_episode_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"--dataset.{name} must be at least 1, not {getattr(self, name)}")
        if self.image_size is not None and not 16 <= self.image_size <= 4096:
            raise ValueError(f"--dataset.image_size must be 16 to 4096, not {self.image_size}")
        check_slots(self.cameras, self.max_cameras)
        if self.action_freq is not None and not 0 < self.action_freq <= 1000:
            raise ValueError(f"--dataset.action_freq must be above 0, not {self.action_freq}")


@dataclass
class EvalConfig(EpisodesConfig):
    """How much an evaluation during training measures."""

    # Held-out samples; the same ones, with the same noise and times, at every evaluation.
    n_samples: int = 1024


@dataclass
class WandBConfig(LeRobotWandBConfig):
    """Metrics on Weights & Biases."""

    project: str = "depi"


@dataclass
class EmaConfig:
    """An exponential moving average of the weights, float32, kept in every checkpoint."""

    # 0.999, say: at each step the average moves by 1 - decay towards the weights. null: no average.
    decay: float | None = None
    # `pretrained_model` holds the average; the weights themselves lie in `training_state`. Else the reverse.
    export: bool = False


@dataclass
class AdvantageConfig:
    """RECAP: tell the policy in its prompt whether what is recorded is better than usual."""

    # off: nothing is told; on: everything is good, for the first training; use: as --advantage.path says.
    mode: str = "off"
    # The folder that `depi advantage` has written.
    path: Path | None = None
    # This share of the samples is told nothing, which makes guidance possible when the policy runs.
    dropout: float = 0.3

    def __post_init__(self) -> None:
        # YAML takes a plain on and off for truth values.
        self.mode = {"True": "on", "False": "off"}.get(str(self.mode), self.mode)
        if self.mode not in ADVANTAGE_MODES:
            raise ValueError(f"--advantage.mode={self.mode} is none of {', '.join(ADVANTAGE_MODES)}")
        if (self.mode == "use") != (self.path is not None):
            raise ValueError("--advantage.mode=use and --advantage.path=FOLDER go together")
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"--advantage.dropout must be 0 to 1, not {self.dropout}")


@dataclass
class TrainConfig:
    """Train pi0, or another policy of LeRobot's, on one or many LeRobot datasets.

    Data:    --num_datasets=N (the best N of data_ids/), --dataset.repo_ids=FILE.json,
             --dataset.mixture=FILE.yaml or --dataset.repo_id=USER/NAME
    Policy:  --policy.type=pi0, act, diffusion (from scratch) or --policy.path=FOLDER_OR_REPO (fine-tuning)
    Resume:  --resume=true with --config_path=RUN/checkpoints/last/pretrained_model
             or --output_dir=RUN, or --config_path=USER/RUN of the Hub
    Exit:    0 all steps done; 2 wrong flags, unusable data or too many bad steps, with one sentence why;
             130 (SIGINT) or 143 (SIGTERM) stopped by a signal after finishing the step and saving it;
             a second signal stops at once and saves nothing
    """

    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    policy: PreTrainedConfig | None = None
    num_datasets: int | None = None
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    output_dir: Path | None = None
    job_name: str | None = None
    resume: bool = False
    seed: int = 1000
    num_workers: int = 4
    # Samples per process and micro-batch: a step sees batch_size x processes x accumulation samples.
    batch_size: int = 8
    gradient_accumulation_steps: int = 1
    # Optimizer steps; every other count of steps (frequencies, warm-up, decay) is in the same unit.
    steps: int = 100_000
    log_freq: int = 200
    # 0 saves at the end only.
    save_freq: int = 20_000
    # Once a checkpoint is complete, remove those before the newest N, but for steps that are multiples of
    # keep_every; null keeps all. One of full-size pi0 takes 45 GB.
    keep_last: int | None = 3
    keep_every: int | None = None
    ema: EmaConfig = field(default_factory=EmaConfig)
    # Publish each checkpoint as --policy.repo_id, in the background and with a tag for its step;
    push_to_hub: bool = False
    # with what it takes to go on from there: --resume=true --config_path=USER/NAME.
    save_checkpoint_to_hub: bool = False
    # Every so many steps, and after the last: the loss on the episodes that --dataset.eval_split holds out,
    # and rollouts in the simulator of --env.type. 0: never.
    eval_freq: int = 20_000
    eval: EvalConfig = field(default_factory=EvalConfig)
    # The environment of the data, by LeRobot's types: --env.type=pusht, aloha, so101; --env.task and more.
    env: EnvConfig | None = None
    # A step leaves the weights as they are when its loss or gradient norm is not finite, or above these.
    loss_threshold: float | None = None
    grad_norm_threshold: float | None = None
    # The run stops, at the next log line, once it has skipped more steps than this since its beginning.
    max_bad_steps: int = 100
    # Profile so many steps, from the fourth on, or those of a range, such as 100-109.
    profile: str | None = None
    # Refuse a checkpoint of --policy.path whose keys do not match exactly.
    strict: bool = True
    # Compile the layers. null: on CUDA.
    compile: bool | None = None
    # Check a new kind of GPU first, and leave out what it computes wrongly.
    gpu_check: bool = True
    # Compute only what is there of cameras and prompts, and give all processes as many images; the losses
    # of the samples are the same without.
    ragged: bool = True
    # With several processes: none, each holds the whole network (DDP); full, each holds a part of weights,
    # gradients and optimizer state (FSDP2); hybrid, the processes of a machine share one replica.
    sharding: str = "none"
    # In what several processes add gradients up: float32 or bfloat16.
    reduce_dtype: str = "float32"
    # Share of the layers, 0 to 1, whose activations are computed again in the backward pass: less memory for
    # more time, up to a third.
    recompute: float = 0.0
    # LoRA: --peft.r=16 and further flags of LeRobot's; null trains the weights themselves.
    peft: PeftConfig | None = None
    # The `pretrained_model` folder of the checkpoint from which a resumed run goes on.
    resume_from: Path | None = field(init=False, default=None)
    # Whether nothing says in which precision to compute; see `depi.training.device_defaults`.
    precision_open: bool = field(init=False, default=False)
    wandb: WandBConfig = field(default_factory=WandBConfig)

    def __post_init__(self) -> None:
        for name in ("batch_size", "gradient_accumulation_steps", "steps", "log_freq"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        for name in ("eval_freq", "max_bad_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} must not be negative, not {getattr(self, name)}")
        for name in ("loss_threshold", "grad_norm_threshold"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"--{name} must be positive, not {value}")
        for name in ("n_episodes", "n_samples"):
            if getattr(self.eval, name) < 1:
                raise ValueError(f"--eval.{name} must be at least 1, not {getattr(self.eval, name)}")
        if self.profile is not None:
            steps_to_profile(self.profile, 0)
        if self.sharding not in SHARDINGS:
            raise ValueError(f"--sharding={self.sharding} is none of {', '.join(SHARDINGS)}")
        if self.reduce_dtype not in REDUCE_DTYPES:
            raise ValueError(f"--reduce_dtype={self.reduce_dtype} is none of {', '.join(REDUCE_DTYPES)}")
        if self.sharding != "none" and self.peft is not None:
            raise ValueError("--peft does not go with --sharding: what it trains is small; use DDP")
        if not 0 <= self.recompute <= 1:
            raise ValueError(f"--recompute must be 0 to 1, not {self.recompute}")
        for name in ("keep_last", "keep_every"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        if self.keep_every is not None and self.keep_last is None:
            raise ValueError("--keep_every needs --keep_last: without it all checkpoints are kept")
        if self.ema.decay is not None and not 0 <= self.ema.decay < 1:
            raise ValueError(f"--ema.decay must be at least 0 and below 1, not {self.ema.decay}")
        if self.ema.decay is not None and self.peft is not None:
            raise ValueError("--ema.decay does not go with --peft: average the weights of full training")
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
        if self.num_workers < 0:
            raise ValueError(f"--num_workers must not be negative, not {self.num_workers}")
        if self.num_datasets is not None and self.num_datasets < 1:
            raise ValueError(f"--num_datasets must be at least 1, not {self.num_datasets}")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-able values."""
        encoded: dict[str, Any] = draccus.encode(self)
        if self.policy is not None:
            encoded["policy"] |= choices_beside(self.policy)
        return {
            name: value for name, value in encoded.items() if name not in ("resume_from", "precision_open")
        }

    @property
    def as_recorded(self) -> bool:
        """Whether images keep the keys of their cameras: one dataset, for a policy of LeRobot's."""
        lerobots = self.policy is not None and not family_of(self.policy).own
        return lerobots and self.dataset.repo_id is not None and self.dataset.cameras == "name"

    @property
    def letterboxed(self) -> bool:
        """Whether a policy of LeRobot's sees images that are scaled to one square."""
        lerobots = self.policy is not None and not family_of(self.policy).own
        return lerobots and not (self.as_recorded and self.dataset.image_size is None)

    @property
    def pushes(self) -> bool:
        """Whether checkpoints are published during training."""
        return self.push_to_hub or self.save_checkpoint_to_hub

    @property
    def checkpoints_dir(self) -> Path:
        """Where the run keeps its checkpoints."""
        assert self.output_dir is not None
        return self.output_dir / CHECKPOINTS_DIR


def steps_to_profile(wanted: str, start_step: int) -> range:
    """The steps, numbered from 1, that `--profile` asks for in a process that starts after `start_step`.

    Raises:
        ValueError: it is neither a number of steps nor FIRST-LAST.
    """
    first, dash, last = wanted.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()):
        raise ValueError(f"--profile={wanted} is neither a number of steps nor FIRST-LAST")
    steps = range(int(first), int(last) + 1) if dash else range(start_step + 4, start_step + 4 + int(first))
    if not steps or steps[0] < 1:
        raise ValueError(f"--profile={wanted} names no step")
    return steps


def config_to_json(config: TrainConfig) -> str:
    """Return the text of `train_config.json`, as `--config_path` reads it."""
    return json.dumps(config.to_dict(), indent=2) + "\n"
