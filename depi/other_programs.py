"""What users of LeRobot, openpi, OpenTau and the first DePi type -> what it is here.

Everything is looked up here by `depi.flags` and `depi.cli`; docs/coming-from.md is the page for people.
"""

from collections.abc import Mapping

TRAIN = "depi/train.py"

_PRESET = "the optimizer is set with --policy.optimizer_lr, --policy.optimizer_weight_decay and the like"
_SCHEDULE = (
    "the schedule is set with --policy.scheduler_warmup_steps, --policy.scheduler_decay_steps and "
    "--policy.scheduler_decay_lr"
)
_DECODER = "the faster decoder is chosen for each video; leave it out"
_LOADER = "the loader needs no such setting: choose --num_workers, and leave it out"
_ROBOT = "robots are driven by LeRobot's lerobot-rollout --policy.path=CHECKPOINT, see docs/robot.md"
_ADVANTAGE = "use --advantage.mode=on, or --advantage.mode=use with --advantage.path of `depi advantage`"

_CONFIG = "use --config_path=FILE"

# Flags of every command; a name that ends in `.*` stands for all that begin so, and for the section itself.
_ANYWHERE = {
    "control.*": _ROBOT,
    "robot.*": _ROBOT,
    "teleop.*": _ROBOT,
    "hydra.run.dir": "use --output_dir",
    "hydra.*": "flags are --name=value",
    "device": "use --policy.device",
    "config_dir": _CONFIG,
    "config_name": _CONFIG,
}

# Flags of LeRobot, of some version, that settings of a run's own take the place of.
_LEROBOT_TRAIN = {
    "dataset.video_backend": _DECODER,
    "dataset.return_uint8": "images are always passed as uint8; leave it out",
    "dataset.image_transforms.*": (
        "augmentation is set with --dataset.augment_color, --dataset.augment_hue, --dataset.augment_geometry"
    ),
    "dataset.use_imagenet_stats": (
        "LeRobot's own policies get ImageNet's statistics, pi0 scales images to -1..1; leave it out"
    ),
    "dataset.streaming": "datasets are downloaded to the local cache; leave it out",
    "dataset.repo_type": "only dataset repositories are read, no buckets",
    "dataset.depth_output_unit": "depth images are not read",
    "dataset.local_files_only": "use --dataset.root=FOLDER, or --dataset.offline=true",
    "use_amp": "choose --policy.dtype=bfloat16 (float32 master weights are kept)",
    "optimizer.*": _PRESET,
    "scheduler.*": _SCHEDULE,
    "use_policy_training_preset": f"{_PRESET}, and {_SCHEDULE}",
    "prefetch_factor": _LOADER,
    "persistent_workers": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "tolerance_s": "timestamps are checked when a dataset is opened, with limits of its own; leave it out",
    "save_checkpoint": "the last step is always saved; --save_freq=0 saves nothing before it",
    "cudnn_deterministic": "set --seed; on the CPU runs repeat bit by bit",
    "rename_map": "cameras are assigned to slots by name or view: see --dataset.cameras",
    "reward_model.*": "reward models are trained with LeRobot's own lerobot-train",
    "sample_weighting.*": "weights of datasets are set with --dataset.weights",
    "job.*": "to train on other machines see configs/launch",
    "env_eval_freq": "use --eval_freq, with --env.type and --env.task",
    "eval_steps": "use --eval_freq, with --dataset.eval_split",
    "max_eval_samples": "use --eval.n_samples",
    "eval.*": "evaluations are set with --eval_freq, --eval.n_episodes, --eval.n_videos, --eval.n_samples",
    "wandb.project_name": "use --wandb.project",
    "offline_steps": "use --steps",
    "offline.*": "use --steps, --num_workers; online training is not done here",
    "online.*": "online training is not done here",
    "training.offline_steps": "use --steps",
    "training.*": "flags have no such prefix: --batch_size, --steps, --save_freq, --log_freq",
}

