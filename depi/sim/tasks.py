"""The simulated tasks: their scenes, success criteria and time limits."""

from dataclasses import dataclass

from depi.errors import UserError
from depi.sim.setup import Setup

PHYSICS_HZ = 240
CONTROL_HZ = 60
SPAWN_RADIUS = (0.20, 0.27)
SPAWN_HALF_ANGLE = 32.0


@dataclass(frozen=True)
class Task:
    """A task of the simulated SO-101.

    Attributes:
        name: as `--task` takes it.
        text: the instruction; `{color}` is the cube's colour.
        max_seconds: an episode is truncated after this.
        hold_seconds: success must last this long before it counts.
    """

    name: str
    text: str
    max_seconds: float
    hold_seconds: float

    def instruction(self, setup: Setup) -> str:
        """The instruction that fits the scene."""
        return self.text.format(color=setup.object_color)


TASKS = {
    task.name: task
    for task in (
        Task("touch", "Touch the {color} cube.", 4.0, 0.1),
        Task("pick_lift", "Pick up the {color} cube.", 6.0, 0.2),
    )
}


def find_task(name: str) -> Task:
    """Return the task of this name.

    Raises:
        UserError: there is none.
    """
    if name not in TASKS:
        raise UserError(f"unknown simulated task {name!r}: choose one of {', '.join(TASKS)}")
    return TASKS[name]


def make_scene(task: Task, setup: Setup):
    """Build the MuJoCo environment of so101_nexus that this task runs in, in radians at 60 Hz.

    Its observation is joint positions (6), tool pose (7) and cube pose (7), as one float32 vector.
    """
    from so101_nexus.config import PhysicsConfig, PickConfig, RenderConfig, TouchConfig
    from so101_nexus.mujoco.pick_env import PickLiftEnv
    from so101_nexus.mujoco.touch_env import TouchEnv
    from so101_nexus.objects import CubeObject
    from so101_nexus.observations import EndEffectorPose, JointPositions, ObjectPose
    from so101_nexus.rendering import RenderingQuality

    options = {
        "objects": CubeObject(half_size=setup.object_size / 2, color=setup.object_color),
        "observations": [JointPositions(), EndEffectorPose(), ObjectPose()],
        "robot_colors": setup.robot_color,
        "physics": PhysicsConfig(1 / PHYSICS_HZ, 1 / CONTROL_HZ, "implicitfast", noslip_iterations=3),
        # Software OpenGL takes twice as long with antialiasing and eight times with shadows.
        "render": RenderConfig(quality=RenderingQuality(msaa_samples=0, shadows=False)),
        "reset_settle_frames": 15,
        "spawn_center": (0.0, 0.0),
        "spawn_min_radius": SPAWN_RADIUS[0],
        "spawn_max_radius": SPAWN_RADIUS[1],
        "spawn_angle_half_range_deg": SPAWN_HALF_ANGLE,
        "terminate_on_success": False,
    }
    if task.name == "touch":
        return TouchEnv(TouchConfig(touch_margin=0.012, **options))
    return PickLiftEnv(PickConfig(lift_threshold=0.05, **options))
