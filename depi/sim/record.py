"""`depi sim`: record simulated datasets (`record`) and measure the scripted experts (`expert`)."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError
from depi.flags import parse_flags
from depi.hub.client.api import require_token, upload_folder
from depi.hub.names import is_repo_id
from depi.progress import progress_bar
from depi.sim.env import make_env
from depi.sim.expert import Expert
from depi.sim.rollout import Episode, ExpertConfig, measure_expert, play
from depi.sim.setup import CAMERA_KINDS, Camera, Setup, read_setups
from depi.sim.tasks import TASKS, find_task
from depi.sim.writing import Recording, check_counts, finalized, new_folder, successes, write_card

logger = logging.getLogger(__name__)

USAGE = """usage: depi sim record --task=TASK --repo_id=USER/NAME [--flag=value ...]
       depi sim expert --task=TASK [--flag=value ...]

`depi sim record --help` and `depi sim expert --help` list the flags."""


# What describes an SO-101's rig and no other robot's.
RIG_FLAGS = ("cameras", "fps", "convention", "format", "robot_type", "object_color", "robot_color", "table")


@dataclass
class RecordConfig:
    """Record episodes of a scripted expert as a LeRobot dataset.

    Attributes:
        task: touch or pick_lift of the SO-101; pusht or aloha_transfer_cube, with the features of
            lerobot/pusht and lerobot/aloha_sim_transfer_cube_human.
        repo_id: user/name of the dataset.
        episodes: number of successful episodes; failed ones are repeated with the next seed.
        root: folder of the dataset, by default where LeRobot looks for it.
        cameras: names separated by commas, each with its kind after a colon unless the name is a kind
            (wrist, front, side, top): `laptop:front,wrist`.
        width, height: pixels of every camera, by default 320x240, and the environment's own for gym tasks.
        task_text: the instruction to record, by default the task's own. `--task_text=` records none.
        rig: a JSON file with a list of one rig (depi.sim.setup.Setup), in place of the flags that describe
            it; `depi eval --env.setups=FILE` then evaluates on the same one.
        push: upload to the Hub afterwards, tagged with the format's version.
    """

    task: str = ""
    repo_id: str = ""
    episodes: int = 10
    root: Path | None = None
    seed: int = 0
    cameras: str = "front,wrist"
    width: int | None = None
    height: int | None = None
    fps: int = Setup.fps
    convention: str = Setup.convention
    format: str = Setup.format
    codec: str = Setup.codec
    robot_type: str = Setup.robot_type
    task_text: str | None = Setup.task_text
    object_color: str = Setup.object_color
    robot_color: str = Setup.robot_color
    table: str = Setup.table
    rig: Path | None = None
    push: bool = False
    private: bool = False

    def setup(self) -> Setup:
        """The rig that the flags describe, or the file that they name.

        Raises:
            UserError: there is no such rig, or it is described twice.
        """
        if self.rig is not None:
            return self._rig_of_file(self.rig)
        names = ("fps", "convention", "format", "codec", "robot_type", "task_text")
        looks = ("object_color", "robot_color", "table")
        values = {name: getattr(self, name) for name in (*names, *looks)}
        width, height = self.width or Setup.width, self.height or Setup.height
        return Setup(cameras=parse_cameras(self.cameras), width=width, height=height, **values)

    def _rig_of_file(self, path: Path) -> Setup:
        for name in ("width", "height", "codec", "task_text", *RIG_FLAGS):
            if getattr(self, name) != getattr(RecordConfig, name):
                raise UserError(f"--{name} and --rig describe the same: write it into {path}")
        setups = read_setups(path)
        if len(setups) != 1:
            raise UserError(f"{path} holds {len(setups)} rigs: a recording is of one")
        return setups[0]

    def check_gym_flags(self) -> None:
        """Raise a UserError for a flag that describes an SO-101's rig, where the task is of another robot."""
        for name in (*RIG_FLAGS, "rig"):
            if getattr(self, name) != getattr(RecordConfig, name):
                raise UserError(f"--{name} goes with {' and '.join(TASKS)}, not with --task={self.task}")