# OpenTau: these mean something that a file must say in other words.
_OPENTAU_TRAIN = {
    "policy.advantage": _ADVANTAGE,
    "policy.advantage_threshold": "`depi advantage` writes it down, and training reads it there",
    "reward_config.*": "use --policy.number_of_bins, --policy.c_fail, --policy.reward_normalizer",
    "dataset_mixture.*": (
        "name the datasets with --dataset.mixture, a list of {repo_id, root, episodes, weight}, and the rate "
        "with --dataset.action_freq"
    ),
    "dataloader_batch_size": "use --batch_size, of each process, and --gradient_accumulation_steps",
    "num_cams": "use --dataset.max_cameras",
    "resolution": "use --policy.image_resolution",
    "action_chunk": "use --policy.chunk_size",
    "max_state_dim": "use --policy.max_state_dim",
    "max_action_dim": "use --policy.max_action_dim",
    "val_freq": "use --eval_freq, with --dataset.eval_split",
    "last_checkpoint_only": "use --keep_last=1",
    "loss_weighting.*": "pi0 has one loss; leave it out",
    "trace_nans": "bad steps are skipped and counted, see --max_bad_steps; leave it out",
    "accelerate_config": "launch with accelerate launch --config_file=FILE depi/train.py",
}

# openpi's scripts/train.py CONFIG --exp-name=...
_OPENPI_TRAIN = {
    "exp_name": "use --job_name, or --output_dir",
    "checkpoint_base_dir": "use --output_dir",
    "overwrite": "choose another --output_dir, or remove the folder",
    "num_train_steps": "use --steps",
    "log_interval": "use --log_freq",
    "save_interval": "use --save_freq",
    "keep_period": "use --keep_every",
    "ema_decay": "use --ema.decay",
    "fsdp_devices": "use --sharding=full with accelerate launch --num_processes=N",
    "lr_schedule.peak_lr": "use --policy.optimizer_lr",
    "lr_schedule.*": _SCHEDULE,
    "weight_loader.*": "use --policy.path=FOLDER_OR_REPO",
    "pytorch_weight_path": "use --policy.path=FOLDER_OR_REPO",
    "pytorch_training_precision": "use --policy.dtype",
    "data.*": "use --dataset.repo_id; see --help",
    "model.*": "use --policy.type and --policy.path; see --help=policy",
    "wandb_enabled": "use --wandb.enable",
    "project_name": "use --wandb.project",
}

# The DePi that this one follows: lerobot/scripts/accelerate_train.py.
_FIRST_DEPI_TRAIN = {
    "reward_alignment.*": f"{_ADVANTAGE}; see docs/recap.md",
}

_EVAL = {
    "eval.use_async_envs": "each environment has a process of its own: choose --eval.batch_size",
    "eval.max_episodes_rendered": "use --eval.n_videos",
    "eval.max_parallel_tasks": "use --eval.batch_size",
    "env.max_parallel_tasks": "use --eval.batch_size",
    "env.obs_type": "cameras and state are always read; leave it out",
    "env.render_mode": "videos are set with --eval.n_videos; leave it out",
    "env.task_ids": "use --env.options='{task_ids: [0, 1]}'",
    "use_amp": "a policy runs in the precision of its checkpoint; leave it out",
    "policy.use_amp": "a policy runs in the precision of its checkpoint; leave it out",
    "policy.pretrained_path": "use --policy.path",
    "pretrained_policy_name_or_path": "use --policy.path",
    "out_dir": "use --output_dir",
    "job_name": "use --output_dir",
}

_VIEW = {
    "mode": "the page is opened here: see --output for a file",
    "save": "use --output=FILE.mp4",
    "output_dir": "use --output=FILE.mp4",
    "local_files_only": "use --root=FOLDER",
    "batch_size": "leave it out",
    "num_workers": "leave it out",
}

