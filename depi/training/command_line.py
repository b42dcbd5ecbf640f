"""From the command line of `depi/train.py`, a file and a checkpoint to one checked configuration."""

import datetime
import json
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import draccus
import yaml
from lerobot.configs import PreTrainedConfig, parser
from lerobot.utils.constants import CHECKPOINTS_DIR, LAST_CHECKPOINT_LINK, TRAINING_STATE_DIR

from depi.datasets.recording.addresses import storable_name
from depi.errors import UserError, one_line
from depi.files import read_json
from depi.flags import parse_flags
from depi.hub.client.api import download_file, repo_info, require_token
from depi.hub.names import is_repo_id
from depi.other_programs import TRAIN
from depi.policies import load_config, resolve_checkpoint
from depi.policies.choices import NAMES as CHOICES
from depi.policies.choices import OF_THE_MACHINE, are_beside, check_choices, set_choices, split_flags
from depi.policies.families import family, family_of, own_types
from depi.policies.trust import check_checkpoint
from depi.training.config import TRAIN_CONFIG_NAME, DatasetConfig, TrainConfig
from depi.training.data import mixture_of, weighted_mixture
from depi.training.folders import fetch_checkpoint, last_checkpoint
from depi.training.lerobot_flags import check_train_flags, refuse_other_programs, without_lerobots_own

logger = logging.getLogger(__name__)

# What flags may change about the policy of a resumed run: where it computes, and whether it is published.
FREE_ON_RESUME = ("device", "repo_id", "private", "push_to_hub", "tags", "license", *OF_THE_MACHINE)


def parse_train_config(args: Sequence[str]) -> TrainConfig:
    """Turn the command line of `depi/train.py` into a checked configuration.

    Raises:
        UserError: a flag is unknown or wrong, data or policy are not named exactly once, the output
            directory exists without `--resume`, or there is nothing to resume.
    """
    args = _with_policy_of_file(check_train_flags(args))
    config = _parse_flags(args)
    if config.resume:
        _locate_resumed_run(config, args)
        config.profile = parser.parse_arg("profile", args)  # what was profiled once is not every time
    else:
        _name_policy(config, args)
        _name_output_dir(config)
        config.precision_open = not _names_precision(args)
    check_data_source(config)
    if not family_of(config.policy).own:
        _check_lerobot_policy(config)
    _publish_as_lerobot(config, args)
    _check_foreign_choices(config, args)
    if config.pushes:
        _check_publishing(config)
    return config


def read_train_config(args: Sequence[str]) -> TrainConfig:
    """What the command line of `depi/train.py` says of the training: neither data nor weights are looked for.

    Raises:
        UserError: a flag is unknown or wrong, or no policy is named.
    """
    args = _with_policy_of_file(check_train_flags(args))
    config = _parse_flags(args)
    if not config.resume:
        _name_policy(config, args, weights=False)
        config.precision_open = not _names_precision(args)
    return config


def _names_precision(args: Sequence[str]) -> bool:
    """Whether a flag or the file of `--config_path` says in which precision to compute."""
    if any(arg.startswith("--policy.dtype=") for arg in args):
        return True
    config_path = parser.parse_arg("config_path", args)
    policy = _read_config_file(_find_config_file(config_path)).get("policy") if config_path else None
    return isinstance(policy, dict) and "dtype" in policy


def _parse_flags(args: list[str]) -> TrainConfig:
    return parse_flags(TrainConfig, args, TRAIN, parse=_parse)


def _publish_as_lerobot(config: TrainConfig, args: Sequence[str]) -> None:
    """Publish where LeRobot would: for `--policy.push_to_hub=true`, or a repository that is named."""
    assert config.policy is not None
    typed = {arg.partition("=")[0] for arg in args}
    if "--push_to_hub" in typed or config.pushes:
        return
    if "--policy.push_to_hub" in typed:
        config.push_to_hub = bool(config.policy.push_to_hub)
    elif "--policy.repo_id" in typed:
        config.push_to_hub = True
        logger.info(
            "checkpoints are published as %s, as in LeRobot; --push_to_hub=false keeps them here",
            config.policy.repo_id,
        )


def _check_foreign_choices(config: TrainConfig, args: Sequence[str]) -> None:
    """Refuse what the configuration of a run on the Hub would send away, unless a flag says so too."""
    source = parser.parse_arg("config_path", args)
    if source is None or Path(source).exists() or not is_repo_id(source):
        return
    typed = {arg.partition("=")[0] for arg in args}
    assert config.policy is not None
    if config.pushes and config.policy.repo_id != source and "--policy.repo_id" not in typed:
        raise UserError(
            f"the run {source} publishes its checkpoints as {one_line(config.policy.repo_id, 100)}: say with "
            "--policy.repo_id=USER/NAME where yours shall go, or leave it with --push_to_hub=false "
            "--save_checkpoint_to_hub=false"
        )
    if config.wandb.enable and "--wandb.enable" not in typed:
        raise UserError(
            f"the run {source} sends its metrics to Weights & Biases: say --wandb.enable=true or false"
        )


