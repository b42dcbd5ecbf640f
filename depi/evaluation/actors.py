"""The interface of policies in an evaluation: one function, `act(observations) -> chunks`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from depi.errors import UserError
from depi.evaluation.environments import EnvTable
from depi.evaluation.messages import Seen

logger = logging.getLogger(__name__)

EXPERT_STEPS = 8


@dataclass(frozen=True)
class Observation:
    """The observation of one environment that needs a chunk.

    Attributes:
        place: number of the environment, below the batch size; it plays one episode after another.
        seed: the episode's. chunk: how many chunks it has played.
        seen: images, state and task. table: names, sizes and units.
    """

    place: int
    seed: int
    chunk: int
    seen: Seen
    table: EnvTable


class Actor(Protocol):
    """The interface of a policy in `roll_out`.

    Attributes:
        batch: how many observations to wait for, while environments are still busy.
        expert_steps: how many actions of the scripted expert each observation has; 0: none.
    """

    batch: int
    expert_steps: int

    def fit(self, tables: Sequence[EnvTable]) -> None:
        """Raise a UserError where the policy does not fit the episodes' tables."""

    def act(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """For each observation the actions to play next: float32 (n, action_dim), environment's units."""
        ...


class ExpertActor:
    """The scripted expert of so101; the environment's process plans it from the simulator's state."""

    def __init__(self, n_action_steps: int | None = None):
        self.batch, self.expert_steps = 1, n_action_steps or EXPERT_STEPS

    def fit(self, tables: Sequence[EnvTable]) -> None:
        """Check nothing: the environment's process refuses environments without an expert."""

    def act(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """The planned actions."""
        chunks = [observation.seen.expert for observation in observations]
        return [chunk for chunk in chunks if chunk is not None]


def units(table: EnvTable, convention: str) -> str:
    """The joint convention of a policy's inputs and outputs; `native` is the one of the rig."""
    if table.convention != "degrees":
        return "native"
    return (table.recorded_convention or "degrees") if convention == "native" else convention


def check_dimensions(config: Any, table: EnvTable) -> None:
    """Raise a UserError where the sizes of state or action differ from the policy's."""
    for what, feature, ours in (
        ("state", config.robot_state_feature, table.state_dim),
        ("action", config.action_feature, table.action_dim),
    ):
        if feature is not None and feature.shape[0] != ours:
            raise UserError(f"the environment's {what} has {ours} values, the policy's {feature.shape[0]}")


def check_cameras(
    policy_keys: Sequence[str], tables: Sequence[EnvTable], *, rename: dict[str, str], order: str = "name"
) -> None:
    """Check the cameras of all episodes, and log the names of those that the policy does not use.

    Raises:
        UserError: `rename` has an unknown name, or a camera of the policy is missing or assigned twice.
    """
    known = dict.fromkeys(key for table in tables for key in table.cameras)
    for side, names, has in (
        ("environment", rename.keys(), known),
        ("policy", rename.values(), policy_keys),
    ):
        for name in names:
            if name not in has:
                raise UserError(f"--rename_map: the {side} has no camera {name}; it has {', '.join(has)}")
    left: dict[str, None] = {}
    for cameras in {tuple(table.cameras) for table in tables}:
        keys = camera_keys(policy_keys, cameras, rename=rename, order=order)
        left |= dict.fromkeys(key for key, name in keys.items() if name is None)
    if left:
        logger.warning("the policy does not use these cameras: %s", ", ".join(sorted(left)))


def camera_keys(
    policy_keys: Sequence[str], cameras: Sequence[str], *, rename: dict[str, str], order: str = "name"
) -> dict[str, str | None]:
    """The policy's key for each of the environment's cameras; None: the camera is left out.

    Numbered slots (`observation.images.0`) are filled by the rule that training uses, `order`, see
    `camera_order`; with `rename`, only by `rename`. Other keys are names: each of them must exist.

    Raises:
        UserError: a camera of the policy is not among the environment's, or two of them get the same key.
    """
    from depi.datasets.recording.cameras import camera_order, numbered_slots

    if not cameras:
        raise UserError("the environment has no camera, the policy needs at least one")
    slots, numbered = list(policy_keys), numbered_slots(policy_keys)
    if numbered and not rename:
        taken = camera_order(order).by_slot(cameras, len(slots))
        if not any(taken):
            raise UserError(
                f"the policy was trained with --dataset.cameras={order}, and none of these is among the "
                f"environment's cameras ({', '.join(cameras)}): name them with --rename_map"
            )
        return {key: slots[taken.index(key)] if key in taken else None for key in cameras}
    called = {key: rename.get(key, "" if numbered else key) for key in cameras}
    found = [name for name in called.values() if name in policy_keys]
    missing = [key for key in policy_keys if key not in found and "empty_camera" not in key]
    if not found or (missing and not numbered):
        raise UserError(
            f"the policy's camera {', '.join(missing)} is none of the environment's ({', '.join(cameras)}); "
            'name it: --rename_map=\'{"ENVIRONMENT_KEY": "POLICY_KEY"}\''
        )
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise UserError(f"two of the environment's cameras ({', '.join(cameras)}) are the policy's {twice}")
    return {key: name if name in policy_keys else None for key, name in called.items()}
