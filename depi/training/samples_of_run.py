"""What a step of a run trained on, and one frame as the network sees it.

The stream of samples is a pure function of seed and position, so that a run's configuration, its data report
and the datasets say everything: nothing is written while a run trains.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.processor import TokenizerProcessorStep
from lerobot.utils.constants import (
    ACTION,
    CHECKPOINTS_DIR,
    OBS_LANGUAGE_ATTENTION_MASK,
    OBS_LANGUAGE_TOKENS,
    OBS_STATE,
    PRETRAINED_MODEL_DIR,
)
from PIL import Image, ImageDraw
from torchvision.utils import make_grid

from depi.datasets.recording.cameras import letterbox
from depi.errors import UserError
from depi.files import atomic_write, read_json
from depi.policies import load_processors
from depi.policies.indicator import INDICATORS, indicator_of, with_indicator
from depi.progress import tracked
from depi.training.checkpoint import DATA_REPORT_NAME
from depi.training.command_line import parse_train_config
from depi.training.config import TrainConfig
from depi.training.data import Collate, PolicyStream, batch_sampler, training_stream
from depi.training.folders import last_checkpoint, list_checkpoints, read_training_step
from depi.training.run import check_resumed_data, open_dataset
from depi.training.samples_config import SamplesConfig

_GAP = 4


@dataclass(frozen=True)
class Drawn:
    """One sample of a step.

    process, micro_batch: who drew it, both from 0
    position: in the stream of samples
    dataset, revision, episode, frame: of the frame that was read, be it in place of one that cannot be
    slots: the camera in each slot, None where there is none
    task: the text, without indicator
    indicator: what the prompt says of the advantage; None where it says nothing
    """

    process: int
    micro_batch: int
    position: int
    dataset: str
    revision: str | None
    episode: int
    frame: int
    slots: tuple[str | None, ...]
    task: str
    indicator: str | None


@dataclass(frozen=True)
class PastRun:
    """A run as it was when it trained a step: its data, open again.

    folder: of the checkpoint that says so, its `pretrained_model`
    processes: that trained
    """

    folder: Path
    config: TrainConfig
    stream: PolicyStream
    processes: int


def open_run(folder: Path, step: int | None) -> PastRun:
    """Open a run's data as resuming does.

    Args:
        folder: of the run.
        step: that is asked for: the first checkpoint from there on was written by who trained it.

    Raises:
        UserError: the run has no checkpoint or fewer steps, or its data are not what they were.
    """
    pretrained = last_checkpoint(folder / CHECKPOINTS_DIR)
    later = [path for path in list_checkpoints(folder / CHECKPOINTS_DIR) if int(path.name) >= (step or 0)]
    if step is not None and later:
        pretrained = later[0] / PRETRAINED_MODEL_DIR
    quiet = ("--push_to_hub=false", "--save_checkpoint_to_hub=false")
    config = parse_train_config(["--resume=true", f"--config_path={pretrained}", *quiet])
    if step is not None and step > config.steps:
        raise UserError(f"--step={step} is beyond the run {folder}, which has {config.steps} steps")
    assert config.policy is not None
    began = read_json(pretrained / DATA_REPORT_NAME)
    dataset = open_dataset(config, began)
    check_resumed_data(dataset, began["datasets"])
    stream = training_stream(dataset, config, config.policy)
    if stream.conditioning is not None:
        stream.conditioning.check_same(began["stream"].get("advantage"))
    of_process = config.batch_size * config.gradient_accumulation_steps
    return PastRun(pretrained, config, stream, read_training_step(pretrained)["global_batch"] // of_process)


def step_positions(run: PastRun, step: int) -> Iterator[tuple[int, int, int]]:
    """Process, micro-batch and position of each sample of a step, in the order in which processes train."""
    for process in range(run.processes):
        batches = batch_sampler(run.stream, run.config, range(step - 1, step), process, run.processes)
        for micro_batch, positions in enumerate(batches):
            yield from ((process, micro_batch, position) for position in positions)


def samples_of_step(
    run: PastRun, config: SamplesConfig, most: int
) -> tuple[list[Drawn], list[dict[str, Any]]]:
    """The samples of a step, those of the dataset, episode and frame that are named; `most` with images.

    Raises:
        UserError: there is none of these, or the run has no such dataset.
    """
    assert config.step is not None
    if config.dataset is not None:
        _dataset_number(run, config.dataset)
    positions = list(step_positions(run, config.step))
    wanted = {name: getattr(config, name) for name in ("dataset", "episode", "frame")}
    wanted = {name: value for name, value in wanted.items() if value is not None}
    drawn: list[Drawn] = []
    samples: list[dict[str, Any]] = []
    for process, micro_batch, position in tracked(positions, "Reading samples", len(positions)):
        sample = run.stream[position]
        one = describe(run, process, micro_batch, position, sample)
        if all(getattr(one, name) == value for name, value in wanted.items()):
            drawn.append(one)
            samples += [sample][: most - len(samples)]
    if not drawn:
        named = ", ".join(f"{name} {value}" for name, value in wanted.items())
        raise UserError(f"step {config.step} did not train on {named}: leave that out to see what it did")
    return drawn, samples


def one_sample(run: PastRun, config: SamplesConfig) -> tuple[list[Drawn], list[dict[str, Any]]]:
    """The sample of one frame, as drawn at position 0.

    Raises:
        UserError: the run has no such frame, does not train on it, or cannot decode it.
    """
    assert config.dataset is not None
    assert config.frame is not None
    data, number = run.stream.samples.dataset, _dataset_number(run, config.dataset)
    episodes = np.flatnonzero((data.episode_dataset == number) & (data.episode_recorded == config.episode))
    name = f"episode {config.episode} of {config.dataset}"
    if not len(episodes):
        raise UserError(f"the run has no {name}: it is not recorded, or was left out as bad")
    start, end = data.episode_start[episodes[0] : episodes[0] + 2].tolist()
    if not 0 <= config.frame < end - start:
        raise UserError(f"{name} has the frames 0 to {end - start - 1}, not {config.frame}")
    index = start + config.frame
    if index not in run.stream.samples.mixture:
        raise UserError(f"the run does not train on frame {config.frame} of {name}: its flags leave it out")
    sample = run.stream.sample(0, index)
    if int(sample["index"]) != index:
        raise UserError(f"frame {config.frame} of {name} cannot be decoded: the run replaces it by another")
    return [describe(run, 0, 0, 0, sample)], [sample]


def _dataset_number(run: PastRun, repo_id: str) -> int:
    repo_ids = run.stream.samples.dataset.repo_ids
    if repo_id not in repo_ids:
        named = ", ".join(repo_ids[:5]) + (", ..." if len(repo_ids) > 5 else "")
        raise UserError(f"{repo_id} is none of the run's {len(repo_ids)} datasets: {named}")
    return repo_ids.index(repo_id)


def describe(run: PastRun, process: int, micro_batch: int, position: int, sample: dict[str, Any]) -> Drawn:
    """What a sample shows, and who drew it."""
    stream, index = run.stream.samples, int(sample["index"])
    cameras = stream.camera_keys[int(sample["dataset_index"])]
    in_slots = zip(stream.slots, stream.arrangement(position, index), strict=True)
    slots = tuple(
        None if camera is None or sample[f"{slot}_is_pad"] else cameras[camera] for slot, camera in in_slots
    )
    told = None if run.stream.conditioning is None else indicator_of(sample["task"])
    return Drawn(
        process,
        micro_batch,
        position,
        **stream.dataset.origin(index),
        slots=slots,
        task=sample["task"] if told is None else with_indicator(sample["task"], None),
        indicator=None if told is None else INDICATORS[told],
    )


def as_the_network_sees_it(run: PastRun, sample: dict[str, Any]) -> dict[str, Any]:
    """The prompt, and state and actions in their units and normalised."""
    pre, _ = load_processors(run.folder, device="cpu")
    assert run.config.policy is not None
    collate = Collate(pre, run.config.policy, ragged=False)
    batch = collate([sample])
    seen: dict[str, Any] = {}
    for step in collate.pre.steps:
        if isinstance(step, TokenizerProcessorStep):  # act and others read no text
            words = batch[OBS_LANGUAGE_TOKENS][0][batch[OBS_LANGUAGE_ATTENTION_MASK][0].bool()]
            seen["prompt"] = step.input_tokenizer.decode(words)
    for name, recorded, normalised in (
        ("state", sample[OBS_STATE], batch[OBS_STATE][0]),
        ("first_action", sample[ACTION][0], batch[ACTION][0, 0]),
        ("last_action", sample[ACTION][-1], batch[ACTION][0, -1]),
    ):
        seen[name] = {"recorded": _numbers(recorded), "normalised": _numbers(normalised)}
    return {**seen, "actions_outside_the_episode": int(sample["action_is_pad"].sum())}


def _numbers(values: torch.Tensor) -> list[Any]:
    return values.double().round(decimals=4).tolist()


def draw(path: Path, samples: Sequence[dict[str, Any]], slots: Sequence[str], side: int | None) -> None:
    """Write a contact sheet: each sample's images side by side, black where there is no camera.

    Args:
        path: the PNG, written whole or not at all.
        samples: at least one; several are numbered.
        slots: keys of their images, uint8 [3, H, W], or [N, 3, H, W] for N observations, all drawn.
        side: of the squares into which images are fitted; by default that of the largest image.
    """
    images = [
        [image for slot in slots for image in sample[slot].view(-1, *sample[slot].shape[-3:])]
        for sample in samples
    ]
    side = side or max(max(image.shape) for image in images[0])
    strips = torch.stack([torch.cat([_fitted(image, side) for image in row], dim=2) for row in images])
    columns = max(1, round((len(strips) / len(images[0])) ** 0.5))
    grid = make_grid(strips, nrow=columns, padding=_GAP, pad_value=255)
    sheet = Image.fromarray(grid.permute(1, 2, 0).numpy())
    pen, (height, width) = ImageDraw.Draw(sheet), strips.shape[-2:]
    for number in range(len(strips) if len(strips) > 1 else 0):
        row, column = divmod(number, columns)
        corner = (_GAP + column * (width + _GAP), _GAP + row * (height + _GAP))
        pen.rectangle(pen.textbbox(corner, f" {number} "), fill="black")
        pen.text(corner, f" {number} ", fill="white")
    with atomic_write(path) as temporary:
        sheet.save(temporary, format="PNG")


def _fitted(image: torch.Tensor, side: int) -> torch.Tensor:
    return image if image.shape[1:] == (side, side) else letterbox(image, side, antialias=True)