def _with_policy_of_file(args: list[str]) -> list[str]:
    """Add flags for `policy: {path: ...}` in the file of `--config_path`, where no flag says otherwise."""
    path, kind = parser.get_path_arg("policy", args), parser.get_type_arg("policy", args)
    if path and kind:
        raise UserError(f"--policy.path={path} has its own type: leave out --policy.type={kind}")
    config_path = parser.parse_arg("config_path", args)
    if config_path is None or path or kind or "--resume=true" in args:
        return args
    policy = _read_config_file(_find_config_file(config_path)).get("policy")
    if not isinstance(policy, dict) or "path" not in policy:
        return args
    typed = {arg.partition("=")[0] for arg in args}
    found = {f"--policy.{name}": value for name, value in policy.items() if value is not None}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in found.items()}
    return [*(f"{name}={text}" for name, text in texts.items() if name not in typed), *args]


def _read_config_file(path: Path) -> dict[str, Any]:
    """The content of a YAML or JSON file.

    Raises:
        UserError: it holds no `name: value` lines, or is no YAML.
    """
    try:
        content = read_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no `name: value` lines, as a configuration does")
    return content


def _parse(args: list[str]) -> TrainConfig:
    """Parse with LeRobot's conventions: `--config_path` is a file, its folder or a repo id."""
    given = args
    # A resumed run takes its policy from the checkpoint: the loaded configuration names its type.
    args = parser.filter_path_args(["policy"], args)
    config_path = parser.parse_arg("config_path", args)
    resumed = None
    if "--resume=true" in args:
        resumed = _find_resumed_checkpoint(config_path, parser.parse_arg("output_dir", args))
        config_path = str(resumed)
    if config_path is None:
        own, args = _split_choices(args, {})
        config = draccus.parse(TrainConfig, args=args)
        _set_choices(config, own)
        return config
    content = _read_config_file(_find_config_file(config_path))
    refuse_other_programs(content, config_path)
    content, gone = without_lerobots_own(content)
    if gone:
        logger.warning("%s: settings of LeRobot's that do not count here: %s", config_path, ", ".join(gone))
    if "path" in (content.get("policy") or {}) or parser.get_path_arg("policy", given):
        content.pop("policy", None)
    policy = content.get("policy")
    if isinstance(policy, dict) and "type" in policy:
        # Before anything is made of it: some configurations of LeRobot read the Hub when they are made.
        family(policy["type"])
    own, args = _split_choices(args, policy if isinstance(policy, dict) else {})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(content, file)
        file.flush()
        with draccus.config_type("json"):
            config = draccus.parse(TrainConfig, file.name, args=parser.filter_arg("config_path", args))
    _set_choices(config, own)
    config.resume_from = resumed
    config.resume = resumed is not None  # a resumed run's own configuration says true, for ever
    return config