# By command: flags that are none here -> what to use instead, a clause.
FLAGS: Mapping[str, Mapping[str, str]] = {
    TRAIN: _ANYWHERE | _LEROBOT_TRAIN | _OPENTAU_TRAIN | _OPENPI_TRAIN | _FIRST_DEPI_TRAIN,
    "depi eval": _ANYWHERE | _EVAL,
    "depi view": _ANYWHERE | _VIEW,
}

# Values that other programs, or earlier versions, have.
VALUES: Mapping[str, Mapping[str, str]] = {
    "env.type": {
        "xarm": "LeRobot has dropped this environment: `depi eval --env.type=PACKAGE:ID` takes any gym id"
    },
    "policy.type": {
        "pi0fast": "pi0-FAST is trained with LeRobot's own lerobot-train",
        "pi0_fast": "pi0-FAST is trained with LeRobot's own lerobot-train",
        "tdmpc": "it is trained with LeRobot's own lerobot-train",
    },
}

# Words that stand alone: `policy=act`, as LeRobot had it with Hydra.
HYDRA = {"policy": "policy.type", "env": "env.type", "dataset_repo_id": "dataset.repo_id"}

# Flags of one letter.
SHORT = {"-p": "policy.path"}

# By command: names that are accepted for a while -> today's name.
_IDS = {"ids_file": "repo_ids", "dataset.ids_file": "repo_ids"}
RENAMED: Mapping[str, Mapping[str, str]] = {
    "depi collect-ids": _IDS | {"output_dir": "data_ids"},
    "depi view": {"episode_index": "episode"},
}
# Datasets are named with these everywhere, behind `dataset.` in commands that have other things to name too.
DATA_WORDS = ("repo_id", "repo_ids", "root", "revision", "data_ids")

# Commands and scripts, without `lerobot-`, `opentau-` and `.py` -> what does it here.
_LOOK = "look at an episode with `depi view USER/NAME --episode=0`"
_DRIVE = (
    "LeRobot's own commands drive robots (lerobot-record, lerobot-teleoperate, lerobot-rollout), and find "
    "DePi's policies: see docs/robot.md"
)
_UPLOAD = "upload a dataset with `depi upload FOLDER USER/NAME`, which tags it, so that LeRobot loads it"
_CHECK = "see what works on this machine with `depi doctor`"
_AUGMENTED = "see a sample as the network sees it with `depi samples RUN --step=1`"
VERBS = {
    "eval-policy": "roll a checkpoint out with `depi eval`",
    "visualize-dataset": _LOOK,
    "visualize-dataset-html": _LOOK,
    "dataset-viz": _LOOK,
    "control-robot": _DRIVE,
    "control-sim-robot": _DRIVE,
    "record": f"{_DRIVE}; simulated arms are recorded with `depi sim record`",
    "teleoperate": _DRIVE,
    "replay": _DRIVE,
    "calibrate": "LeRobot's own lerobot-calibrate does it, see docs/robot.md",
    "find-port": "LeRobot's own lerobot-find-port does it, see docs/robot.md",
    "find-cameras": "LeRobot's own lerobot-find-cameras does it, see docs/robot.md",
    "setup-motors": "LeRobot's own lerobot-setup-motors does it, see docs/robot.md",
    "find-joint-limits": "LeRobot's own lerobot-find-joint-limits does it, see docs/robot.md",
    "rollout": f"roll out in a simulator with `depi eval`; {_DRIVE}",
    "evaluate": "roll a checkpoint out with `depi eval`",
    "accelerate-train": "train with `depi train`, or on several GPUs with accelerate launch depi/train.py",
    "train-pytorch": "train with `depi train`, or on several GPUs with accelerate launch depi/train.py",
    "finetune": "train with `depi train --policy.path=FOLDER_OR_REPO`",
    "compute-norm-stats": "nothing is to be computed before training: the data has its statistics",
    "serve-policy": _DRIVE,
    "filter-so100-data": "find and judge the datasets of the Hub with `depi collect-ids`",
    "push-dataset-to-hub": f"{_UPLOAD}; other formats than LeRobot's are converted by LeRobot's own examples",
    "login": "log in with `hf auth login`",
    "upload-dataset": _UPLOAD,
    "info": _CHECK,
    "display-sys-info": _CHECK,
    "edit-dataset": "LeRobot's own lerobot-edit-dataset does it; relative actions need no other statistics",
    "imgtransform-viz": _AUGMENTED,
    "visualize-image-transforms": _AUGMENTED,
    "policy-server": _DRIVE,
    "robot-client": _DRIVE,
    "train-tokenizer": "LeRobot's own lerobot-train-tokenizer does it",
    "convert-jax-model-to-pytorch": (
        "convert with openpi's own script, and train on what it writes: `depi train --policy.path=FOLDER`"
    ),
    "convert-libero-data-to-lerobot": "convert with openpi's own script, and train on what it writes",
    "convert-aloha-data-to-lerobot": "convert with openpi's own script, and train on what it writes",
    "export": "LeRobot's commands run checkpoints as they are; there is no other format",
    "convert-checkpoint": "checkpoints are whole as they are written",
    "convert-dataset-v21-to-v30": "datasets of v2.0, v2.1 and v3.0 are read as they are",
    "annotate-instruction-rewards": "label frames with `depi advantage`, see docs/recap.md",
}


