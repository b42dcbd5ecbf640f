"""The environment itself: import it through `depi.sim.env.make_env`, which picks the OpenGL library first."""

import atexit
import weakref
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from depi.errors import UserError
from depi.sim.gl import REMEDY
from depi.sim.meshes import coarsen_visual_meshes
from depi.sim.setup import TABLES, Camera, Setup
from depi.sim.tasks import CONTROL_HZ, Task, make_scene

# The rest pose: the leader arm leans on its mechanical stops, a little beyond the simulator's limits.
HOME = np.array([0.0, -103.6, 97.5, 32.0, 0.0, 0.0])
HOME_NOISE = np.array([12.0, 0.0, 0.0, 8.0, 8.0, 0.0])
COMMAND_LIMIT = np.array([111.0, 104.0, 98.0, 102.0, 171.0, 100.0])
# A servo's encoder counts 4096 steps a turn; the gripper's 100 units are about 130 degrees.
ENCODER_STEP = np.array([360 / 4096] * 5 + [100 / 1480])

# kind: (point looked at, distance, azimuth, elevation), metres and degrees; the robot faces +x.
VIEWS = {
    "front": ((0.14, 0.0, 0.07), 0.54, 180.0, -30.0),
    "side": ((0.14, 0.0, 0.08), 0.52, 90.0, -25.0),
    "top": ((0.16, 0.0, 0.0), 0.62, 0.0, -88.0),
}
WRIST_FOV = 75.0
SPECTATOR = Camera("spectator", "front", azimuth=-40.0)


