"""LeRobot's other policies (act, diffusion, smolvla, ...) as actors.

A checkpoint is untrusted data: its weights are safetensors, and `depi.policies.trust` lists what else it may
name.
"""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import OBS_STATE
from numpy.typing import NDArray

from depi.datasets.recording.joints import from_degrees, to_degrees
from depi.errors import UserError
from depi.evaluation.actors import Observation, camera_keys, check_cameras, check_dimensions, units
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import TABLES, EnvTable
from depi.evaluation.pi0_actor import generator
from depi.policies.checkpoint import WEIGHTS
from depi.policies.configuration import check_fields
from depi.policies.convert import check_finite, no_larger_than
from depi.policies.letterbox_step import letterboxes
from depi.policies.processors import check_processors
from depi.policies.trust import CONFIG, check_checkpoint, never_ask_to_run_code, refusing

type Pipelines = tuple[PolicyProcessorPipeline[Any, Any], PolicyProcessorPipeline[Any, Any]]

# Policies that compute a chunk from one observation, without earlier ones.
_CHUNKED = ("act", "smolvla")
# Attributes of a policy object that are not the memory of an episode.
_NO_MEMORY = {"config", "training", *vars(torch.nn.Module())}


def load_lerobot_policy(
    folder: Path, kind: str, device: str | None, *, trusted: bool = False
) -> tuple[PreTrainedPolicy, Pipelines]:
    """A policy of LeRobot's factory in evaluation mode, and its pre- and postprocessor.

    Args:
        folder: the checkpoint.
        kind: its policy type.
        device: where to put it; the checkpoint's own choice if None.
        trusted: build everything that it names, also with code that LeRobot loads for it.

    Raises:
        UserError: the type, a step or a repository is not on the lists of `depi.policies.trust`, a package is
            missing, or weights do not fit.
    """
    if not trusted:
        check_checkpoint(folder, kind)
    never_ask_to_run_code()
    with refusing(f"{folder} cannot be loaded"):
        config = PreTrainedConfig.from_pretrained(folder)
        config.device = device or config.device
        if hasattr(config, "pretrained_backbone_weights"):
            config.pretrained_backbone_weights = None  # the checkpoint has them
        check_fields(config, folder / CONFIG)
        policy = _load(folder, config)
    with refusing(f"{folder}: processors cannot be built"):
        pipelines = make_pre_post_processors(
            config,
            str(folder),
            preprocessor_overrides={"device_processor": {"device": config.device}},
        )
        check_processors(folder, pipelines, config)
    return policy, pipelines


def _load(folder: Path, config: Any) -> PreTrainedPolicy:
    try:
        policy_class = get_policy_class(config.type)
        with no_larger_than(folder / WEIGHTS):
            policy = policy_class.from_pretrained(folder, config=config, strict=True).eval()
    except ImportError as error:
        raise UserError(
            f"policies of type {config.type} need more: {error}; uv pip install 'lerobot[{config.type}]'"
        ) from None
    check_finite(folder / WEIGHTS, dict(policy.named_parameters()))
    return policy


def sized_for(config: Any, env: EnvironmentConfig) -> EnvironmentConfig:
    """An environment whose cameras have the size that a policy takes, where it can be chosen.

    Args:
        config: of the policy, whose images are not letterboxed.
        env: the environment.
    """
    shapes = {feature.shape for feature in config.image_features.values()}
    if env.type not in (*TABLES, "so101") or len(shapes) != 1:
        return env
    _, height, width = shapes.pop()
    return dataclasses.replace(env, observation_height=height, observation_width=width)


