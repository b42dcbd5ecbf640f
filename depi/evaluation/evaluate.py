"""`depi eval`: how often does a checkpoint do the task in a simulator."""

import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from depi.datasets.joints import CONVENTIONS
from depi.errors import UserError
from depi.files import atomic_write, read_json, write_json
from depi.flags import parse_flags

if TYPE_CHECKING:
    import gymnasium as gym
    from lerobot.processor import PolicyProcessorPipeline

    from depi.evaluation.rollout import Episode
    from depi.policies import Pi0Policy


DEVICES = ("cpu", "cuda", "mps")


@dataclass
class PolicyConfig:
    """Which checkpoint."""

    # A local folder or a Hub repo id.
    path: str | None = None
    revision: str | None = None
    device: str | None = None
    # Actions of a chunk that are played out before the next chunk is computed; null: as saved.
    n_action_steps: int | None = None


@dataclass
class EnvConfig:
    """Which environment."""

    type: str = "so101"
    task: str = "touch"
    fps: int = 10
    cameras: list[str] = field(default_factory=lambda: ["front", "wrist"])


@dataclass
class EpisodesConfig:
    """How many episodes, and how many of them as videos."""

    n_episodes: int = 50
    n_videos: int = 10


@dataclass
class EvaluateConfig:
    """Roll a policy out: depi eval --policy.path=FOLDER_OR_REPO --env.type=so101 --env.task=touch."""

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    output_dir: Path = Path("outputs/eval")
    seed: int = 1000
    # Print the result as JSON instead of a table.
    json: bool = False


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Roll a checkpoint out, write `eval.json` and videos, and return the result.

    Raises:
        UserError: no or a damaged checkpoint, unknown environment or task, or one that does not fit.
    """
    if config.policy.path is None:
        raise UserError("no policy: give --policy.path=FOLDER_OR_REPO")
    check_choices(config)
    if config.policy.device is not None and config.policy.device.partition(":")[0] not in DEVICES:
        raise UserError(f"--policy.device={config.policy.device} is none of {', '.join(DEVICES)}")

    from depi.policies import load_policy, load_processors, resolve_checkpoint

    folder = resolve_checkpoint(config.policy.path, revision=config.policy.revision)
    policy = load_policy(folder, device=config.policy.device).eval()
    if config.policy.n_action_steps is not None:
        if not 1 <= config.policy.n_action_steps <= policy.config.chunk_size:
            raise UserError(f"--policy.n_action_steps must be 1 to {policy.config.chunk_size}")
        policy.config.n_action_steps = config.policy.n_action_steps
    processors = load_processors(folder, device=policy.config.device)
    by_view, convention = training_choices(folder)
    return roll_out(config, policy, processors, by_view=by_view, convention=convention)


def check_choices(config: EvaluateConfig) -> None:
    """Raise a UserError for an unknown environment, or no episodes."""
    if config.env.type != "so101":
        raise UserError(f"unknown environment --env.type={config.env.type}: this version has so101")
    if config.eval.n_episodes < 1:
        raise UserError(f"--eval.n_episodes must be at least 1, not {config.eval.n_episodes}")


def check_environment(config: EvaluateConfig, policy: "Pi0Policy", *, by_view: bool) -> None:
    """Make and reset the environment once, so that whatever keeps `roll_out` from working is raised now.

    Raises:
        UserError: unknown environment or task, or one that does not fit the policy.
    """
    check_choices(config)
    env, _, _ = _make(config, policy, by_view)
    env.reset(seed=config.seed)
    env.close()


def roll_out(
    config: EvaluateConfig,
    policy: "Pi0Policy",
    processors: "tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]",
    *,
    by_view: bool,
    convention: str,
    show_progress: bool = True,
) -> dict[str, Any]:
    """Roll a policy out, write `eval.json` and videos, and return the result.

    Args:
        config: environment, episodes, output directory; the policy's path is only written down.
        policy: in evaluation mode.
        processors: what comes before and after it.
        by_view: whether its camera slots mean views.
        convention: the joint convention that it was trained in.
        show_progress: on the terminal.

    Raises:
        UserError: unknown environment or task, or one that does not fit the policy.
    """
    from depi.evaluation.rollout import EnvMapping, rollout

    env, slots, instruction = _make(config, policy, by_view)
    episodes = []
    console = Console(stderr=True)
    try:
        for index in track(
            range(config.eval.n_episodes), "episodes", console=console, disable=not show_progress
        ):
            episode = rollout(
                env,
                policy,
                processors,
                EnvMapping(slots, convention),
                task=instruction,
                seed=config.seed + index,
                keep_frames=index < config.eval.n_videos,
            )
            if episode.frames:
                save_video(config.output_dir / "videos" / f"episode_{index:03d}.mp4", episode, config.env.fps)
                episode.frames = []
            episodes.append(episode)
    finally:
        env.close()
    result = summarise(config, episodes)
    write_json(config.output_dir / "eval.json", result)
    return result


def _make(
    config: EvaluateConfig, policy: "Pi0Policy", by_view: bool
) -> "tuple[gym.Env, dict[str, int | None], str]":
    """The environment, the policy's slots of its cameras, and the instruction."""
    from depi.evaluation.rollout import camera_slots
    from depi.sim.env import make_env
    from depi.sim.setup import Camera, Setup
    from depi.sim.tasks import find_task

    slots = camera_slots(policy, config.env.cameras, state_dim=6, action_dim=6, by_view=by_view)
    setup = Setup(cameras=tuple(Camera(kind, kind) for kind in config.env.cameras), fps=config.env.fps)
    env = make_env(config.env.task, setup, seed=config.seed)
    return env, slots, find_task(config.env.task).instruction(setup)