class So101Env(gymnasium.Env):
    """A simulated SO-101 in canonical units, controlled at `setup.fps`.

    Observation: {"images": {camera: uint8 (height, width, 3)}, "state": float32 (6,)}, the measured joint
    positions. Action: float32 (6,), absolute joint targets. Both in degrees with the zero mid-range, the
    gripper 0 (closed) to 100 (open); joint order as in `joints.JOINTS`. The simulator's radians are the
    same angles with the same signs; its gripper range (-0.1745 to 1.7453) is mapped to 0..100.
    Targets are interpolated linearly over a control period, and physics runs at 240 Hz at every fps.

    The reward is 1 on success, else 0. `info["is_success"]` says whether the task is done, and
    `terminated` follows it; `truncated` after `max_steps`, by default the task's time limit. Equal seeds give
    equal episodes, with or without cameras. While `with_images` is False observations have no images, which
    saves time.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    render_mode = "rgb_array"

    def __init__(self, task: Task, setup: Setup, *, seed: int = 0, max_steps: int | None = None):
        self.task = task
        self.setup = setup
        self.metadata = {**self.metadata, "render_fps": setup.fps}
        self.instruction = setup.task_text if setup.task_text is not None else task.instruction(setup)
        self.max_steps = max_steps or round(task.max_seconds * setup.fps)
        self._seed: int | None = seed
        self.with_images = True
        self._scene = make_scene(task, setup)
        # Slightly inside the float32 limits, so that rounding cannot exceed the float64 ones.
        self._low = self._scene.action_space.low.astype(np.float64) + 1e-6
        self._high = self._scene.action_space.high.astype(np.float64) - 1e-6
        self._renderer: mujoco.Renderer | None = None
        self._place_robot_and_paint()
        limits = COMMAND_LIMIT.astype(np.float32)
        self.action_space = spaces.Box(np.append(-limits[:5], np.float32(0)), limits)
        frame = spaces.Box(0, 255, (setup.height, setup.width, 3), np.uint8)
        self.observation_space = spaces.Dict(
            {
                "images": spaces.Dict({camera.name: frame for camera in setup.cameras}),
                "state": spaces.Box(-np.inf, np.inf, (6,), np.float32),
            }
        )

    @property
    def model(self) -> mujoco.MjModel:
        """The compiled MuJoCo model of the scene."""
        return self._scene.model

    @property
    def joint_positions(self) -> NDArray[np.float64]:
        """The joints as the encoders measure them, float64 (6,), canonical degrees."""
        return encoder_round(self._to_degrees(self._scene_state[:6].astype(np.float64)))

    @property
    def cube_pose(self) -> NDArray[np.float64]:
        """The cube in the world, float64 (7,): position in metres, quaternion w, x, y, z."""
        return self._scene_state[13:20].astype(np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Start an episode: place the cube at random, fold the arm. Returns (observation, info).

        `options={"images": False}` leaves the images out of this episode's observations, to save time.
        """
        super().reset(seed=self._seed if seed is None else seed)
        self._seed = None
        self.with_images = (options or {}).get("images", True)
        episode = int(self.np_random.integers(2**31))
        rng = np.random.default_rng([episode, 1])
        self.home = encoder_round(HOME + HOME_NOISE * rng.uniform(-1, 1, 6))
        self._scene_state, _ = self._scene.reset(
            seed=episode, options={"init_qpos": self._to_radians(self.home)}
        )
        self._jitter = np.random.default_rng([episode, 2]).normal(size=(len(self.setup.cameras), 2))
        self._target = self._to_radians(self.home)
        self._steps = self._held = 0
        return self._observe(), self._info()

    def step(self, action):
        """Move towards the joint targets `action` for 1/fps seconds.

        Returns (observation, reward, terminated, truncated, info); `info["sent_action"]`, float32 (6,), is
        what the arm was sent: the targets, clipped to what its joints can do. Robots record that.

        Raises:
            ValueError: the action is not six finite numbers.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (6,) or not np.isfinite(action).all():
            raise ValueError(f"an action is six finite numbers, got {action!r}")
        start, end = self._target, self._to_radians(action)
        ticks = CONTROL_HZ // self.setup.fps
        for tick in range(1, ticks + 1):
            target = start + (end - start) * tick / ticks
            self._scene_state, _, _, _, scene_info = self._scene.step(target.astype(np.float32))
            self._held = self._held + 1 if scene_info["success"] else 0
        self._target = end
        self._steps += 1
        info = {**self._info(), "sent_action": encoder_round(self._to_degrees(end)).astype(np.float32)}
        success = info["is_success"]
        return self._observe(), float(success), success, self._steps >= self.max_steps and not success, info

    def render(self) -> NDArray[np.uint8]:
        """Return an image of the scene, uint8 (height, width, 3)."""
        return self._draw(_free_camera(SPECTATOR, np.zeros(2)))

    def close(self) -> None:
        """Release the renderer."""
        if self._renderer is not None:
            # MuJoCo frees OpenGL objects in the current context: drawing makes it this renderer's.
            self._renderer.scene.ngeom = 0
            self._renderer.render()
            self._renderer.close()
            self._renderer = None
            _rendering.discard(self)
        self._scene.close()

    def _info(self) -> dict[str, Any]:
        success = self._held >= self.task.hold_seconds * CONTROL_HZ
        return {"is_success": bool(success), "task": self.instruction}

    def _observe(self) -> dict[str, Any]:
        images = {}
        for index, camera in enumerate(self.setup.cameras if self.with_images else ()):
            if camera.kind == "wrist":
                self._aim_wrist(camera, self._jitter[index])
                view: str | mujoco.MjvCamera = "wrist_cam"
            else:
                view = _free_camera(camera, self._jitter[index])
            images[camera.name] = self._draw(view)
        return {"images": images, "state": self.joint_positions.astype(np.float32)}

    def _draw(self, view: str | mujoco.MjvCamera) -> NDArray[np.uint8]:
        renderer = self._renderer or self._make_renderer()
        renderer.update_scene(self._scene.data, view)
        return renderer.render()

    def _make_renderer(self) -> mujoco.Renderer:
        coarsen_visual_meshes(self.model, self.setup.height)
        try:
            self._renderer = mujoco.Renderer(self.model, self.setup.height, self.setup.width)
        except (ImportError, AttributeError, RuntimeError, mujoco.FatalError) as error:
            raise UserError(f"the simulator cannot render on this machine: {REMEDY}") from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        if not _rendering:
            atexit.register(_close_all)  # after MuJoCo's own exit hook is set, so that it runs before it
        _rendering.add(self)
        return self._renderer

    def _aim_wrist(self, camera: Camera, jitter: NDArray[np.float64]) -> None:
        """Turn the model's wrist camera: several wrist cameras share it, one after another."""
        tilt, pan = np.radians([camera.elevation, camera.azimuth] + camera.jitter * jitter)
        turn, pose = np.zeros(4), np.zeros(4)
        mujoco.mju_euler2Quat(turn, np.array([tilt, pan, 0.0]), "XYZ")
        mujoco.mju_mulQuat(pose, self._wrist_quat, turn)
        self.model.cam_quat[self._wrist_camera] = pose
        mujoco.mj_camlight(self.model, self._scene.data)

    def _place_robot_and_paint(self) -> None:
        model, setup = self.model, self.setup
        x, y, yaw = setup.base_offset
        base = model.body("base").id
        model.body_pos[base] += [x, y, 0.0]
        mujoco.mju_euler2Quat(model.body_quat[base], np.array([0.0, 0.0, np.radians(yaw)]), "XYZ")
        model.geom_rgba[model.geom("floor").id, :3] = TABLES[setup.table]
        light = np.array(setup.lighting)
        model.light_diffuse *= light
        model.vis.headlight.ambient[:] = np.clip(model.vis.headlight.ambient * light, 0, 1)
        self._wrist_camera = model.camera("wrist_cam").id
        model.cam_fovy[self._wrist_camera] = WRIST_FOV
        self._wrist_quat = model.cam_quat[self._wrist_camera].copy()

    def _to_degrees(self, radians: NDArray[np.float64]) -> NDArray[np.float64]:
        gripper = (radians[5] - self._low[5]) / (self._high[5] - self._low[5])
        return np.append(np.degrees(radians[:5]), 100 * gripper)

    def _to_radians(self, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        """Simulator targets for canonical degrees, clipped to what its joints can do."""
        gripper = self._low[5] + degrees[5] / 100 * (self._high[5] - self._low[5])
        return np.clip(np.append(np.radians(degrees[:5]), gripper), self._low, self._high)


# Environments with a live renderer: MuJoCo cannot free one while the interpreter is torn down.
_rendering: "weakref.WeakSet[So101Env]" = weakref.WeakSet()


def _close_all() -> None:
    for env in list(_rendering):
        env.close()


def encoder_round(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Canonical degrees (..., 6) as a servo's encoder resolves them."""
    return np.round(degrees / ENCODER_STEP) * ENCODER_STEP


def _free_camera(camera: Camera, jitter: NDArray[np.float64]) -> mujoco.MjvCamera:
    lookat, distance, azimuth, elevation = VIEWS[camera.kind]
    view = mujoco.MjvCamera()
    view.lookat[:] = lookat
    view.distance = distance * camera.distance
    view.azimuth = azimuth + camera.azimuth + camera.jitter * jitter[1]
    view.elevation = np.clip(elevation + camera.elevation + camera.jitter * jitter[0], -89.0, 5.0)
    return view
