"""Scripted experts: they read the simulator's state, plan an episode in joint space and play it out."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from depi.sim.simulation import So101Env

IK_STEPS = 80
IK_TOLERANCE = 0.004
CLOSED, AJAR, OPEN = 0.0, 15.0, 70.0


class ArmKinematics:
    """Inverse kinematics of the simulated arm on a scratch copy of its state."""

    def __init__(self, model: Any):
        import mujoco
        from so101_nexus.config import SO101_JOINT_NAMES, SO101_TCP_SITE_NAME

        self._model, self._data = model, mujoco.MjData(model)
        joints = [model.joint(name).id for name in SO101_JOINT_NAMES[:5]]
        self._qpos, self._dof = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._range = model.jnt_range[joints]
        self._site = model.site(SO101_TCP_SITE_NAME).id
        base = model.body("base").id
        self.base_position = model.body_pos[base].copy()
        self.base_yaw = 2 * np.arctan2(model.body_quat[base][3], model.body_quat[base][0])

    def solve(
        self, position: NDArray[np.float64], yaw: float, start: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """Bring the tool to a point, pointing down, its closing direction at `yaw`.

        Args:
            position: (3,) metres in the world. yaw: radians. start: (5,) degrees to search from.

        Returns:
            The five arm joints in degrees and how far off the point they leave the tool, in metres.
        """
        import mujoco
        from so101_nexus.kinematics import ee_ik_delta_q

        across = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        down = np.array([0.0, 0.0, -1.0])
        wanted, actual = np.zeros(4), np.zeros(4)
        mujoco.mju_mat2Quat(wanted, np.column_stack([across, np.cross(down, across), down]).ravel())
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        joints, change = np.radians(start), np.ones(5)
        for step in range(IK_STEPS + 1):
            self._data.qpos[self._qpos] = joints
            mujoco.mj_kinematics(self._model, self._data)
            mujoco.mj_comPos(self._model, self._data)
            reached = self._data.site_xpos[self._site]
            if step == IK_STEPS or np.abs(change).max() < 1e-7:
                break
            mujoco.mj_jacSite(self._model, self._data, linear, angular, self._site)
            mujoco.mju_mat2Quat(actual, self._data.site_xmat[self._site])
            jacobian = np.vstack([linear[:, self._dof], angular[:, self._dof]])
            change = ee_ik_delta_q(
                jacobian, reached, actual, position, wanted, orientation_weight=0.05, damping=0.02
            )
            joints = np.clip(joints + np.clip(change, -0.3, 0.3), self._range[:, 0], self._range[:, 1])
        return np.degrees(joints), float(np.linalg.norm(reached - position))


@dataclass
class Plan:
    """Joint targets over time: (6,) canonical degrees at each of the increasing `times` in seconds."""

    times: list[float] = field(default_factory=list)
    targets: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, arm: NDArray[np.float64], gripper: float, seconds: float) -> None:
        """Append a waypoint that is reached `seconds` after the last one."""
        self.times.append((self.times[-1] if self.times else 0.0) + seconds)
        self.targets.append(np.append(arm, gripper))

    def at(self, time: float) -> NDArray[np.float64]:
        """The target at a time: cosine-smoothed between waypoints, the last one for ever after."""
        after = int(np.searchsorted(self.times, time))
        if after == 0 or after == len(self.times):
            return self.targets[min(after, len(self.times) - 1)]
        begin, end = self.times[after - 1], self.times[after]
        share = (1 - np.cos(np.pi * (time - begin) / (end - begin))) / 2
        return self.targets[after - 1] + share * (self.targets[after] - self.targets[after - 1])


class Expert:
    """A policy that solves its environment's task: call `reset` after the environment's, then itself.

    It looks at the simulator's state once, at reset, and varies speed and path a little between episodes,
    the same way for the same episode.
    """

    def __init__(self, env: "So101Env"):
        from depi.sim.simulation import encoder_round

        self._env, self._round = env, encoder_round
        self._arm = ArmKinematics(env.model)

    def reset(self) -> None:
        """Plan the episode that the environment has just begun."""
        env = self._env
        cube = env.cube_pose
        rng = np.random.default_rng(np.abs(cube[:3] * 1e6).astype(np.int64))
        self._pace = rng.uniform(0.9, 1.15)
        self._step = 0
        self._plan = Plan()
        self._plan.add(env.home[:5], CLOSED, 0.0)
        self._plan.add(env.home[:5], CLOSED, 0.15)
        if env.task.name == "touch":
            self._plan_touch(cube, rng)
        else:
            self._plan_pick_lift(cube, rng)

    def __call__(self, observation: Any = None) -> NDArray[np.float32]:
        """Return the next action, float32 (6,) canonical degrees; the observation is not needed."""
        self._step += 1
        target = self._plan.at(self._step / self._env.setup.fps / self._pace)
        return self._round(target).astype(np.float32)

    def _plan_touch(self, cube: NDArray[np.float64], rng: np.random.Generator) -> None:
        top = _raised(cube[:3], self._env.setup.object_size / 2 + 0.004)
        above = top + rng.uniform([-0.01, -0.01, 0.05], [0.01, 0.01, 0.07])
        hover = self._reach(above, None, self._guess(cube))
        self._plan.add(hover, AJAR, 0.8)
        touch = self._reach(top, None, hover)
        self._plan.add(touch, CLOSED, 0.5)
        self._plan.add(touch, CLOSED, 0.3)

    def _plan_pick_lift(self, cube: NDArray[np.float64], rng: np.random.Generator) -> None:
        yaw = self._closing_yaw(cube)
        # The moving jaw pushes the cube against the fixed one, so stand closer to the fixed one.
        aside = 0.004 * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        grasp = cube[:3] - aside
        grasp[2] = max(grasp[2] - 0.002, 0.008)
        height = rng.uniform(0.07, 0.085)
        path = [self._guess(cube)]
        for rise in (height, 0.035, 0.0):
            path.append(self._reach(_raised(grasp, rise), yaw, path[-1]))
        lifted = self._reach(_raised(grasp, rng.uniform(0.09, 0.1)), yaw, path[-1])
        self._plan.add(path[1], OPEN, 0.9)
        self._plan.add(path[2], OPEN, 0.3)
        self._plan.add(path[3], OPEN, 0.3)
        self._plan.add(path[3], CLOSED, 0.35)
        self._plan.add(path[3], CLOSED, 0.1)
        self._plan.add(lifted, CLOSED, 0.7)
        self._plan.add(lifted, CLOSED, 0.3)

    def _guess(self, cube: NDArray[np.float64]) -> NDArray[np.float64]:
        """Arm joints somewhere above the cube, pointing down, to start the search from."""
        x, y = cube[:2] - self._arm.base_position[:2]
        pan = -np.degrees(np.arctan2(y, x) - self._arm.base_yaw)
        return np.array([pan, 0.0, 20.0, 70.0, 0.0])

    def _closing_yaw(self, cube: NDArray[np.float64]) -> float:
        """The direction across two faces of the cube that turns the wrist least from its rest."""
        turn = 2 * np.arctan2(cube[6], cube[3])
        options = []
        for quarter in range(4):
            yaw = turn + quarter * np.pi / 2
            joints, error = self._arm.solve(_raised(cube[:3], 0.03), yaw, self._guess(cube))
            options.append((error > IK_TOLERANCE, abs(joints[4]), yaw))
        return min(options)[2]

    def _reach(
        self, point: NDArray[np.float64], yaw: float | None, start: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        if yaw is None:  # the closing direction of an unrolled wrist
            x, y = point[:2] - self._arm.base_position[:2]
            yaw = float(np.arctan2(y, x)) + np.pi
        return self._arm.solve(point, yaw, start)[0]


def _raised(point: NDArray[np.float64], height: float) -> NDArray[np.float64]:
    return point + np.array([0.0, 0.0, height])
