"""One episode of a policy in an environment."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE

from depi.datasets.cameras import slot_order, slots_by_view
from depi.datasets.joints import from_degrees, to_degrees
from depi.errors import UserError
from depi.policies import Pi0Policy, preprocess


@dataclass
class Episode:
    """What happened in one rollout; `frames` are RGB uint8 (H, W, 3), empty unless asked for."""

    seed: int
    success: bool
    length: int
    reward: float
    frames: list[np.ndarray] = field(default_factory=list, repr=False)


@dataclass(frozen=True)
class EnvMapping:
    """How an environment's observations and actions become the policy's, as in its training.

    Attributes:
        slots: camera slot of each camera name; None for one that the policy has no slot for.
        convention: the joint convention that the policy was trained in; environments speak degrees.
    """

    slots: dict[str, int | None]
    convention: str = "degrees"


def observe(observation: dict[str, Any], task: str, mapping: EnvMapping) -> dict[str, Any]:
    """Turn an environment's observation into a batch of one sample, as training on its data sees it.

    Args:
        observation: `images`, camera name -> uint8 (H, W, 3), and `state`, float32 (state_dim,).
        task: the instruction.
        mapping: cameras and units.

    Returns:
        uint8 images (1, 3, H, W) under `observation.images.{slot}`, float32 state (1, state_dim), task.
    """
    state = from_degrees(observation["state"], mapping.convention)
    batch: dict[str, Any] = {OBS_STATE: torch.from_numpy(state)[None], "task": [task]}
    for name, image in observation["images"].items():
        if mapping.slots[name] is not None:
            pixels = torch.from_numpy(np.ascontiguousarray(image))
            batch[f"{OBS_IMAGES}.{mapping.slots[name]}"] = pixels.permute(2, 0, 1)[None]
    return batch


def camera_slots(
    policy: Pi0Policy, cameras: list[str], state_dim: int, action_dim: int, *, by_view: bool = False
) -> dict[str, int | None]:
    """Return the slot of each of the environment's cameras, by the rule that training uses.

    With `by_view` slots mean views, as `--dataset.cameras=view` trains; else cameras are in the order of
    their names' views.

    Raises:
        UserError: the environment and the policy do not fit each other.
    """
    config = policy.config
    assert config.robot_state_feature is not None
    assert config.action_feature is not None
    for what, theirs, ours in (
        ("state", state_dim, config.robot_state_feature.shape[0]),
        ("action", action_dim, config.action_feature.shape[0]),
    ):
        if theirs != ours:
            raise UserError(f"the environment's {what} has {theirs} values, the policy's {ours}")
    if not cameras:
        raise UserError("the environment has no camera, the policy needs at least one")
    size = len(config.image_features)
    taken: list[str | None] = list(slot_order(cameras)[:size])
    if by_view:
        taken = [None if camera is None else cameras[camera] for camera in slots_by_view(cameras, {}, size)]
    return {name: taken.index(name) if name in taken else None for name in cameras}


def rollout(
    env: gym.Env,
    policy: Pi0Policy,
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
    mapping: EnvMapping,
    *,
    task: str,
    seed: int,
    keep_frames: bool = False,
) -> Episode:
    """Run one episode until the environment ends or truncates it, and report whether it succeeded.

    The noise that actions are sampled from is drawn from `seed` too, so a rollout can be repeated.
    """
    before, after = processors
    torch.manual_seed(seed)
    policy.reset()
    observation, _ = env.reset(seed=seed)
    episode = Episode(seed, success=False, length=0, reward=0.0)
    ended = False
    while not ended:
        if keep_frames:
            episode.frames.append(np.concatenate(list(observation["images"].values()), axis=1))
        with torch.inference_mode():
            action = after(policy.select_action(preprocess(observe(observation, task, mapping), before)))
        degrees = to_degrees(action[0].float().cpu().numpy(), mapping.convention)
        observation, reward, terminated, truncated, info = env.step(degrees)
        episode.length += 1
        episode.reward += float(reward)
        episode.success = episode.success or bool(info["is_success"])
        ended = terminated or truncated or episode.success
    return episode