def training_choices(folder: Path) -> tuple[bool, str]:
    """Return whether a checkpoint's slots mean views, and the joint convention it was trained in.

    A checkpoint without DePi's training configuration is taken to speak degrees, as LeRobot's robots do.

    Raises:
        UserError: it was trained on recorded numbers of which no report tells the convention.
    """
    path = folder / "train_config.json"
    saved = read_json(path) if path.exists() else {}
    data = saved.get("dataset") if isinstance(saved, dict) else None
    data = data if isinstance(data, dict) else {}
    convention = data.get("joint_convention", "degrees")
    if convention == "native":
        try:
            convention = read_json(folder / "data_report.json")["datasets"][0]["convention"]
        except (KeyError, IndexError, TypeError):
            raise UserError(
                f"{folder} was trained in recorded units, and its data report names none"
            ) from None
    if convention not in CONVENTIONS or convention == "unknown":
        raise UserError(f"{folder} was trained in unknown units: {convention!r}")
    return data.get("cameras") == "view", convention


def save_video(path: Path, episode: "Episode", fps: int) -> None:
    """Write the kept frames of an episode as mp4, whole or not at all."""
    from lerobot.utils.io_utils import write_video

    with tempfile.TemporaryDirectory(prefix="depi-video-") as folder:
        video = Path(folder) / path.name  # the writer chooses the container by the name
        write_video(video, episode.frames, fps)
        with atomic_write(path) as temporary:
            shutil.copyfile(video, temporary)


def summarise(config: EvaluateConfig, episodes: Sequence["Episode"]) -> dict[str, Any]:
    """Return the success rate with its 95% Wilson interval, and what each episode did."""
    from scipy.stats import binomtest

    successes = sum(episode.success for episode in episodes)
    interval = binomtest(successes, len(episodes)).proportion_ci(method="wilson")
    return {
        "policy": config.policy.path,
        "env": asdict(config.env),
        "success_rate": successes / len(episodes),
        "success_interval_95": [float(interval.low), float(interval.high)],
        "episodes": [
            {"seed": e.seed, "success": e.success, "length": e.length, "reward": e.reward} for e in episodes
        ],
    }


def main(args: Sequence[str]) -> int:
    """Run the `depi eval` verb."""
    config = parse_flags(EvaluateConfig, args, "depi eval")
    result = evaluate(config)
    if config.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return 0
    low, high = result["success_interval_95"]
    table = Table(title=f"{config.env.task}, {len(result['episodes'])} episodes")
    table.add_column("success rate")
    table.add_column("95% interval")
    table.add_column("mean length")
    lengths = [episode["length"] for episode in result["episodes"]]
    table.add_row(
        f"{result['success_rate']:.0%}", f"{low:.0%} to {high:.0%}", f"{sum(lengths) / len(lengths):.1f}"
    )
    Console().print(table)
    print(f"details and videos in {config.output_dir}")
    return 0