def _split_choices(args: list[str], policy: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Take what LeRobot's configuration of the policy's type has no field for out of `policy`, and flags."""
    if not are_beside(parser.get_type_arg("policy", args) or policy.get("type", "")):
        return {}, args
    saved = {name: policy.pop(name) for name in CHOICES if name in policy}
    typed, others = split_flags(args, "--policy.")
    return {**saved, **typed}, others


def _set_choices(config: TrainConfig, values: dict[str, Any]) -> None:
    if config.policy is not None and are_beside(config.policy.type):
        set_choices(config.policy, values, "--policy")


def _find_resumed_checkpoint(config_path: str | None, output_dir: str | None) -> Path:
    """Return the `pretrained_model` folder that `--config_path` names, or the last one of `--output_dir`."""
    if config_path is not None and Path(config_path).exists():
        folder = (Path(config_path) if Path(config_path).is_dir() else Path(config_path).parent).resolve()
        if not (folder.parent / TRAINING_STATE_DIR).is_dir():
            raise UserError(
                f"--config_path={config_path} is of no checkpoint: {TRAINING_STATE_DIR} is missing"
            )
        return folder
    if config_path is not None and is_repo_id(config_path) and not Path(config_path).parent.exists():
        return fetch_checkpoint(config_path)
    if config_path is not None and Path(config_path).parent.name == LAST_CHECKPOINT_LINK:
        return last_checkpoint(Path(config_path).parents[1])  # which says what is wrong with it
    if config_path is None and output_dir is not None:
        return last_checkpoint(Path(output_dir) / CHECKPOINTS_DIR)
    raise UserError(
        "--resume=true needs the run to continue: "
        "--config_path=RUN/checkpoints/last/pretrained_model or --output_dir=RUN"
    )


def _find_config_file(config_path: str) -> Path:
    path = Path(config_path)
    if path.is_dir():
        path = path / TRAIN_CONFIG_NAME
    if path.is_file():
        return path
    if config_path.count("/") == 1 and not path.parent.exists():
        revision = repo_info(config_path, repo_type="model").sha
        assert revision is not None
        return download_file(config_path, TRAIN_CONFIG_NAME, revision=revision, repo_type="model")
    raise UserError(f"--config_path={config_path} is neither a file, nor a folder with {TRAIN_CONFIG_NAME}")


def _name_policy(config: TrainConfig, args: Sequence[str], *, weights: bool = True) -> None:
    path = parser.get_path_arg("policy", args)
    if path:
        overrides = parser.get_cli_overrides("policy", args) or []
        revision = parser.parse_arg("pretrained_revision", overrides)
        folder = resolve_checkpoint(path, revision, weights=weights)
        config.policy = load_config(folder, overrides)
        if weights:
            check_checkpoint(folder, config.policy.type)
        config.policy.pretrained_path = folder
    elif weights and config.policy is not None:  # LeRobot's pages name pi0's base in this way
        _find_weights(config.policy, args)
    if config.policy is None:
        raise UserError(
            "no policy: give --policy.type=pi0 to start from scratch or --policy.path to fine-tune"
        )
    family = family_of(config.policy)
    if not family.acts:
        _check_value_function(config)
    elif family.own:
        check_choices(config.policy)
    if family.own and config.dataset.image_size is not None:
        raise UserError(
            f"--dataset.image_size={config.dataset.image_size}: {config.policy.type} sees images of "
            f"--policy.image_resolution={list(config.policy.image_resolution)}, leave it out"
        )
    if config.peft is not None and config.policy.pretrained_path is None:
        raise UserError("--peft adapts a trained policy: name it with --policy.path")
    if family.own and config.policy.use_amp:
        raise UserError("--policy.use_amp is not done here: choose --policy.dtype=bfloat16")
    preset = config.policy.get_optimizer_preset()
    if not preset.lr > 0:
        raise UserError(f"--policy.optimizer_lr must be positive, not {preset.lr}")
    if not preset.grad_clip_norm >= 0:
        raise UserError(
            "--policy.optimizer_grad_clip_norm must be positive, or 0 for no limit, not "
            f"{preset.grad_clip_norm}"
        )
    for arg in args:  # of a device that there is not, LeRobot's configuration makes another one
        if arg.startswith("--policy.device=") and ":" in arg:
            raise UserError(f"{arg}: accelerate gives each process its own; choose with CUDA_VISIBLE_DEVICES")


def _find_weights(policy: PreTrainedConfig, args: Sequence[str]) -> None:
    """Resolve a typed `--policy.pretrained_path`: the weights for a configuration from `--policy.type`."""
    path = parser.parse_arg("policy.pretrained_path", args)
    if path is not None:
        folder = resolve_checkpoint(path, policy.pretrained_revision)
        check_checkpoint(folder, policy.type)
        policy.pretrained_path = folder


def _check_lerobot_policy(config: TrainConfig) -> None:
    """Refuse what needs a network of DePi's own; leaving absent cameras out of batches is one such thing."""
    assert config.policy is not None
    config.ragged = False
    asked = {
        "--compile": config.compile,
        "--recompute": config.recompute > 0,
        "--sharding": config.sharding != "none",
        "--peft": config.peft is not None,
        "--advantage.mode": config.advantage.mode != "off",
    }
    slots = config.dataset.max_cameras
    if config.as_recorded and slots != DatasetConfig.max_cameras:
        raise UserError(
            f"--dataset.max_cameras={slots}: {config.policy.type} sees all cameras of one dataset, as in "
            "LeRobot; leave the flag out, or list those that it shall see: --dataset.cameras=front,wrist"
        )
    if config.resume and config.policy.type == "vqbet":
        raise UserError(
            "a vqbet run cannot go on exactly, LeRobot's class counts the steps of its first stage beside "
            "checkpoints: begin another run from it with --policy.path"
        )
    for flag, given in asked.items():
        if given:
            raise UserError(
                f"{flag} is for DePi's own networks ({own_types()}), and {config.policy.type} is LeRobot's: "
                "leave it out"
            )


def _check_value_function(config: TrainConfig) -> None:
    """Refuse what is for policies that act."""
    if config.peft is not None:
        raise UserError("--peft adapts pi0, a value function is trained whole: leave it out")
    if config.env is not None:
        raise UserError(f"--env.type={config.env.type}: a value function takes no actions, leave it out")
    if config.advantage.mode != "off":
        raise UserError(
            f"--advantage.mode={config.advantage.mode} is for policies: a value function gets none"
        )


def _locate_resumed_run(config: TrainConfig, args: Sequence[str]) -> None:
    """Set where the run goes on: where its checkpoint lies, or in a new folder, as a run of its own.

    The latter is for checkpoints of the Hub, copied ones, and another `--output_dir` than the checkpoint's.
    """
    assert config.resume_from is not None
    given, checkpoint = parser.parse_arg("output_dir", args), config.resume_from.parent
    in_run = (checkpoint / TRAINING_STATE_DIR).is_dir() and checkpoint.parent.name == CHECKPOINTS_DIR
    run = Path(given) if given is not None else checkpoint.parents[1] if in_run else None
    config.output_dir = run
    if run is None or (run / CHECKPOINTS_DIR).resolve() != checkpoint.parent:
        _name_output_dir(config)
    _check_resumed_policy(config, args)


def _check_resumed_policy(config: TrainConfig, args: Sequence[str]) -> None:
    """Refuse flags that would change the policy: a resumed run goes on with the checkpoint's."""
    assert config.resume_from is not None
    saved = load_config(config.resume_from)
    check_checkpoint(config.resume_from, saved.type)  # it may come from the Hub
    flags = [arg for arg in args if arg.startswith("--policy.")]
    names = {flag.removeprefix("--policy.").partition("=")[0].partition(".")[0]: flag for flag in flags}
    for name, flag in names.items():
        if name in FREE_ON_RESUME or not hasattr(saved, name):
            continue
        if getattr(config.policy, name) != getattr(saved, name):
            raise UserError(
                f"{flag} cannot change on resume, the checkpoint has {getattr(saved, name)!r}: leave it out, "
                "or begin another run from the checkpoint with --policy.path"
            )


def _check_publishing(config: TrainConfig) -> None:
    assert config.policy is not None
    if config.policy.repo_id is None or not is_repo_id(config.policy.repo_id):
        raise UserError(f"publishing needs --policy.repo_id=USER/NAME, not {config.policy.repo_id}")
    if config.dataset.offline:
        raise UserError("--dataset.offline keeps off the network: leave out --push_to_hub")
    require_token()


def _name_output_dir(config: TrainConfig) -> None:
    assert config.policy is not None
    kinds = [part.type for part in (config.env, config.policy) if part is not None]
    config.job_name = config.job_name or "_".join(kinds)
    if config.output_dir is None:
        if "/" in config.job_name or not config.job_name.isprintable():
            raise UserError(
                f"--job_name={one_line(config.job_name, 100)} becomes the name of a folder: without / in it"
            )
        now = datetime.datetime.now()
        config.output_dir = Path("outputs/train") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{config.job_name}"
    if config.output_dir.exists() and (not config.output_dir.is_dir() or any(config.output_dir.iterdir())):
        raise UserError(
            f"output directory {config.output_dir} already exists: choose another --output_dir, or continue "
            f"that run with --resume=true --output_dir={config.output_dir}"
        )


def check_data_source(config: TrainConfig) -> None:
    """Raise a UserError unless the flags name the data once, and choices of one dataset go with one."""
    data = config.dataset
    # Before anything shows or stores the names:
    if data.repo_id is not None:
        data.repo_id = storable_name(data.repo_id)
    for source in mixture_of(data):
        source.repo_id = storable_name(source.repo_id)
    flags = {
        "--num_datasets": config.num_datasets,
        "--dataset.repo_ids": data.repo_ids,
        "--dataset.mixture": data.mixture,
        "--dataset.repo_id": data.repo_id,
    }
    named = [flag for flag, value in flags.items() if value is not None]
    if len(named) != 1:
        found = f"not {' and '.join(named)} together" if named else "none was given"
        raise UserError(f"name the data with one of {', '.join(flags)}: {found}")
    for flag, value in (("root", data.root), ("revision", data.revision), ("episodes", data.episodes)):
        if value is not None and data.repo_id is None:
            raise UserError(f"--dataset.{flag} goes with --dataset.repo_id, not with {named[0]}")
    if weighted_mixture(data) and data.weights != "proportional":
        raise UserError("the datasets of --dataset.mixture have weights: leave out --dataset.weights")
