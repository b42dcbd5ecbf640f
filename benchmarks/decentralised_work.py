"""What the processes of `decentralised.py` do: prepare images, train an arm, play its policy."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from decentralised_rigs import BLIND, FIRST_SEED, RATE, TASK, Arm, Experiment, Scale

from depi.errors import UserError
from depi.evaluation.config import EvaluateConfig
from depi.evaluation.evaluate import roll_out
from depi.files import read_json, write_json
from depi.flags import parse_flags

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from depi.datasets.union.multi import MultiLeRobotDataset
    from depi.evaluation.actors import Observation
    from depi.evaluation.environments import EnvTable
    from depi.sim.community import Contributor


def start(logs: Path) -> None:
    """Begin a worker process: one thread, and all that libraries say into a file of its own."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    os.environ.setdefault("LP_NUM_THREADS", "1")  # of software OpenGL
    logs.mkdir(parents=True, exist_ok=True)
    log = (logs / f"{os.getpid()}.txt").open("a")
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    import torch

    from depi.sim.record import quiet_libraries

    torch.set_num_threads(1)
    quiet_libraries()


def _end_with(parent: int) -> None:
    """End this process when the one that started it was killed, so that a rerun is alone in the folder."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def mixture(experiment: Experiment, name: str, people: list["Contributor"]) -> Path:
    """Write a file for `--dataset.mixture` that names these contributors' recordings."""
    path, recorded = experiment.root / "mixtures" / f"{name}.json", experiment.root / "recorded"
    sources = [{"repo_id": person.repo_id, "root": str(recorded / person.repo_id)} for person in people]
    write_json(path, sources)
    return path


def prepare_images(experiment: Experiment) -> None:
    """Decode and scale all recorded images once, for all trainings."""
    from depi.training.prepare import main

    scale = experiment.scale
    main(
        [
            f"--dataset.mixture={mixture(experiment, 'all', experiment.recording)}",
            "--dataset.use_bad_episodes=true",
            f"--output_dir={experiment.root / 'prepared'}",
            f"--image_size={image_side(scale)}",
            f"--workers={max(1, scale.processes // 2)}",
            f"--dataset.max_cameras={scale.slots}",
        ]
    )


def image_side(scale: Scale) -> int:
    """Height and width of all images, in pixels."""
    return int(json.loads(str(scale.policy.get("image_resolution", "[84,84]")))[0])


def train_flags(experiment: Experiment, arm: Arm) -> list[str]:
    """The command line of `depi/train.py` for an arm."""
    scale = experiment.scale
    data = mixture(experiment, arm.label, experiment.contributors_of(arm))
    steps = experiment.steps_of(arm)
    return [
        f"--dataset.mixture={data}",
        f"--dataset.prepared={experiment.root / 'prepared'}",
        f"--dataset.joint_convention={arm.joints}",
        f"--dataset.cameras={arm.cameras}",
        f"--dataset.action_freq={RATE}",
        "--dataset.weights=uniform",
        *([f"--dataset.image_size={image_side(scale)}"] if is_lerobots(arm) else []),
        *(["--dataset.use_bad_episodes=true"] if arm.bad_episodes else []),
        f"--dataset.max_cameras={scale.slots}",
        f"--policy.device={scale.device}",
        "--policy.push_to_hub=false",
        *(f"--policy.{name}={value}" for name, value in policy_settings(scale, arm, steps).items()),
        f"--batch_size={scale.batch_size}",
        f"--steps={steps}",
        f"--num_workers={scale.loaders}",
        f"--seed={experiment.seed + 1000 * arm.training}",
        "--save_freq=0",
        "--log_freq=20",
        f"--output_dir={experiment.run_folder(arm)}",
        f"--job_name={arm.label}",
    ]


def is_lerobots(arm: Arm) -> bool:
    """Whether an arm trains a policy of LeRobot's own."""
    return not str(arm.policy.get("type", "depi_pi0")).startswith("depi_")


def policy_settings(scale: Scale, arm: Arm, steps: int) -> dict[str, float | int | str]:
    """The policy's flags by name; LeRobot's own policies have their presets where an arm says nothing."""
    settings: dict[str, float | int | str] = {
        "type": "depi_pi0",
        "chunk_size": 16,
        "n_action_steps": 8,
        "optimizer_lr": 1e-3,
        "scheduler_warmup_steps": 100,
        "scheduler_decay_steps": steps,
        "scheduler_decay_lr": 1e-5,
        **scale.policy,
        **arm.policy,
    }
    if not is_lerobots(arm):
        return settings
    return {name: value for name, value in settings.items() if name in {"n_action_steps", *arm.policy}}


