"""LeRobot's flags that DePi does not have -> what to use instead."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from depi.flag_sources import read_flags
from depi.flags import check_flags, replacement

COMMAND = "depi/train.py"
_CONFIG = Path(__file__).with_name("config.py")

_PRESET = "the optimizer is set with --policy.optimizer_lr, --policy.optimizer_weight_decay and the like"
_SCHEDULE = (
    "the schedule is set with --policy.scheduler_warmup_steps, --policy.scheduler_decay_steps and "
    "--policy.scheduler_decay_lr"
)
_DECODER = "the faster decoder is chosen for each video; leave it out"
_LOADER = "the loader needs no such setting: choose --num_workers, and leave it out"

REPLACED_FLAGS = {
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
    "hydra.*": "flags are --name=value; see --help",
    "device": "use --policy.device",
    "offline_steps": "use --steps",
    "offline.steps": "use --steps",
    "training.*": "flags have no such prefix: --batch_size, --steps, --save_freq, --log_freq",
}


# Fields of LeRobot's train_config.json, of some version, that are no flags.
_NO_FLAGS = ("checkpoint_path", "dataset.local_files_only")


def without_lerobots_own(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A `train_config.json` without what only LeRobot has: what REPLACED_FLAGS names.

    Returns:
        what is left, and the names of what was left out, but for values that are null, false or empty.
    """
    flags = read_flags(_CONFIG, "TrainConfig")
    kinds = {name: content[name].get("type") for name in flags.choices if isinstance(content.get(name), dict)}
    ours = flags.known(kinds).keys()
    gone: list[str] = []

    def keep(part: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        kept: dict[str, Any] = {}
        for key, value in part.items():
            name = prefix + key
            if name in flags.sections and isinstance(value, dict):
                kept[key] = keep(value, f"{name}.")
            elif name == "env_eval_freq":
                kept.setdefault("eval_freq", value)
            elif name not in ours and (name in _NO_FLAGS or replacement(name, REPLACED_FLAGS)):
                gone.extend([name] if value else [])
            else:
                kept[key] = value
        return kept

    return keep(content, ""), gone


def check_train_flags(args: Sequence[str]) -> list[str]:
    """Print the help or refuse wrong flags, before slow imports.

    Returns:
        the flags as `depi.flags.check_flags` normalises them.

    Raises:
        UserError: a flag is unknown, or a number is not valid.
        SystemExit: `--help`, after printing it.
    """
    return check_flags(_CONFIG, "TrainConfig", args, COMMAND, replaced=REPLACED_FLAGS)
