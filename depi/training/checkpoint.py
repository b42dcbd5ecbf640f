"""Checkpoints in LeRobot's layout, complete or absent; see `folders` for where things are."""

import shutil
from pathlib import Path
from typing import Any

import torch
from lerobot.common.train_utils import get_step_identifier
from lerobot.optim import load_optimizer_state_dict, load_scheduler_state, save_optimizer_state
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import PRETRAINED_MODEL_DIR, SCHEDULER_STATE, TRAINING_STATE_DIR
from torch.optim.lr_scheduler import LRScheduler

from depi.errors import UserError
from depi.files import write_json, write_text
from depi.policies import load_config
from depi.policies import save_checkpoint as save_policy
from depi.policies.adapters import add_adapters, load_adapters
from depi.policies.checkpoint import WEIGHTS
from depi.policies.choices import OF_THE_MACHINE
from depi.policies.factory import AnyPolicy, load_any_policy, read_policy
from depi.training.card import model_card
from depi.training.config import TRAIN_CONFIG_NAME, TrainConfig, config_to_json
from depi.training.ema import MovingAverage
from depi.training.folders import (
    ADAPTER_DIR,
    TRAINING_STEP_NAME,
    checkpoint_part,
    put_in_place,
    read_training_step,
    write_manifest,
)
from depi.training.metrics import last_metrics
from depi.training.sharding import distribute
from depi.training.snapshot import Snapshot

DATA_REPORT_NAME = "data_report.json"
# What `pretrained_model` may hold; the other one, if there is one, lies in `training_state` by this name.
RAW, EMA = "raw", "ema"


def write_checkpoint(
    config: TrainConfig,
    snapshot: Snapshot,
    policy: AnyPolicy,
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
) -> Path:
    """Write the checkpoint of a snapshot beside the others, let `last` point to it, and return its folder.

    Everything is written to a temporary folder, synced and renamed, so a crash leaves the earlier checkpoints
    and `last` as they were; a failure removes the temporary folder. Of `policy` only what never changes is
    read: configuration, dimensions and frozen parameters.
    """
    final = config.checkpoints_dir / get_step_identifier(snapshot.step, config.steps)
    temporary = config.checkpoints_dir / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pretrained, state = temporary / PRETRAINED_MODEL_DIR, temporary / TRAINING_STATE_DIR
    try:
        for folder in (pretrained, state):
            folder.mkdir(parents=True)
        _write_model(config, snapshot, policy, processors, temporary)
        write_text(pretrained / TRAIN_CONFIG_NAME, config_to_json(config))
        metrics = last_metrics(config, snapshot.step)
        card = model_card(config, policy.config, snapshot.report, snapshot.step, metrics)
        write_text(pretrained / "README.md", card)
        write_json(pretrained / DATA_REPORT_NAME, snapshot.report)
        save_optimizer_state(None, state, snapshot.optimizer)
        write_json(state / SCHEDULER_STATE, snapshot.scheduler)
        exported = EMA if snapshot.average and config.ema.export else RAW
        step = {"step": snapshot.step, "global_batch": snapshot.global_batch, "exported": exported}
        write_json(state / TRAINING_STEP_NAME, step)
        write_manifest(temporary)
        put_in_place(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _write_model(
    config: TrainConfig,
    snapshot: Snapshot,
    policy: AnyPolicy,
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
    folder: Path,
) -> None:
    exported, other, name = snapshot.weights, snapshot.average, EMA
    if other and config.ema.export:
        exported, other, name = other, exported, RAW
    save_policy(folder / PRETRAINED_MODEL_DIR, policy, *processors, weights=exported)
    if other:
        policy.save_weights(folder / TRAINING_STATE_DIR / f"{name}.safetensors", other)
    if config.peft is not None:
        (folder / ADAPTER_DIR).mkdir()
        save_policy(folder / ADAPTER_DIR, policy, *processors, weights=snapshot.weights, adapters=True)


def weights_file(pretrained: Path, kind: str) -> Path:
    """Return where a checkpoint keeps its `raw` weights or their `ema`.

    Raises:
        UserError: the run kept no average.
    """
    state = checkpoint_part(pretrained, TRAINING_STATE_DIR)
    exported = RAW
    if (state / TRAINING_STEP_NAME).exists():
        exported = read_training_step(pretrained).get("exported", RAW)
    path = pretrained / WEIGHTS if kind == exported else state / f"{kind}.safetensors"
    if kind == EMA and not path.exists():
        raise UserError(
            f"{pretrained.parent} holds no average of the weights: the run was without --ema.decay"
        )
    return path


def load_training_state(
    pretrained: Path,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    average: MovingAverage | None,
    policy: AnyPolicy,
    global_batch: int,
) -> int:
    """Restore optimizer, schedule and average from a checkpoint and return its step.

    An average that the checkpoint lacks begins as the weights.

    Raises:
        UserError: a file is missing or damaged, or the run saw another number of samples per step.
    """
    saved = read_training_step(pretrained)
    if saved["global_batch"] != global_batch:
        raise UserError(
            f"the run to resume sees {saved['global_batch']} samples per step, this command {global_batch}: "
            "keep batch_size x processes x gradient_accumulation_steps"
        )
    state = checkpoint_part(pretrained, TRAINING_STATE_DIR)
    try:
        _load_optimizer(optimizer, state)
        load_scheduler_state(scheduler, state)
    except Exception as error:  # torn JSON, truncated safetensors, shapes of another model: all mean the same
        raise UserError(f"the training state in {state} is damaged: {error}") from error
    if average is not None and (saved.get("exported") == EMA or (state / f"{EMA}.safetensors").exists()):
        average.load(weights_file(pretrained, EMA), policy)
    return saved["step"]


def _load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    saved = load_optimizer_state_dict(folder)
    state: dict[int, dict[str, Any]] = {int(number): values for number, values in saved["state"].items()}
    optimizer.load_state_dict({"state": distribute(state, optimizer), "param_groups": saved["param_groups"]})


def load_trained_policy(config: TrainConfig, pretrained: Path) -> AnyPolicy:
    """Return the policy of a checkpoint, to go on training it.

    Adapters are put on the same base weights again, which a merged checkpoint does not hold exactly.

    Raises:
        UserError: there is no checkpoint, it is damaged, or the base weights are gone or others.
    """
    assert config.policy is not None
    device = config.policy.device
    saved = load_config(pretrained)
    for name in OF_THE_MACHINE:
        if hasattr(config.policy, name):
            setattr(saved, name, getattr(config.policy, name))
    if config.peft is None:
        saved.device = device or saved.device
        return read_policy(saved, weights_file(pretrained, RAW))
    base = config.policy.pretrained_path
    assert base is not None
    policy = load_any_policy(base, config=saved, device=device)
    add_adapters(policy.model, config.peft)
    load_adapters(policy.model, checkpoint_part(pretrained, ADAPTER_DIR))
    return policy
