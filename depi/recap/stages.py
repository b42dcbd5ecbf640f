"""The stages of the RECAP loop: names, commands, and what each reads of the ones before."""

import json
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depi.errors import UserError
from depi.flag_sources import read_flags
from depi.flags import check_flags
from depi.recap.loop_config import SEEDS_PER_ITERATION, CommandFlags, RecapConfig
from depi.training.lerobot_flags import check_train_flags
from depi.training.mixture import decode_mixture, read_mixture

DEPI = Path(__file__).parents[1]
TRAIN_SCRIPT = DEPI / "train.py"
# For each command of a stage, the file and name of its configuration class.
VERBS = {
    "train": (DEPI / "training" / "config.py", "TrainConfig"),
    "eval": (DEPI / "evaluation" / "config.py", "EvaluateConfig"),
    "advantage": (DEPI / "recap" / "advantage_config.py", "AdvantageFlags"),
}
# Data flags of the value function's training that other stages which ask for outcomes take by default.
SHARED_DATA = (
    "success",
    "assume_success",
    "annotations",
    "offline",
    "prepared",
    "max_bad_datasets",
    "max_bad_fraction",
)


@dataclass(frozen=True)
class Stage:
    """One command of the loop.

    Attributes:
        name: of the stage and, below the loop's folder, of the folder that it writes.
        command: with all its flags.
        trains: whether it is a training run, which continues with `--resume`.
        files: JSON files to write before, by path.
        verb: of VERBS, whose flags the command has; None where it is none of DePi's.
    """

    name: str
    command: tuple[str, ...]
    trains: bool = False
    files: tuple[tuple[Path, Any], ...] = ()
    verb: str | None = None


def plan(config: RecapConfig) -> list[Stage]:
    """All stages in their order."""
    stages = []
    judged = config.learn_from == "advantages"
    if "sft" not in config.given:
        mode = {"advantage": {"mode": "on" if judged else "off"}}
        stages.append(_train(config, "sft", mode, config.sft, iteration=0))
    if judged and "value" not in config.given:
        stages.append(_train(config, "value", _value_flags(config), iteration=0))
    stages.append(_evaluate(config, "sft_eval", _sft(config)))
    for iteration in range(1, config.iterations + 1):
        stages.extend(_iteration(config, iteration))
    for name in config.baselines:
        stages.extend(_baseline(config, name))
    return stages


def check_stages(stages: Iterable[Stage]) -> None:
    """Check the flags and data of all stages, before hours are spent on the first ones.

    Raises:
        UserError: a flag does not exist or is not valid, or a mixture of datasets is not valid.
    """
    for stage in stages:
        try:
            for _, content in stage.files:
                read_mixture(decode_mixture(content))
            if stage.verb == "train":
                check_train_flags(stage.command[stage.command.index(str(TRAIN_SCRIPT)) + 1 :])
            elif stage.verb is not None:
                args = stage.command[stage.command.index(stage.verb) + 1 :]
                check_flags(*VERBS[stage.verb], args, f"depi {stage.verb}")
        except (UserError, ValueError) as error:
            raise UserError(f"the stage {stage.name}: {error}") from None


def _iteration(config: RecapConfig, iteration: int) -> Iterator[Stage]:
    """Rollouts of the newest policy, what they teach, the next policy, and how well it does."""
    folder = f"iteration_{iteration}"
    newest = _sft(config) if iteration == 1 else _trained(config, f"iteration_{iteration - 1}/policy")
    yield _evaluate(config, f"{folder}/rollouts", newest, collect=iteration)
    if config.learn_from == "successes":
        flags = _cloning_flags(config)
    else:
        yield from _judge(config, folder, iteration)
        use = {"advantage": {"mode": "use", "path": str(config.output_dir / folder / "advantage")}}
        flags = merge(_policy_flags(config), use)
    yield _train(config, f"{folder}/policy", flags, iteration=iteration)
    yield _evaluate(config, f"{folder}/eval", _trained(config, f"{folder}/policy"))


def _judge(config: RecapConfig, folder: str, iteration: int) -> Iterator[Stage]:
    """The value function of all data so far, and the advantages by it."""
    first_value = config.given.get("value") or _trained(config, "value")
    start = {"policy": {"path": first_value}}
    value = merge(_without_policy_type(_value_flags(config)), config.value_update, start)
    yield _train(config, f"{folder}/value", value, iteration=iteration)
    yield _advantage(config, folder, iteration)


def _baseline(config: RecapConfig, name: str) -> Iterator[Stage]:
    """A policy that is trained without advantages as long as the last one, and how well it does."""
    folder = baseline_folder(name)
    same_data = merge(_policy_flags(config), {"advantage": {"mode": "off"}})
    flags = _cloning_flags(config) if name == "successes" else same_data
    yield _train(config, f"{folder}/policy", flags, iteration=config.iterations)
    yield _evaluate(config, f"{folder}/eval", _trained(config, f"{folder}/policy"))


def baseline_folder(name: str) -> str:
    """Where the stages of a baseline are, below the loop's folder."""
    return f"baseline_{name}"


def _train(config: RecapConfig, name: str, *sections: CommandFlags, iteration: int) -> Stage:
    """A training on the demonstrations and the rollouts of the iterations so far."""
    mixture = (config.output_dir / f"{name}_mixture.json").resolve()
    own = {"output_dir": str(config.output_dir / name), "dataset": {"mixture": str(mixture)}}
    launch = [sys.executable, str(TRAIN_SCRIPT)]
    if config.accelerate is not None:
        launch = [sys.executable, "-m", "accelerate.commands.launch", *config.accelerate, str(TRAIN_SCRIPT)]
    flags = merge(config.train, *sections, own)
    files = ((mixture, data(config, iteration)),)
    return Stage(name, (*launch, *to_args(flags, maps("train"))), True, files, "train")


