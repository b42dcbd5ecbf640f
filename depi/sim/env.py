"""The simulated SO-101 as a gymnasium environment."""

from typing import TYPE_CHECKING

from depi.sim.gl import select_backend
from depi.sim.setup import Setup
from depi.sim.tasks import find_task

if TYPE_CHECKING:
    from depi.sim.simulation import So101Env


def make_env(
    task: str, setup: Setup | None = None, *, seed: int = 0, max_steps: int | None = None
) -> "So101Env":
    """Make the environment of a task as one contributor's rig sees it.

    Args:
        task: "touch" or "pick_lift".
        setup: the rig; without cameras nothing is rendered, which is far faster.
        seed: of the first `reset` that is not given one.
        max_steps: an episode is truncated after so many; by default after the task's time limit.

    Raises:
        UserError: unknown task, so101-nexus not installed, or cameras on a machine that cannot render.
    """
    from depi.errors import UserError

    wanted = find_task(task)
    select_backend()
    try:
        from depi.sim.simulation import So101Env
    except ModuleNotFoundError as error:
        raise UserError(f"simulation needs the package {error.name}: install depi[sim]") from None
    return So101Env(wanted, setup or Setup(), seed=seed, max_steps=max_steps)
