"""Shared by `depi advantage` and `depi value plot`: the value network, and frames as it reads them."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import yaml

from depi.datasets.recording.cameras import ORDERS, camera_order
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.files import read_json
from depi.policies import load_config, resolve_checkpoint
from depi.policies.configuration_value import ValueConfig
from depi.recap.advantage_config import ValueNetworkConfig
from depi.recap.frames import FrameReader
from depi.training.checkpoint import DATA_REPORT_NAME
from depi.training.command_line import check_data_source
from depi.training.config import TRAIN_CONFIG_NAME, DatasetConfig, TrainConfig
from depi.training.data import dataset_sources, open_sources, read_annotated

logger = logging.getLogger(__name__)

DEFAULTS = {field.name: field.default for field in fields(DatasetConfig)}
# These flags decide what a network sees of a frame: they are taken from its training.
AS_TRAINED = ("cameras", "joint_convention", "max_cameras", "use_annotated_tasks")
# Flags that leave frames out of training. Here all frames are judged, also of a single episode.
FOR_TRAINING = ("exclude", "only_successes", "min_episode_frames", "trim_idle", "eval_split")


def given_flags(args: Sequence[str]) -> set[str]:
    """The flags that a command line or the file of its `--config_path` sets, as in {"dataset.cameras"}.

    Args:
        args: which have been parsed without an error.
    """
    names, file = set(), ""
    for arg, follower in zip_longest(args, args[1:], fillvalue=""):
        name, equals, value = arg.partition("=")
        names.add(name.removeprefix("--").replace("-", "_"))
        if name in ("--config_path", "--config-path"):
            file = value if equals else follower
    content = yaml.safe_load(Path(file).read_text("utf-8")) if file else {}
    return names | {f"dataset.{name}" for name in content.get("dataset") or {}}


def load_value_config(policy: ValueNetworkConfig) -> tuple[Path, ValueConfig]:
    """The folder of the checkpoint, and its configuration.

    Raises:
        UserError: there is none, it is of another type, or the device does not exist.
    """
    if not policy.path:
        raise UserError("name the value network with --policy.path=FOLDER_OR_REPO")
    check_device(policy.device)
    folder = resolve_checkpoint(policy.path, policy.revision)
    value = load_config(folder)
    if not isinstance(value, ValueConfig):
        raise UserError(
            f"--policy.path={policy.path} is of type {value.type}, not a value network: train one "
            "with --policy.type=value"
        )
    return folder, value


def check_device(wanted: str | None) -> None:
    """Raise a UserError unless this machine has the device; None passes."""
    if wanted is None:
        return
    try:
        device = torch.device(wanted)
        if device.type == "cuda":  # not initialised here: the processes that compute are started later
            there = (device.index or 0) < torch.cuda.device_count()
        else:
            there = torch.zeros(1, device=device).item() == 0
    except (RuntimeError, AssertionError, NotImplementedError):
        there = False
    if not there:
        gpus = torch.cuda.device_count()
        raise UserError(f"--policy.device={wanted} does not exist: this machine has cpu and {gpus} GPUs")


def as_trained(data: DatasetConfig, checkpoint: Path, given: Collection[str] = ()) -> DatasetConfig:
    """The flags of the data, with those of AS_TRAINED taken from the network's training.

    Args:
        data: flags and defaults.
        checkpoint: its `train_config.json`, where it has one, holds the flags of its training.
        given: see `given_flags`; what differs from the default counts as given too.

    Raises:
        UserError: a given flag differs from the training's, or the training's settings are not valid.
    """
    path = checkpoint / TRAIN_CONFIG_NAME
    saved = read_json(path) if path.exists() else {}
    saved = saved.get("dataset") if isinstance(saved, dict) else None
    taken: dict[str, Any] = {}
    for name in AS_TRAINED:
        if not isinstance(saved, dict) or name not in saved:
            continue
        trained, wanted = saved[name], getattr(data, name)
        if type(trained) is not type(DEFAULTS[name]):
            raise UserError(f"{path}: dataset.{name} is {trained!r}")
        if name == "cameras" and trained in ORDERS and ORDERS[trained].shuffled:
            continue  # trained with cameras in any order
        if wanted != trained:
            if wanted != DEFAULTS[name] or f"dataset.{name}" in given:
                raise UserError(
                    f"--dataset.{name}={_typed(wanted)}, but the value network in {checkpoint} was trained "
                    f"with {_typed(trained)}: leave the flag out"
                )
            taken[name] = trained
    if taken:
        shown = " ".join(f"--dataset.{name}={_typed(value)}" for name, value in taken.items())
        logger.info("frames are read as in the network's training: %s", shown)
    try:
        return replace(data, **taken)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def check_units(data: DatasetConfig, dataset: MultiLeRobotDataset, checkpoint: Path) -> None:
    """Refuse recorded numbers (`native`) in a convention that no dataset of the network's training had.

    In all other conventions numbers are converted. Nothing is known of a network without a data report.

    Raises:
        UserError: there are such.
    """
    path = checkpoint / DATA_REPORT_NAME
    if data.joint_convention != "native" or not path.exists():
        return
    try:
        trained = {str(entry["convention"]) for entry in read_json(path)["datasets"]}
    except (KeyError, TypeError):
        raise UserError(f"{path} names no conventions of its datasets") from None
    for entry in dataset.entries:
        if entry["convention"] not in trained:
            raise UserError(
                f"{entry['repo_id']} has its joints in {entry['convention']}, the datasets of the value "
                f"network's training in {', '.join(sorted(trained))}, and with joint_convention=native "
                "nothing is converted: train the network with --dataset.joint_convention=degrees"
            )


def _typed(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_frames(
    data: DatasetConfig, num_datasets: int | None, image_size: int, checkpoint: Path
) -> FrameReader:
    """Open the frames that the flags name; see `as_trained` for the flags of the data.

    Args:
        data: flags of the data.
        num_datasets: how many of the list, where it names them.
        image_size: pixels of a side, as the network takes them.
        checkpoint: of the network that will see them.

    Raises:
        UserError: the data is not named once, cannot be opened, or a flag is not valid here; or see
            `check_units`.
    """
    if camera_order(data.cameras).shuffled:
        others = [name for name, other in ORDERS.items() if not other.shuffled]
        raise UserError(f"--dataset.cameras={data.cameras} is none of {', '.join(others)}, and no list")
    for name in FOR_TRAINING:
        if getattr(data, name) != DEFAULTS[name]:
            raise UserError(f"--dataset.{name} is for training, here all frames are judged: leave it out")
    training = TrainConfig(dataset=replace(data, use_bad_episodes=True), num_datasets=num_datasets)
    check_data_source(training)
    sources = dataset_sources(training)
    dataset = open_sources(training, sources, chunk_size=1, image_size=image_size, prepared=data.prepared)
    check_units(data, dataset, checkpoint)
    return FrameReader(dataset, data.cameras, read_annotated(dataset, data), data.use_annotated_tasks)