def _policy_flags(config: RecapConfig) -> CommandFlags:
    """The flags of a policy's training on all data, with the network that it starts from."""
    start = config.sft.get("policy", {}) if config.start_from == "pretrained" else {"path": _sft(config)}
    return merge({"policy": start}, config.policy)


def _cloning_flags(config: RecapConfig) -> CommandFlags:
    """The flags of a policy's training on what succeeded, the demonstrations among it, without advantages."""
    own = {"advantage": {"mode": "off"}, "dataset": {"only_successes": True}}
    return merge(_shared_data(config), _policy_flags(config), own)


def _value_flags(config: RecapConfig) -> CommandFlags:
    """The flags of the value function's training, which may begin with what the loop's sft has seen."""
    if config.value.get("policy", {}).get("init_from") != "sft":
        return config.value
    return merge(config.value, {"policy": {"init_from": _sft(config)}})


def _without_policy_type(flags: CommandFlags) -> CommandFlags:
    """Flags of a training without the policy type, for one that continues from a checkpoint."""
    policy = {name: value for name, value in flags.get("policy", {}).items() if name != "type"}
    return {**flags, "policy": policy}


def _evaluate(config: RecapConfig, name: str, checkpoint: str, collect: int | None = None) -> Stage:
    """Rollouts: to measure (the same seeds every time), or to collect (new ones in each iteration)."""
    own: CommandFlags = {"policy": {"path": checkpoint}, "output_dir": str(config.output_dir / name)}
    section = config.evaluation
    if collect is not None:
        section = config.rollouts
        own["record"] = {"root": str(rollouts_root(config, collect)), "repo_id": rollouts_id(collect)}
        own["seed"] = section.get("seed", 0) + SEEDS_PER_ITERATION * collect
    flags = to_args(merge({"env": config.env}, section, own), maps("eval"))
    return Stage(name, (*_depi("eval"), *flags), verb="eval")


def _advantage(config: RecapConfig, folder: str, iteration: int) -> Stage:
    mixture = (config.output_dir / folder / "advantage_mixture.json").resolve()
    own = {
        "policy": {"path": _trained(config, f"{folder}/value")},
        "dataset": {"mixture": str(mixture)},
        "output_dir": str(config.output_dir / folder / "advantage"),
    }
    # The network's checkpoint holds the flags for reading frames.
    flags = to_args(merge(_shared_data(config), config.advantage, own), maps("advantage"))
    files = ((mixture, data(config, iteration)),)
    return Stage(f"{folder}/advantage", (*_depi("advantage"), *flags), files=files, verb="advantage")


def _shared_data(config: RecapConfig) -> CommandFlags:
    """The data flags with which the value function learned how episodes ended."""
    trained = merge(config.train, config.value, config.value_update).get("dataset", {})
    return {"dataset": {name: trained[name] for name in SHARED_DATA if name in trained}}


def data(config: RecapConfig, iteration: int) -> list[dict[str, Any]]:
    """The mixture of an iteration: the demonstrations and all rollouts up to it."""
    rollouts: list[dict[str, Any]] = [
        {"repo_id": rollouts_id(number), "root": str(rollouts_root(config, number).resolve())}
        for number in range(1, iteration + 1)
    ]
    if config.rollouts_weight is not None:
        rollouts = [{**entry, "weight": config.rollouts_weight} for entry in rollouts]
    return [*config.demonstrations, *rollouts]


def rollouts_root(config: RecapConfig, iteration: int) -> Path:
    """Where the rollouts of an iteration are recorded."""
    return config.output_dir / f"iteration_{iteration}" / "rollouts" / "dataset"


def rollouts_id(iteration: int) -> str:
    """The name of that dataset."""
    return f"recap/rollouts_{iteration}"


def merge(*sections: Mapping[str, Any]) -> CommandFlags:
    """Flags of several sections, nested; a later one overrides an earlier one."""
    merged: CommandFlags = {}
    for section in sections:
        for name, value in section.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = merge(merged[name], value) if both else value
    return merged


def maps(verb: str) -> frozenset[str]:
    """The flags of a command that take a mapping, as `env.options` of `depi eval`."""
    known = read_flags(*VERBS[verb]).known({})
    return frozenset(name for name, flag in known.items() if "dict" in flag.types)


def to_args(flags: Mapping[str, Any], whole: Collection[str] = (), prefix: str = "") -> list[str]:
    """Nested flags as arguments: {"policy": {"path": "x"}} -> ["--policy.path=x"]; null is left out.

    Args:
        flags: as in a file.
        whole: flags whose value is a mapping, as JSON.
        prefix: of all names.
    """
    args = []
    for name, value in flags.items():
        if isinstance(value, Mapping) and prefix + name not in whole:
            args += to_args(value, whole, f"{prefix}{name}.")
        elif value is not None:
            text = value if isinstance(value, str | Path) else json.dumps(value)
            args.append(f"--{prefix}{name}={text}")
    return args


def _depi(verb: str) -> tuple[str, ...]:
    return (sys.executable, "-m", "depi.cli", verb)


def _sft(config: RecapConfig) -> str:
    return config.given.get("sft") or _trained(config, "sft")


def _trained(config: RecapConfig, name: str) -> str:
    """The last checkpoint of a training stage."""
    return str(config.output_dir / name / "checkpoints" / "last" / "pretrained_model")
