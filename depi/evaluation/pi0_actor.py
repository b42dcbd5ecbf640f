"""DePi's pi0 as an actor: batched, with results that do not depend on the batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_STATE
from numpy.typing import NDArray
from torch import Tensor

from depi.datasets.recording.cameras import letterbox
from depi.datasets.recording.joints import from_degrees, to_degrees
from depi.evaluation.actors import Observation, camera_keys, check_cameras, check_dimensions, units
from depi.evaluation.environments import EnvTable
from depi.policies.choices import choices_of
from depi.policies.processors import preprocess

if TYPE_CHECKING:
    from lerobot.processor import PolicyProcessorPipeline

    from depi.policies import Pi0Policy


class Pi0Actor:
    """DePi's pi0.

    The noise of a chunk is drawn from the episode's seed and the chunk's number. Every call of the network
    has `batch` samples with the same cameras and prompt lengths, filled up by repeating one: other
    shapes round differently, and results would depend on which episodes are played together.

    Args:
        policy: in evaluation mode.
        processors: those before and after the policy; `fit` does not need them.
        cameras: the order of its camera slots, as `--dataset.cameras` of its training.
        convention: the joint convention that it was trained in; `native`: that of each rig.
        batch: samples per call; None: 8 on a GPU, 1 on a CPU.
        rename: environment's camera key -> policy's.
    """

    expert_steps = 0

    def __init__(
        self,
        policy: "Pi0Policy",
        processors: "tuple[PolicyProcessorPipeline | None, PolicyProcessorPipeline | None]",
        *,
        cameras: str = "name",
        convention: str = "degrees",
        batch: int | None = None,
        rename: dict[str, str] | None = None,
    ):
        self._policy, self._before, self._after = policy, *processors
        self._cameras, self._convention, self._rename = cameras, convention, rename or {}
        self._device = next(policy.parameters()).device
        self.batch = batch or (8 if self._device.type == "cuda" else 1)
        self._keys: dict[tuple[str, ...], dict[str, str | None]] = {}

    def fit(self, tables: Sequence[EnvTable]) -> None:
        """Raise a UserError where the policy does not fit the environments."""
        keys = list(self._policy.config.image_features)
        check_cameras(keys, tables, order=self._cameras, rename=self._rename)
        for table in {tuple(table.cameras): table for table in tables}.values():
            check_dimensions(self._policy.config, table)

    def act(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        """One chunk for each observation, its first `n_action_steps`."""
        assert self._before is not None
        assert self._after is not None
        batch = preprocess(self._batch(observations), self._before)
        parts: list[tuple[list[int], Tensor]] = []
        for rows in _alike(batch, list(self._policy.config.image_features)):
            for start in range(0, len(rows), self.batch):
                some = rows[start : start + self.batch]
                parts.append((some, self._sample(batch, some)))
        chunks = torch.empty(len(observations), *parts[0][1].shape[1:], device=parts[0][1].device)
        for some, actions in parts:
            chunks[some] = actions[: len(some)]
        with torch.inference_mode():
            played = self._after(chunks[:, : self._policy.config.n_action_steps]).float().cpu().numpy()
        return [
            to_degrees(actions, units(observation.table, self._convention))
            for actions, observation in zip(played, observations, strict=True)
        ]

    def _sample(self, batch: dict[str, Any], rows: list[int]) -> Tensor:
        filled = rows + [rows[0]] * (self.batch - len(rows))
        some: dict[str, Any] = {
            key: value[filled] if isinstance(value, Tensor) else [value[row] for row in filled]
            for key, value in batch.items()
            if isinstance(value, Tensor | list)
        }
        for key in self._policy.config.image_features:
            if bool(some[f"{key}_is_pad"].all()):
                del some[key]
        return self._policy.predict_action_chunk(some)

    def _batch(self, observations: Sequence[Observation]) -> dict[str, Any]:
        """Samples as training sees them: letterboxed uint8 images, absent cameras marked."""
        config = self._policy.config
        side, antialias = config.image_resolution[0], choices_of(config).image_antialias
        rows: dict[str, list[Tensor]] = {}
        for observation in observations:
            names = self._policy_keys(observation.table)
            pictures = {names[key]: image for key, image in observation.seen.images.items()}
            for key in config.image_features:
                image = pictures.get(key)
                pixels = (
                    torch.zeros(3, side, side, dtype=torch.uint8)
                    if image is None
                    else letterbox(torch.from_numpy(image).permute(2, 0, 1), side, antialias)
                )
                rows.setdefault(key, []).append(pixels)
                rows.setdefault(f"{key}_is_pad", []).append(torch.tensor(image is None))
            state = from_degrees(observation.seen.state, units(observation.table, self._convention))
            rows.setdefault(OBS_STATE, []).append(torch.from_numpy(state))
            shape = (choices_of(config).num_samples, config.chunk_size, config.max_action_dim)
            rows.setdefault("noise", []).append(torch.randn(shape, generator=generator(observation)))
        batch: dict[str, Any] = {key: torch.stack(values) for key, values in rows.items()}
        return {**batch, "task": [observation.seen.task for observation in observations]}

    def _policy_keys(self, table: EnvTable) -> dict[str, str | None]:
        cameras = tuple(table.cameras)
        if cameras not in self._keys:
            keys = list(self._policy.config.image_features)
            self._keys[cameras] = camera_keys(keys, cameras, order=self._cameras, rename=self._rename)
        return self._keys[cameras]


def generator(observation: Observation) -> torch.Generator:
    """Random numbers of one chunk of one episode."""
    seed = np.random.SeedSequence([observation.seed, observation.chunk]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) % 2**63)


def _alike(batch: dict[str, Any], cameras: Sequence[str]) -> list[list[int]]:
    """Groups of rows with the same cameras and the same number of words."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    absent = torch.stack([batch[f"{key}_is_pad"] for key in cameras], dim=1).tolist()
    words = batch[OBS_LANGUAGE_ATTENTION_MASK].sum(dim=1).tolist()
    for row, signature in enumerate(zip(map(tuple, absent), words, strict=True)):
        groups.setdefault(signature, []).append(row)
    return list(groups.values())
