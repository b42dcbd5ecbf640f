"""`depi eval`: the success rate of a checkpoint in a simulator."""

import contextlib
import dataclasses
import datetime
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depi.errors import UserError
from depi.evaluation.config import EnvironmentConfig, EvaluateConfig
from depi.evaluation.environments import EnvTable, find_table, resolve
from depi.files import read_json, write_json
from depi.flags import check_ranges, parse_flags
from depi.hub.names import is_repo_id

if TYPE_CHECKING:
    from lerobot.processor import PolicyProcessorPipeline

    from depi.evaluation.actors import Actor
    from depi.evaluation.messages import Trajectory
    from depi.evaluation.rollout import Rollouts
    from depi.policies import Pi0Policy

DEVICES = ("cpu", "cuda", "mps")
EXPERT = "expert"
MAX_PLACES = 16
MAX_TIMEOUT = 86_400  # seconds


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Roll a checkpoint out, write `eval.json` and videos, and return the result.

    Raises:
        UserError: the checkpoint is missing or damaged, environment or task is unknown or does not fit, or
            `output_dir` is of another evaluation.
    """
    path = config.policy.path
    if path is None:
        raise UserError("no policy: give --policy.path=FOLDER_OR_REPO")
    _check_record(config)
    check_choices(config)
    if config.policy.device is not None and config.policy.device.partition(":")[0] not in DEVICES:
        raise UserError(f"--policy.device={config.policy.device} is none of {', '.join(DEVICES)}")
    _check_path(path, config.policy.revision)
    if config.output_dir is None:
        config.output_dir = _own_folder(path)
    with _recording(config) as on_episode:
        actor, identity = _load(config)
        return _roll_out(config, actor, identity, resume=True, on_episode=on_episode)


def _own_folder(path: str) -> Path:
    """A folder for this evaluation, named by the time and the policy."""
    from lerobot.utils.constants import CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR

    now, parts = datetime.datetime.now(), Path(path).expanduser().absolute().parts
    # Of RUN/checkpoints/000100/pretrained_model it is the run and the step that tell.
    told = [part for part in parts if part not in (CHECKPOINTS_DIR, PRETRAINED_MODEL_DIR)]
    name = "_".join(told[-2:] if CHECKPOINTS_DIR in parts else told[-1:])
    return Path("outputs/eval") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{name}"


def _check_path(path: str, revision: str | None) -> None:
    """Raise a UserError where there is no such policy, before the slow imports of loading one."""
    from depi.hub.client.api import repo_info

    if path == EXPERT or Path(path).expanduser().is_dir():
        return
    if not is_repo_id(path):
        raise UserError(
            f"--policy.path={path} is neither a folder nor a Hub repository of the form user/name"
        )
    repo_info(path, repo_type="model", revision=revision)


def _check_record(config: EvaluateConfig) -> None:
    """Raise a UserError where the episodes could not become one dataset."""
    root = config.record.root
    if root is None:
        return
    parent = next(folder for folder in root.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"--record.root={root}: {parent} is a file, not a folder")
    if not is_repo_id(config.record.repo_id):
        raise UserError(f"--record.repo_id must be user/name, not {config.record.repo_id!r}")
    if config.env.setups != "standard":
        raise UserError(
            f"--record.root does not go with --env.setups={config.env.setups}: each of those rigs has other "
            "cameras, and a dataset has the same in all episodes"
        )


@contextlib.contextmanager
def _recording(config: EvaluateConfig) -> "Iterator[Callable[[Trajectory], None] | None]":
    """Yield the function that stores trajectories for the dataset of `--record.root`, or None without one."""
    root = config.record.root
    if root is None or (root.exists() and _has_ended(config)):
        yield None
        return
    from depi.evaluation.recording import DatasetWriter

    # In the evaluation's own folder, so that they are removed with it.
    writer = DatasetWriter(root, config.record.repo_id, temporary=config.folder / "trajectories")
    yield writer.append
    writer.finish(range(config.eval.n_episodes))


def _has_ended(config: EvaluateConfig) -> bool:
    """Whether all the episodes have been played before."""
    from depi.evaluation.results import RESULT

    path = config.folder / RESULT
    return path.exists() and len(read_json(path)["episodes"]) >= config.eval.n_episodes


def _load(config: EvaluateConfig) -> "tuple[Actor, dict[str, Any]]":
    """The actor, and the values that identify it in results."""
    if config.policy.path == EXPERT and not Path(EXPERT).exists():
        from depi.evaluation.actors import ExpertActor

        return ExpertActor(config.policy.n_action_steps), {}
    from depi.evaluation.loading import load_actor

    return load_actor(config)


def check_choices(config: EvaluateConfig) -> EnvironmentConfig:
    """Return the environment's settings with all defaults filled in.

    Raises:
        UserError: unknown environment or task, or impossible numbers.
    """
    at_least_1 = dict.fromkeys(("n_episodes", "batch_size", "policy_batch"), (1, None))
    check_ranges(config.eval, "eval.", **at_least_1, n_videos=(0, None))
    if not 0 < config.eval.timeout <= MAX_TIMEOUT:
        raise UserError(f"--eval.timeout must be above 0, at most {MAX_TIMEOUT}, not {config.eval.timeout}")
    check_ranges(config.policy, "policy.", n_action_steps=(1, None))
    check_ranges(config, seed=(0, None))
    return resolve(config.env)


def check_environment(
    config: EvaluateConfig, policy: "Pi0Policy | Actor", *, cameras: str = "name", convention: str = "degrees"
) -> None:
    """Make and reset the environment once, so that errors of `roll_out` show now.

    Raises:
        UserError: unknown environment or task, or one that does not fit the policy.
    """
    from depi.evaluation.messages import Begin
    from depi.evaluation.rollout import Rollouts

    env = check_choices(config)
    actor = as_actor(policy, None, config, cameras=cameras, convention=convention)
    with Rollouts(env, config.seed, 1, config.eval.timeout) as rollouts:
        actor.fit(_tables(config, env, rollouts.table()))
        rollouts.try_reset(Begin(0, config.seed, expert=actor.expert_steps))


def roll_out(
    config: EvaluateConfig,
    policy: "Pi0Policy | Actor",
    processors: "tuple[PolicyProcessorPipeline, PolicyProcessorPipeline] | None" = None,
    *,
    cameras: str = "name",
    convention: str = "degrees",
    resume: bool = False,
    on_episode: "Callable[[Trajectory], None] | None" = None,
) -> dict[str, Any]:
    """Roll a policy out, write `eval.json` and videos, and return the result.

    Args:
        config: environment, episodes, output directory; the policy's path is only written down.
        policy: in evaluation mode; or a `depi.evaluation.actors.Actor`, which has its own processors.
        processors: those before and after the policy.
        cameras: the order of its camera slots, as `--dataset.cameras` of its training.
        convention: the joint convention that the policy was trained in; `native`: that of each rig.
        resume: keep the episodes that `output_dir` has; else they are removed.
        on_episode: called with the trajectory of each episode, before the episode is written down, in the
            order in which they end. Not called for errors.

    Raises:
        UserError: unknown environment or task, one that does not fit the policy, or an `output_dir` of
            another evaluation.
    """
    actor = as_actor(policy, processors, config, cameras=cameras, convention=convention)
    return _roll_out(config, actor, {}, resume=resume, on_episode=on_episode)


def as_actor(
    policy: Any,
    processors: "tuple[PolicyProcessorPipeline, PolicyProcessorPipeline] | None",
    config: EvaluateConfig,
    *,
    cameras: str,
    convention: str,
) -> "Actor":
    """Wrap a policy as an Actor; an Actor is returned unchanged.

    Args:
        policy, processors: as for `roll_out`.
        config: of the evaluation.
        cameras, convention: as for `roll_out`.
    """
    if hasattr(policy, "act"):
        return policy
    from depi.policies.families import family_of

    if not family_of(policy.config).own:
        from depi.evaluation.lerobot_policies import LeRobotActor

        return LeRobotActor(
            policy.model,
            processors or (None, None),
            cameras=cameras,
            convention=convention,
            rename=config.rename_map,
        )
    from depi.evaluation.pi0_actor import Pi0Actor

    return Pi0Actor(
        policy,
        processors or (None, None),
        cameras=cameras,
        convention=convention,
        batch=config.eval.policy_batch,
        rename=config.rename_map,
    )


def _tables(config: EvaluateConfig, env: EnvironmentConfig, first: EnvTable) -> list[EnvTable]:
    """The tables of all episodes."""
    seeds = range(config.seed, config.seed + config.eval.n_episodes)
    return [find_table(env, seed) or first for seed in seeds]


def _roll_out(
    config: EvaluateConfig,
    actor: "Actor",
    identity: dict[str, Any],
    *,
    resume: bool,
    on_episode: "Callable[[Trajectory], None] | None",
) -> dict[str, Any]:
    from depi.evaluation.messages import Begin
    from depi.evaluation.results import RESULT, Journal, contact_sheet, digest, summarise
    from depi.evaluation.rollout import Rollouts

    env = check_choices(config)
    setups = Path(env.setups)
    head = {
        "policy": config.policy.path,
        "revision": config.policy.revision,
        **identity,
        "n_action_steps": config.policy.n_action_steps,
        "guidance": config.policy.guidance,
        "num_samples": config.policy.num_samples,
        "env": dataclasses.asdict(env),
        "setups_file": digest(setups) if env.type == "so101" and setups.is_file() else None,
        "seed": config.seed,
    }
    wanted = range(config.eval.n_episodes)
    journal: Journal | None = None
    if (config.folder / "eval_config.json").exists():
        journal = Journal(config.folder, _fingerprint(config, head), fresh=not resume)
    missing = [index for index in wanted if journal is None or index not in journal.episodes]
    timing: dict[str, Any] = {}
    if missing:
        places = min(config.eval.batch_size or min(os.cpu_count() or 1, MAX_PLACES), len(missing))
        with Rollouts(env, config.seed + missing[0], places, config.eval.timeout) as rollouts:
            actor.fit(_tables(config, env, rollouts.table()))
            journal = journal or Journal(config.folder, _fingerprint(config, head), fresh=not resume)
            requests = [
                Begin(
                    index,
                    config.seed + index,
                    keep=on_episode is not None,
                    video=config.folder / "videos" / f"episode_{index:03d}.mp4"
                    if index < config.eval.n_videos
                    else None,
                    expert=actor.expert_steps,
                )
                for index in missing
            ]
            _play(rollouts, requests, actor, journal, config, on_episode)
            timing = rollouts.timing.to_dict()
    elif (config.folder / RESULT).exists():
        timing = read_json(config.folder / RESULT).get("timing", {})
    assert journal is not None
    result = summarise(head, [journal.episodes[index] for index in wanted], timing)
    contact_sheet(config.folder, [journal.episodes[index] for index in wanted])
    write_json(config.folder / RESULT, result)
    return result


def _fingerprint(config: EvaluateConfig, head: dict[str, Any]) -> dict[str, Any]:
    """Everything on which episodes and videos depend."""
    return {
        **head,
        "n_videos": config.eval.n_videos,
        "policy_batch": config.eval.policy_batch,
        "device": config.policy.device,
        "rename_map": config.rename_map,
        "record": None if config.record.root is None else str(config.record.root),
    }


def _play(
    rollouts: "Rollouts",
    requests: Sequence[Any],
    actor: "Actor",
    journal: Any,
    config: EvaluateConfig,
    on_episode: "Callable[[Trajectory], None] | None",
) -> None:
    from depi.evaluation.results import save_frame
    from depi.progress import progress_bar

    done = 0
    with progress_bar("episodes", len(requests)) as show:

        def on_end(episode: Any, frame: Any, trajectory: Any) -> None:
            nonlocal done
            if trajectory is not None and on_episode is not None:
                on_episode(trajectory)
            if frame is not None:
                save_frame(config.folder, episode.index, frame)
            journal.append(episode)
            done += 1
            show(done)

        rollouts.play(requests, actor, on_end)


def main(args: Sequence[str]) -> int:
    """Run the `depi eval` verb."""
    for arg in args:  # as OpenTau evaluates
        if Path(arg).name == "train_config.json":
            raise UserError(f"depi eval: {arg} is of a training: name the policy with --policy.path=FOLDER")
    config = parse_flags(EvaluateConfig, args, "depi eval")
    result = evaluate(config)
    if config.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return 0
    from depi.evaluation.report import print_table

    print_table(result)
    print(f"details and videos in {config.folder}")
    return 0