def parse_cameras(text: str) -> tuple[Camera, ...]:
    """Read `laptop:front,wrist`: camera names, each with its kind unless the name is one.

    Raises:
        UserError: a name that is not a kind has no kind, or the kind is unknown.
    """
    cameras = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, kind = part.partition(":")
        if not kind and name not in CAMERA_KINDS:
            raise UserError(
                f"camera {name!r} needs a kind: write {name}:front (or {', '.join(CAMERA_KINDS)})"
            )
        cameras.append(Camera(name, kind or name))
    return tuple(cameras)


def record_dataset(
    task: str,
    setup: Setup,
    repo_id: str,
    root: Path,
    *,
    episodes: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Recording:
    """Record successful episodes of the scripted expert under `root`.

    The folder appears complete or not at all. `progress` is called with the number of episodes done.

    Raises:
        UserError: the folder exists, no camera, a negative seed, or the expert keeps failing.
    """
    check_counts(episodes, seed)
    if not setup.cameras:
        raise UserError("a recording needs a camera")
    instruction = setup.task_text if setup.task_text is not None else find_task(task).instruction(setup)
    frames = 0
    failed: list[int] = []
    with new_folder(root) as folder:
        with finalized(_make_writer(folder, repo_id, setup)) as writer:
            successes = _successful_episodes(task, setup, episodes, seed, failed)
            for done, episode in enumerate(successes, 1):
                columns = {
                    "action": to_convention(episode.actions, setup.convention),
                    "observation.state": to_convention(episode.states, setup.convention),
                }
                videos = {f"observation.images.{name}": images for name, images in episode.images.items()}
                writer.add_episode(columns, videos, instruction)
                frames += len(episode.actions)
                if progress:
                    progress(done)
        write_card(folder, repo_id, setup.robot_type)
    return Recording(repo_id, root, episodes, frames, tuple(failed))


def to_convention(degrees: NDArray[np.float32], convention: str) -> NDArray[np.float32]:
    """Convert canonical degrees (..., 6) to another convention; normalised values are clipped to ±100.

    A normalised joint is calibrated over a whole number of encoder steps, as real ones are: the nominal
    range, right to half a step.
    """
    from depi.datasets.recording.joints import HALF_RANGE, Detection, from_degrees
    from depi.sim.simulation import ENCODER_STEP

    if convention != "normalized":
        return from_degrees(degrees, convention).astype(np.float32)
    half = np.round(np.array(HALF_RANGE) / ENCODER_STEP[:5]) * ENCODER_STEP[:5]
    values = from_degrees(degrees, Detection("normalized", "", tuple(half.tolist())))
    return np.clip(values, [-100] * 5 + [0], 100).astype(np.float32)


def dataset_features(setup: Setup) -> dict[str, dict[str, Any]]:
    """LeRobot features of a recording: action, state and one video per camera."""
    names = list(setup.joint_names)
    features: dict[str, dict[str, Any]] = {
        key: {"dtype": "float32", "shape": (6,), "names": names} for key in ("action", "observation.state")
    }
    shape, axes = (setup.height, setup.width, 3), ["height", "width", "channels"]
    for camera in setup.cameras:
        key = f"observation.images.{camera.name}"
        features[key] = {"dtype": "video", "shape": shape, "names": axes}
    return features


def _successful_episodes(
    task: str, setup: Setup, episodes: int, seed: int, failed: list[int]
) -> Iterator[Episode]:
    """Play each seed without cameras first, which is fast, and successful ones again with cameras."""
    env = make_env(task, setup)
    expert = Expert(env)

    def play_seed(seed: int) -> Episode | None:
        return play(env, expert, seed) if play(env, expert, seed, images=False).success else None

    try:
        yield from successes(task, play_seed, episodes, seed, failed)
    finally:
        env.close()


def _make_writer(folder: Path, repo_id: str, setup: Setup):
    features = dataset_features(setup)
    if setup.format == "v2.1":
        from depi.sim.v21 import V21Writer

        folder.mkdir()
        return V21Writer(folder, features, setup.fps, setup.codec, setup.robot_type)
    from depi.sim.v30 import V30Writer

    return V30Writer(folder, repo_id, features, setup.fps, setup.codec, setup.robot_type)


def main(args: list[str]) -> int:
    """Run `depi sim record` or `depi sim expert` and return the exit status."""
    verb, rest = (args[0], args[1:]) if args else ("", [])
    if verb == "record":
        return _record(parse_flags(RecordConfig, rest, "depi sim record"))
    if verb == "expert":
        return _expert(parse_flags(ExpertConfig, rest, "depi sim expert"))
    if verb in ("-h", "--help"):
        print(USAGE)
        return 0
    found = f"not {verb!r}" if verb else "and got neither"
    raise UserError(f"depi sim takes record or expert, {found}: see `depi sim --help`")


def _record(config: RecordConfig) -> int:
    if not is_repo_id(config.repo_id):
        raise UserError(f"--repo_id must be user/name, got {config.repo_id!r}")
    record, version = _recorder(config)
    if config.push:
        require_token()
    root = config.root or _default_root(config.repo_id)
    quiet_libraries()
    with progress_bar(f"recording {config.repo_id}", config.episodes) as show:
        recording = record(root=root, progress=show)
    print(f"{recording.episodes} episodes, {recording.frames} frames, {version}: {recording.root}")
    if recording.failed_seeds:
        print(f"the expert failed with the seeds {list(recording.failed_seeds)}")
    if config.push:
        commit = upload_folder(
            recording.root,
            config.repo_id,
            repo_type="dataset",
            commit_message=f"Add {recording.episodes} simulated episodes",
            private=config.private,
            tag=version,
        )
        print(f"pushed to {config.repo_id} at {commit}")
    return 0


def _recorder(config: RecordConfig) -> tuple[Callable[..., Recording], str]:
    """The function that records a configuration, called with root and progress, and the format's version."""
    from depi.sim.gym_tasks import GYM_TASKS, record_gym_dataset

    counts: dict[str, Any] = {"episodes": config.episodes, "seed": config.seed}
    if config.task in GYM_TASKS:
        config.check_gym_flags()
        task = GYM_TASKS[config.task]
        size = (config.height or task.size[0], config.width or task.size[1])
        looks: dict[str, Any] = {"size": size, "codec": config.codec, "text": config.task_text}
        return partial(record_gym_dataset, task, config.repo_id, **counts, **looks), "v3.0"
    setup = config.setup()
    if config.task not in TASKS:
        known = ", ".join([*TASKS, *GYM_TASKS])
        raise UserError(f"unknown simulated task {config.task!r}: choose one of {known}")
    return partial(record_dataset, config.task, setup, config.repo_id, **counts), setup.format


def quiet_libraries() -> None:
    """Silence encoders, LeRobot and OpenGL on the terminal, except for warnings."""
    import av
    import datasets

    av.logging.set_libav_level(av.logging.ERROR)
    datasets.disable_progress_bars()
    os.environ.setdefault("SVT_LOG", "1")
    for name in ("OpenGL", "lerobot", "libav"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _default_root(repo_id: str) -> Path:
    from lerobot.utils.constants import HF_LEROBOT_HOME

    return HF_LEROBOT_HOME / repo_id


def _expert(config: ExpertConfig) -> int:
    logging.getLogger("OpenGL").setLevel(logging.WARNING)
    report = measure_expert(config)
    if config.json:
        print(json.dumps(report))
        return 0
    print(
        f"{report['task']} at {report['fps']} fps: {report['successes']} of {report['episodes']} episodes "
        f"succeeded ({100 * report['success_rate']:.0f}%), median {report['median_seconds']:.1f} s"
    )
    if report["failed_seeds"]:
        print(f"failed seeds: {report['failed_seeds']}")
    return 0