class LeRobotActor:
    """A policy of LeRobot's, called for one environment at a time.

    Whatever the policy remembers of an episode (past observations, queued actions, ensembles) is kept for
    each environment, put into the policy before it is called, and taken out again. Those that make
    chunks of single observations are asked for a chunk, all others for each single action. Random numbers
    are drawn from the episode's seed and the number of the call.
    """

    expert_steps = 0
    batch = 1

    def __init__(
        self,
        policy: PreTrainedPolicy,
        pipelines: Pipelines,
        *,
        cameras: str = "name",
        convention: str = "degrees",
        n_action_steps: int | None = None,
        rename: dict[str, str] | None = None,
    ):
        self._policy, (self._before, self._after) = policy, pipelines
        self._letterboxed = letterboxes(self._before)
        self._order, self._convention, self._rename = cameras, convention, rename or {}
        if n_action_steps is not None:
            self._set_action_steps(n_action_steps)
        self._memories: dict[int, dict[str, Any]] = {}
        config: Any = policy.config
        ensembles = getattr(config, "temporal_ensemble_coeff", None) is not None
        self._by_chunk = config.type in _CHUNKED and not ensembles

    def _set_action_steps(self, count: int) -> None:
        config: Any = self._policy.config
        most = getattr(config, "chunk_size", None)
        if most is None and hasattr(config, "horizon"):
            most = config.horizon - config.n_obs_steps + 1
        if not hasattr(config, "n_action_steps") or most is None:
            raise UserError(f"--policy.n_action_steps does not go with policies of type {config.type}")
        if not 1 <= count <= most:
            raise UserError(f"--policy.n_action_steps must be 1 to {most}")
        config.n_action_steps = count

    def fit(self, tables: Sequence[EnvTable]) -> None:
        """Raise a UserError where the policy does not fit the environments."""
        config = self._policy.config
        if config.env_state_feature is not None:
            raise UserError("the policy needs the environment's state, which is no part of observations")
        names = list(config.image_features)
        if names:
            check_cameras(names, tables, rename=self._rename, order=self._order)
        for table in {tuple(table.cameras): table for table in tables}.values():
            check_dimensions(config, table)

    def act(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """One chunk, or one action, for each observation."""
        config = self._policy.config
        device = torch.device(config.device or "cpu")
        random = torch.random.fork_rng([device] if device.type == "cuda" else [])
        # As lerobot-eval: the device's own kind of number, float16 on CUDA.
        with random, torch.inference_mode(), torch.autocast(device.type, enabled=config.use_amp):
            return [self._act(observation) for observation in observations]

    def _act(self, observation: Observation) -> NDArray[np.float32]:
        torch.manual_seed(generator(observation).initial_seed())
        if observation.chunk == 0:
            self._policy.reset()
        else:
            vars(self._policy).update(self._memories[observation.place])
        batch = self._before(self._batch(observation))
        if self._by_chunk:
            count = self._policy.config.n_action_steps
            actions = self._policy.predict_action_chunk(batch)[:, :count]
        else:
            actions = self._policy.select_action(batch)[:, None]
        self._memories[observation.place] = self._take_memory()
        # Before they get their units: in those, half precision has steps of half a degree.
        played = self._after(actions.float())[0].cpu().numpy()
        return to_degrees(played, units(observation.table, self._convention))

    def _take_memory(self) -> dict[str, Any]:
        memory = {name: value for name, value in vars(self._policy).items() if name not in _NO_MEMORY}
        return copy.deepcopy(memory)

    def _batch(self, observation: Observation) -> dict[str, Any]:
        """One sample as LeRobot's own evaluation gives it: images are float 0..1."""
        keys = self._keys(observation.table)
        batch: dict[str, Any] = {"task": [observation.seen.task]}
        for key, image in observation.seen.images.items():
            name = keys[key]
            if name is not None:
                batch[name] = self._fitted(key, image, self._policy.config.image_features[name].shape)
        state = from_degrees(observation.seen.state, units(observation.table, self._convention))
        return {**batch, OBS_STATE: torch.from_numpy(state)[None]}

    def _fitted(self, key: str, image: NDArray[np.uint8], shape: Sequence[int]) -> torch.Tensor:
        """A picture as the policy takes it, float [1, 3, H, W], 0..1."""
        if not self._letterboxed:
            self._check_size(key, image, shape)
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

    def _check_size(self, key: str, image: NDArray[np.uint8], shape: Sequence[int]) -> None:
        """Most policies accept one image size only; those of language models resize images themselves."""
        sizes_itself = hasattr(self._policy.config, "tokenizer_max_length")
        if not sizes_itself and tuple(image.shape[:2]) != tuple(shape[1:]):
            raise UserError(
                f"the environment's camera {key} has {image.shape[0]}x{image.shape[1]} pixels, the policy's "
                f"{shape[1]}x{shape[2]}: give --env.observation_height and --env.observation_width"
            )

    def _keys(self, table: EnvTable) -> dict[str, str | None]:
        names = list(self._policy.config.image_features)
        if not names:
            return dict.fromkeys(table.cameras)
        return camera_keys(names, tuple(table.cameras), rename=self._rename, order=self._order)
