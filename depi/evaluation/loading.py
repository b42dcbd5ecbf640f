"""What `--policy.path` names, ready to act: DePi's pi0, or another of LeRobot's policies."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from depi.datasets.recording.cameras import camera_order
from depi.datasets.recording.joints import CONVENTIONS
from depi.errors import UserError, one_line
from depi.evaluation.actors import Actor
from depi.evaluation.as_trained import Trained, as_trained, differences, own_instruction, read_trained
from depi.evaluation.config import EnvironmentConfig, EvaluateConfig
from depi.evaluation.pi0_actor import Pi0Actor
from depi.evaluation.results import checkpoint_digest
from depi.files import read_json
from depi.policies import load_policy, load_processors, resolve_checkpoint
from depi.policies.checkpoint import policy_type
from depi.policies.choices import OF_THE_MACHINE, check_choices
from depi.policies.factory import ready_to_act
from depi.policies.families import TYPES, family
from depi.policies.indicator import is_conditioned
from depi.policies.letterbox_step import letterboxes

logger = logging.getLogger(__name__)


def load_actor(config: EvaluateConfig) -> tuple[Actor, dict[str, Any]]:
    """The policy, and what identifies it in results.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    assert config.policy.path is not None
    folder = resolve_checkpoint(config.policy.path, revision=config.policy.revision)
    kind = policy_type(folder)
    trained = read_trained(folder)
    if trained is not None:
        asked, config.env = config.env, as_trained(config.env, trained)
        _say_differences(asked, config.env, trained)
    identity = {
        "checkpoint": str(folder),
        "policy_type": kind,
        "checkpoint_digest": checkpoint_digest(folder),
    }
    if kind in TYPES and family(kind).own:
        return _load_pi0(folder, config), identity
    if config.policy.guidance is not None:
        raise UserError(f"--policy.guidance: a policy of type {kind} has no advantage indicator to follow")
    if config.policy.num_samples is not None:
        raise UserError(f"--policy.num_samples: policies of type {kind} sample one chunk; leave it out")
    for name in _of_the_machine(config):
        raise UserError(f"--policy.{name}: policies of type {kind} are LeRobot's, which has no such choice")
    from depi.evaluation.lerobot_policies import LeRobotActor, load_lerobot_policy, sized_for

    policy, pipelines = load_lerobot_policy(
        folder, kind, config.policy.device, trusted=_is_trusted(folder, config)
    )
    cameras, convention = training_choices(folder)
    as_recorded = not letterboxes(pipelines[0])
    if as_recorded and config.env.observation_height is None and config.env.observation_width is None:
        config.env = sized_for(policy.config, config.env)
    actor = LeRobotActor(
        policy,
        pipelines,
        cameras=cameras,
        convention=convention,
        n_action_steps=config.policy.n_action_steps,
        rename=config.rename_map,
    )
    return actor, identity


def _say_differences(asked: EnvironmentConfig, env: EnvironmentConfig, trained: Trained) -> None:
    if env.instruction != asked.instruction:
        own = own_instruction(dataclasses.replace(env, instruction=None))
        logger.info('the instruction is "%s", as in training; the task\'s own is "%s"', env.instruction, own)
    found = differences(env, trained)
    if found:
        logger.warning("the policy was trained on other data than it sees here: %s", "; ".join(found))


def _is_trusted(folder: Path, config: EvaluateConfig) -> bool:
    """Whether the user vouches for this very checkpoint, code included."""
    if config.trust_checkpoint is None:
        return False
    path = str(config.policy.path)
    checkpoint = path if Path(path).expanduser().is_dir() else f"{path}@{folder.name}"
    if config.trust_checkpoint != checkpoint:
        raise UserError(
            f"--trust_checkpoint={config.trust_checkpoint} is another checkpoint than {checkpoint}, which "
            "--policy.path names"
        )
    return True


def _load_pi0(folder: Path, config: EvaluateConfig) -> Actor:
    overrides = [f"--{name}={value}" for name, value in _of_the_machine(config).items()]
    policy = load_policy(folder, device=config.policy.device, config_overrides=overrides)
    if config.policy.n_action_steps is not None:
        if not 1 <= config.policy.n_action_steps <= policy.config.chunk_size:
            raise UserError(f"--policy.n_action_steps must be 1 to {policy.config.chunk_size}")
        policy.config.n_action_steps = config.policy.n_action_steps
    processors = load_processors(folder, device=policy.config.device)
    if config.policy.guidance is not None:
        if not is_conditioned(processors[0]):
            raise UserError(f"--policy.guidance: {config.policy.path} was not trained with --advantage.mode")
        policy.set_guidance(config.policy.guidance)
    if config.policy.num_samples is not None:
        policy.config.num_samples = config.policy.num_samples
        check_choices(policy.config)
    cameras, convention = training_choices(folder)
    return Pi0Actor(
        ready_to_act(policy),
        processors,
        cameras=cameras,
        convention=convention,
        batch=config.eval.policy_batch,
        rename=config.rename_map,
    )


def _of_the_machine(config: EvaluateConfig) -> dict[str, str]:
    """The flags of how this machine computes that are given, as they are typed."""
    chosen = {name: getattr(config.policy, name, None) for name in OF_THE_MACHINE}
    return {name: str(value).lower() for name, value in chosen.items() if value is not None}


def training_choices(folder: Path) -> tuple[str, str]:
    """Return the order of a checkpoint's camera slots, and the joint convention it was trained in.

    A checkpoint without DePi's training configuration is taken to speak degrees, as LeRobot's robots do.

    Raises:
        UserError: it was trained on recorded numbers of which no report tells the convention, or with an
            order of cameras that this version does not know.
    """
    path = folder / "train_config.json"
    saved = read_json(path) if path.exists() else {}
    data = saved.get("dataset") if isinstance(saved, dict) else None
    data = data if isinstance(data, dict) else {}
    convention = data.get("joint_convention", "degrees")
    if convention == "native":
        try:
            report = read_json(folder / "data_report.json")
            found = {entry["convention"] for entry in report["datasets"]}
        except (KeyError, TypeError):
            found = set()
        if not found:
            raise UserError(f"{folder} was trained in recorded units, and its data report names none")
        convention = found.pop() if len(found) == 1 else "native"
    if convention not in CONVENTIONS or convention == "unknown":
        raise UserError(f"{folder} was trained in unknown units: {one_line(repr(convention), 80)}")
    cameras = data.get("cameras", "name")
    try:
        camera_order(cameras)
    except (ValueError, TypeError):
        raise UserError(
            f"{path}: dataset.cameras is {one_line(repr(cameras), 80)}, which is no order of cameras"
        ) from None
    return cameras, convention