def train_arm(experiment: Experiment, arm: Arm) -> float:
    """Train an arm from scratch and return its last logged loss; what an unfinished training left is removed.

    Raises:
        UserError: training was stopped.
    """
    from depi.training.command_line import parse_train_config
    from depi.training.loop import train

    shutil.rmtree(experiment.run_folder(arm), ignore_errors=True)
    config = parse_train_config(train_flags(experiment, arm))
    with contextlib.ExitStack() as changes:
        if arm.joints == "native":
            changes.enter_context(conventions_mixed())
        if arm.own_statistics:
            changes.enter_context(statistics_of_the_first())
        status = train(config)
    if status:
        raise UserError(f"training {arm.label} was stopped with status {status}")
    lines = (experiment.run_folder(arm) / "metrics.jsonl").read_text("utf-8").splitlines()
    return float(json.loads(lines[-1])["loss"])


@contextlib.contextmanager
def conventions_mixed() -> Iterator[None]:
    """Let the reader pool recorded numbers of different conventions, which it refuses to users."""
    with patch("depi.datasets.union.collection.check_native", lambda detections: None):
        yield


@contextlib.contextmanager
def statistics_of_the_first() -> Iterator[None]:
    """Let trainings normalise with the statistics of their first dataset."""
    from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
    from depi.training import run

    open_all = run.open_dataset

    def opened(config: Any, began: Any = None) -> "MultiLeRobotDataset":
        dataset = open_all(config, began)
        first = config.dataset.mixture[0]
        alone = MultiLeRobotDataset(
            [DatasetSource(first.repo_id, first.revision, first.root)],
            chunk_size=1,
            max_cameras=config.dataset.max_cameras,
            offline=True,
        )
        dataset.stats = alone.stats
        return dataset

    with patch.object(run, "open_dataset", opened):
        yield


def misjudged(experiment: Experiment, arm: Arm) -> list[str]:
    """Contributors whose joint convention the reader has not recognised: the comparison rests on it."""
    recorded = {person.repo_id: person.setup.convention for person in experiment.contributors}
    report = read_json(experiment.run_folder(arm) / "data_report.json")
    return [
        f"{entry['repo_id']} is in {recorded[entry['repo_id']]}, read as {entry['convention']}"
        for entry in report["datasets"]
        if entry["convention"] != recorded[entry["repo_id"]]
    ]


def play(experiment: Experiment, arm: Arm) -> None:
    """Play an arm in all rigs by `depi eval`, or go on with that; what is played is not loaded again.

    Raises:
        UserError: an episode ended in an error.
    """
    folder = experiment.played_folder(arm)
    result = folder / "eval.json"
    if not result.exists() or len(read_json(result)["episodes"]) < experiment.episodes:
        _roll_out(experiment, arm)
    errors = read_json(result)["errors"]
    if errors:
        raise UserError(f"{arm.label}: episodes ended in an error, remove {folder}: {', '.join(errors)}")


def _roll_out(experiment: Experiment, arm: Arm) -> None:
    flags = play_flags(experiment, arm)
    if arm == BLIND:
        evaluation = parse_flags(EvaluateConfig, flags[1:], "depi eval")
        roll_out(evaluation, BlindActor(experiment.scale.object_size), resume=True)
    else:
        subprocess.run([sys.executable, "-m", "depi.cli", *flags], stdout=subprocess.DEVNULL, check=True)


def play_flags(experiment: Experiment, arm: Arm) -> list[str]:
    """The command line of `depi` that plays an arm."""
    scale = experiment.scale
    checkpoint = experiment.run_folder(arm) / "checkpoints" / "last" / "pretrained_model"
    return [
        "eval",
        *([] if arm == BLIND else [f"--policy.path={checkpoint}", f"--policy.device={scale.device}"]),
        "--env.type=so101",
        f"--env.task={TASK}",
        f"--env.fps={RATE}",
        f"--env.setups={experiment.rigs_file}",
        f"--eval.n_episodes={experiment.episodes}",
        f"--eval.batch_size={scale.processes}",
        "--eval.n_videos=0",
        f"--seed={FIRST_SEED}",
        f"--output_dir={experiment.played_folder(arm)}",
    ]


class BlindActor:
    """Does the mean of what experts do, without looking; `size` is the cube's side in metres."""

    batch, expert_steps = 1, 0

    def __init__(self, size: float) -> None:
        self._motion = mean_motion(size)

    def fit(self, tables: "Sequence[EnvTable]") -> None:
        """Nothing to check: it looks at nothing."""

    def act(self, observations: "Sequence[Observation]") -> "list[NDArray[np.float32]]":
        """The whole motion at once."""
        return [self._motion for _ in observations]


def mean_motion(size: float) -> "NDArray[np.float32]":
    """The mean of what experts do step by step, float32 (T, 6) degrees; who is done holds still.

    `size` is the cube's side in metres; the rig is the standard one.
    """
    import numpy as np

    from depi.sim.env import make_env
    from depi.sim.expert import Expert
    from depi.sim.rollout import play as perform
    from depi.sim.setup import Setup

    env = make_env(TASK, Setup(cameras=(), fps=RATE, object_size=size))
    expert = Expert(env)
    motions = [perform(env, expert, seed).actions for seed in range(50)]
    steps = env.max_steps
    env.close()
    held = [np.concatenate([motion, np.repeat(motion[-1:], steps - len(motion), 0)]) for motion in motions]
    return np.mean(held, axis=0, dtype=np.float32)
