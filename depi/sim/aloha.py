"""An expert for gym-aloha's cube transfer: gripper poses, converted to joint targets.

The right arm picks the cube up and carries it to the middle; the left arm, its wrist turned by a quarter,
takes it there. Times and places vary a little between episodes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from gym_aloha.constants import ACTIONS, DT, START_ARM_POSE, normalize_puppet_gripper_position
from gym_aloha.env import AlohaEnv
from numpy.typing import NDArray

SIDES = ("left", "right")
JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
OPEN, CLOSED = 1.0, 0.0
# From the finger tips back to the point where the fingers hold best, in metres along the gripper.
GRIP_DEPTH = 0.012
PITCH = np.radians(50)  # of the right gripper, downwards
IK_EVERY = 0.1  # seconds


def only_top_camera(env: AlohaEnv) -> None:
    """Make gym-aloha draw the one camera that its observations have, and only while `env.with_images`.

    It draws three at 480x640 for every step otherwise, whatever is asked for.
    """
    env.with_images = True
    task, height, width = env._env.task, env.observation_height, env.observation_width
    black = np.zeros((height, width, 3), np.uint8)

    def observe(physics: Any) -> dict[str, Any]:
        image = physics.render(height=height, width=width, camera_id="top") if env.with_images else black
        return {"qpos": task.get_qpos(physics), "images": {"top": image}}

    task.get_observation = observe


class TransferEnv(AlohaEnv):
    """gym-aloha's cube transfer, which draws the top camera alone, or nothing: `with_images` says which."""

    def __init__(self, **options: Any):
        super().__init__(task="transfer_cube", obs_type="pixels_agent_pos", **options)
        only_top_camera(self)

    @property
    def physics(self) -> Any:
        """dm_control's physics."""
        return self._env.physics


@dataclass(frozen=True)
class Pose:
    """The target of a gripper at a time: finger tips (metres), pitch and roll (radians), opening 0..1."""

    time: float
    position: NDArray[np.float64]
    pitch: float
    roll: float
    gripper: float


class TransferExpert:
    """Plans an episode of `TransferEnv` when it begins; `act` returns one action after the other."""

    def __init__(self, env: TransferEnv):
        self._env = env
        self._actions = np.zeros((0, len(ACTIONS)))
        self._step = 0

    def reset(self, seed: int) -> None:
        """Plan the episode that has just begun; places and times vary with `seed`."""
        rng = np.random.default_rng(seed)
        cube = self._env.physics.data.qpos[16:19].copy()
        cube[2] = 0.02
        paths = dict(zip(SIDES, self._paths(cube, rng), strict=True))
        end = max(path[-1].time for path in paths.values())
        times = np.arange(0, end + IK_EVERY, IK_EVERY)
        arms = {side: self._joints(side, paths[side], times) for side in SIDES}
        clock = np.arange(1, int(end / DT) + 1) * DT
        columns = [np.interp(clock, times, column) for side in SIDES for column in arms[side].T]
        self._actions, self._step = np.stack(columns, axis=1), 0

    def act(self) -> NDArray[np.float32]:
        """Return the next action, float32 (14,): radians, grippers 0..1; at the end the last one again."""
        self._step += 1
        return self._actions[min(self._step, len(self._actions)) - 1].astype(np.float32)

    def _paths(self, cube: NDArray[np.float64], rng: np.random.Generator) -> tuple[list[Pose], list[Pose]]:
        pace = rng.uniform(0.9, 1.1)
        meet = np.array([0.0, 0.5, 0.27]) + rng.uniform(-0.02, 0.02, 3)
        above = cube + np.array([0, 0, rng.uniform(0.10, 0.14)])
        right = [
            self._start("right"),
            Pose(1.3 * pace, above, PITCH, 0, OPEN),
            Pose(2.0 * pace, cube, PITCH, 0, OPEN),
            Pose(2.3 * pace, cube, PITCH, 0, OPEN),
            Pose(2.6 * pace, cube, PITCH, 0, CLOSED),
            Pose(3.8 * pace, meet, PITCH, 0, CLOSED),
            Pose(5.4 * pace, meet, PITCH, 0, CLOSED),
        ]
        beside = meet - [0.14, 0, 0]
        left = [
            self._start("left"),
            Pose(2.0 * pace, beside, 0, np.pi / 2, OPEN),
            Pose(4.0 * pace, beside, 0, np.pi / 2, OPEN),
            Pose(4.7 * pace, meet, 0, np.pi / 2, OPEN),
            Pose(4.9 * pace, meet, 0, np.pi / 2, OPEN),
            Pose(5.4 * pace, meet, 0, np.pi / 2, CLOSED),
        ]
        return left, right

    def _start(self, side: str) -> Pose:
        data = self._env.physics.named.data
        frame = data.site_xmat[f"cali_{side}_site1"].reshape(3, 3)
        gripper = normalize_puppet_gripper_position(START_ARM_POSE[6])
        tip = data.site_xpos[f"cali_{side}_site1"] - GRIP_DEPTH * frame[:, 0]
        return Pose(0.0, tip, -np.arcsin(frame[2, 0]), 0.0, gripper)

    def _joints(self, side: str, path: list[Pose], times: NDArray[Any]) -> NDArray[np.float64]:
        """Six joints and the gripper (len(times), 7) that follow a path, smoothed between its poses."""
        from dm_control.utils.inverse_kinematics import qpos_from_site_pose

        scratch = self._env.physics.copy(share_model=True)
        base = scratch.named.model.body_pos[f"vx300s_{side}"]
        joints = [f"vx300s_{side}/{joint}" for joint in JOINTS]
        marks = np.array([pose.time for pose in path])
        rows = []
        for time in times:
            after = int(np.clip(np.searchsorted(marks, time), 1, len(path) - 1))
            first, second = path[after - 1], path[after]
            linear = np.clip((time - first.time) / (second.time - first.time), 0, 1)
            share = (1 - np.cos(np.pi * linear)) / 2
            position, pitch, roll, gripper = (
                getattr(first, name) + share * (getattr(second, name) - getattr(first, name))
                for name in ("position", "pitch", "roll", "gripper")
            )
            # An arm that points in the direction of its waist needs no forearm roll: no singularity.
            frame = _frame((position - base)[:2], pitch, roll)
            qpos_from_site_pose(
                scratch,
                f"cali_{side}_site1",
                position + GRIP_DEPTH * frame[:, 0],
                _quaternion(frame),
                joints,
                tol=1e-8,
                inplace=True,
            )
            rows.append([*scratch.named.data.qpos[joints], gripper])
        return np.array(rows)


def _frame(ahead: NDArray[np.float64], pitch: float, roll: float) -> NDArray[np.float64]:
    """The rotation (3, 3) of a gripper that points `ahead` (x, y), turned down and about its axis."""
    x, y = ahead / np.linalg.norm(ahead)
    along = np.array([x * np.cos(pitch), y * np.cos(pitch), -np.sin(pitch)])
    across = np.array([-y, x, 0.0])
    turned = np.cos(roll) * across + np.sin(roll) * np.cross(along, across)
    return np.column_stack([along, turned, np.cross(along, turned)])


def _quaternion(frame: NDArray[np.float64]) -> NDArray[np.float64]:
    import mujoco

    quaternion = np.zeros(4)
    mujoco.mju_mat2Quat(quaternion, frame.ravel())
    return quaternion
