"""A small simulated community: contributors with different setups of the same robot, some with defects."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from depi.sim.gl import select_backend
from depi.sim.setup import Camera, Setup


@dataclass(frozen=True)
class Contributor:
    """One published dataset: its repo id, task, rig and defect.

    Attributes:
        defect: a name in `depi.sim.defects.DEFECTS`, applied after recording, or None.
        usable: whether training should use it; an evaluation run is valid, but not for training.
    """

    repo_id: str
    task: str
    setup: Setup
    episodes: int = 4
    seed: int = 0
    defect: str | None = None
    usable: bool = True


def community(episodes: int = 4) -> list[Contributor]:
    """Return nine contributors to train on, with this many episodes each (one with bad episodes among eight),
    and five others."""
    return [*_good(episodes), _partly_good(), *_bad()]


def record_community(
    root: Path,
    contributors: Sequence[Contributor] | None = None,
    *,
    workers: int = 2,
    progress: Callable[[Contributor, int, int], None] | None = None,
) -> list[Path]:
    """Record every contributor's dataset to `root/user/name`, in parallel processes.

    `progress` is called with the contributor just done, how many are done, and how many there are.
    Returns the folders in the contributors' order.

    Raises:
        UserError: a folder exists already, or the machine cannot render.
    """
    contributors = list(contributors or community())
    select_backend()  # the worker processes inherit it
    # Longest first, so that the workers finish at about the same time.
    order = sorted(contributors, key=_effort, reverse=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        jobs = {pool.submit(record_contributor, contributor, root): contributor for contributor in order}
        try:
            for done, job in enumerate(as_completed(jobs), 1):
                job.result()
                if progress:
                    progress(jobs[job], done, len(contributors))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [root / contributor.repo_id for contributor in contributors]


def record_contributor(contributor: Contributor, root: Path) -> Path:
    """Record one contributor's dataset to `root/user/name`, with its defect, and return the folder."""
    from depi.sim.defects import DEFECTS
    from depi.sim.record import record_dataset

    folder = root / contributor.repo_id
    record_dataset(
        contributor.task,
        contributor.setup,
        contributor.repo_id,
        folder,
        episodes=contributor.episodes,
        seed=contributor.seed,
    )
    if contributor.defect:
        DEFECTS[contributor.defect](folder)
    return folder


def _effort(contributor: Contributor) -> float:
    seconds = 3.0 if contributor.task == "pick_lift" else 1.5
    return seconds * contributor.setup.fps * contributor.episodes * len(contributor.setup.cameras)


def _start_worker() -> None:
    from depi.sim.record import quiet_libraries

    os.environ.setdefault("LP_NUM_THREADS", "1")  # one software OpenGL thread for each worker
    quiet_libraries()


def _good(episodes: int) -> list[Contributor]:
    front, wrist, top = Camera("front", "front"), Camera("wrist", "wrist"), Camera("top", "top")
    laptop = Camera("laptop", "front", azimuth=25, elevation=-5)
    phone = Camera("phone", "side", azimuth=-10, elevation=-8, jitter=1.0)
    side = Camera("side", "side", azimuth=8, distance=1.05)
    camera1 = Camera("camera1", "side", azimuth=20, elevation=-12)
    rigs = (
        (
            "amelie/so101_pick_cube",
            "pick_lift",
            Setup((front, wrist), convention="normalized"),
        ),
        (
            "bjorn/so100_lift",
            "pick_lift",
            Setup(
                (laptop, phone),
                convention="degrees_v1",
                format="v2.1",
                robot_type="so100",
                task_text="Grasp the red cube and lift it.",
                robot_color="white",
                table="wood",
            ),
        ),
        (
            "chidi/so101_touch_cube",
            "touch",
            Setup((top, wrist, side), 240, 180, 15, codec="h264", object_color="blue", table="white"),
        ),
        (
            "dewi/touch_test",
            "touch",
            Setup((camera1,), 160, 120, 10, "radians", "v2.1", "h264", "so101", "test", object_color="green"),
        ),
        (
            "elif/so100_blocks",
            "pick_lift",
            Setup(
                (front, top),
                240,
                180,
                15,
                "degrees_v1",
                "v2.1",
                "h264",
                "so100",
                "Pick up the green block",
                object_color="green",
                table="black",
                base_offset=(0.005, -0.01, 3.0),
            ),
        ),
        (
            "farid/grab_cube",
            "pick_lift",
            Setup((wrist,), 160, 120, 10, "normalized", task_text="", lighting=(0.8, 0.78, 0.7)),
        ),
        (
            "gaelle/so101_touch",
            "touch",
            Setup(
                (phone, laptop, wrist),
                240,
                180,
                10,
                "degrees",
                "v2.1",
                robot_type="so101",
                robot_color="black",
                table="gray",
                base_offset=(-0.005, 0.015, -2.0),
            ),
        ),
        (
            "hiro/so100_pick",
            "pick_lift",
            Setup(
                (side,),
                convention="normalized",
                codec="h264",
                robot_type="so100_follower",
                task_text="Pick the orange cube up.",
                object_color="orange",
                table="green",
            ),
        ),
    )
    return [
        Contributor(repo_id, task, setup, episodes, seed=1000 * (index + 1))
        for index, (repo_id, task, setup) in enumerate(rigs)
    ]


def _partly_good() -> Contributor:
    """Eight short touches, three of them spoiled: the others are worth training on."""
    rig = Setup((Camera("front", "front"),), 160, 120, 10, codec="h264", robot_type="so101_follower")
    return Contributor("mira/so101_touch_first_try", "touch", rig, 8, 19000, "three_bad_episodes")


def _bad() -> list[Contributor]:
    """Short touches with one small camera at 10 fps: fast to record, because they are not used."""
    cheap = Setup((Camera("front", "front"),), 160, 120, 10, codec="h264")
    radians = Setup((Camera("front", "front"),), 160, 120, 10, "radians", codec="h264")
    cheap_v2 = Setup((Camera("laptop", "front"),), 160, 120, 10, "degrees_v1", "v2.1", "h264", "so100")
    rigs = (
        ("ines/so100_touch_dropouts", cheap_v2, "nan_in_actions"),
        ("jakub/five_joint_arm", cheap, "wrong_action_size"),
        ("kaia/eval_act_so101_touch", cheap, None),
        ("liam/so100_touch_upload", cheap_v2, "missing_video"),
        ("nils/so101_touch_urdf", radians, "another_zero"),
    )
    return [
        Contributor(repo_id, "touch", setup, 4, 20000 + 1000 * index, defect, usable=False)
        for index, (repo_id, setup, defect) in enumerate(rigs)
    ]
