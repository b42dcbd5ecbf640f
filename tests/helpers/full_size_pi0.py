"""Two processes for the test of the published size, each with room for one policy in memory.

`python full_size_pi0.py write FOLDER` writes a checkpoint of DePi's and its actions, `... stock FOLDER` has
stock LeRobot's factory load it, and writes the actions that come out there.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.policies.factory import make_policy as stock_policy
from lerobot.policies.factory import make_pre_post_processors as stock_processors
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.utils.constants import ACTION, OBS_STATE
from small_pi0 import liven
from true_velocity import true_velocity_behind

from depi.policies import make_policy, make_processors, preprocess, save_checkpoint

CAMERA = "observation.images.0"
STEPS = 2
STATS = {
    OBS_STATE: {"mean": np.linspace(-40, 40, 6), "std": np.linspace(10, 35, 6)},
    ACTION: {"mean": np.linspace(-30, 50, 6), "std": np.linspace(5, 25, 6)},
}
for values in STATS.values():  # by which pi0.5 normalises
    values |= {"q01": values["mean"] - 2 * values["std"], "q99": values["mean"] + 2 * values["std"]}


class ArmEnv(EnvConfig):
    """What the factory asks an environment: the shapes."""

    gym_kwargs = {}  # noqa: RUF012


def inputs(config: PI0Config) -> tuple[dict, torch.Tensor]:
    """An observation of a camera, and noise."""
    draw = torch.Generator().manual_seed(5)
    observation = {
        CAMERA: torch.rand(1, 3, *config.image_resolution, generator=draw),
        OBS_STATE: torch.randn(1, 6, generator=draw) * 20,
        "task": ["pick up the red cube"],
    }
    return observation, torch.randn(1, config.chunk_size, config.max_action_dim, generator=draw)


def write(folder: Path, config: PI0Config) -> None:
    torch.manual_seed(0)
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=(CAMERA,))
    policy = liven(make_policy(config, data))
    before, after = make_processors(config, STATS)
    save_checkpoint(folder, policy, before, after)
    observation, noise = inputs(config)
    batch = preprocess(observation, before)
    actions = after(policy.predict_action_chunk(batch, noise=noise, num_steps=STEPS))
    np.save(folder / "ours.npy", actions.numpy())


def stock(folder: Path) -> None:
    visual = PolicyFeature(type=FeatureType.VISUAL, shape=(224, 224, 3))
    env = ArmEnv(
        features={
            ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(6,)),
            "agent_pos": PolicyFeature(type=FeatureType.STATE, shape=(6,)),
            CAMERA: visual,
        },
        features_map={ACTION: ACTION, "agent_pos": OBS_STATE, CAMERA: CAMERA},
    )
    config = PreTrainedConfig.from_pretrained(folder, cli_overrides=[f"--num_inference_steps={STEPS}"])
    config.pretrained_path = folder
    policy = stock_policy(config, env_cfg=env).eval()
    before, after = stock_processors(config, pretrained_path=str(folder))
    observation, noise = inputs(config)
    with torch.no_grad(), true_velocity_behind(policy, noise):
        actions = after(policy.predict_action_chunk(before(observation), noise=noise))
    np.save(folder / "stock.npy", actions.numpy())


if __name__ == "__main__":
    where = Path(sys.argv[2])
    if sys.argv[1] == "write":
        write(where, PI0Config(device="cpu"))
    else:
        stock(where)