def verb_hint(word: str) -> str | None:
    """What to type for a command or script of another program; None where that is not known."""
    plain = word.removesuffix(".py").rpartition("/")[2].replace("_", "-")
    for maker in ("lerobot-", "opentau-"):
        plain = plain.removeprefix(maker)
    hint = VERBS.get(plain)
    if hint is None and plain != word and plain in ("train", "eval", "annotate"):
        return f"it is `depi {plain}` here"
    return hint


def replacement(name: str, command: str) -> str | None:
    """What to use instead of another program's flag, a clause; None where that is not known.

    Args:
        name: without dashes, as in `optimizer.lr`; or a section, as in `optimizer`.
        command: such as `depi eval`.
    """
    return _find(name, FLAGS.get(command, _ANYWHERE))


def named_configuration(word: str, command: str) -> str | None:
    """What to use instead of a configuration of openpi's, such as `pi05_libero`; None for any other word."""
    if command != TRAIN or not word.startswith(("pi0_", "pi05_", "debug")):
        return None
    return (
        "openpi's configurations are flags and files: --policy.path=lerobot/pi0_base or lerobot/pi05_base, "
        "--dataset.repo_id=USER/NAME, and openpi's settings in --config_path=configs/train/pi0_base.yaml"
    )


def means_more_here(name: str) -> str | None:
    """The same for what a training configuration of OpenTau or openpi cannot do without."""
    return _find(name, _OPENTAU_TRAIN | _OPENPI_TRAIN | _FIRST_DEPI_TRAIN)


def _find(name: str, flags: Mapping[str, str]) -> str | None:
    for pattern, remedy in flags.items():
        if name in (pattern, pattern.removesuffix(".*")):
            return remedy
        if pattern.endswith(".*") and name.startswith(pattern[:-1]):
            return remedy
    return None


def todays_name(name: str, command: str, known: Mapping[str, object]) -> str:
    """The flag that an accepted other name stands for; `name` itself where it stands for nothing else.

    Args:
        name: without dashes.
        command: such as `depi annotate`.
        known: the command's flags.
    """
    if name in known:
        return name
    plain = RENAMED.get(command, {}).get(name) or _IDS.get(name) or name
    word = plain.removeprefix("dataset.")
    candidates = [plain, *([word, f"dataset.{word}"] if word in DATA_WORDS else [])]
    return next((candidate for candidate in candidates if candidate in known), name)
