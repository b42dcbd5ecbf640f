"""Checkpoints in LeRobot's layout, complete or absent:

RUN/checkpoints/<step>/pretrained_model/   config, weights, processors, train config, data report
RUN/checkpoints/<step>/training_state/     optimizer, schedule, step
RUN/checkpoints/<step>/adapter/            with --peft: LeRobot's layout for adapters alone
RUN/checkpoints/last                       link to the newest
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lerobot.common.train_utils import get_step_identifier
from lerobot.optim import (
    load_optimizer_state_dict,
    load_scheduler_state,
    save_optimizer_state,
    save_scheduler_state,
)
from lerobot.processor import PolicyProcessorPipeline
from lerobot.utils.constants import LAST_CHECKPOINT_LINK, PRETRAINED_MODEL_DIR, TRAINING_STATE_DIR
from torch.optim.lr_scheduler import LRScheduler

from depi.errors import UserError
from depi.files import read_json, write_json, write_text
from depi.policies import Pi0Policy, load_config, load_policy
from depi.policies import save_checkpoint as save_policy
from depi.policies.adapters import add_adapters, load_adapters
from depi.policies.factory import save_adapter_checkpoint
from depi.training.config import TRAIN_CONFIG_NAME, TrainConfig, config_to_json
from depi.training.sharding import distribute

DATA_REPORT_NAME = "data_report.json"
TRAINING_STEP_NAME = "training_step.json"
ADAPTER_DIR = "adapter"


def save_checkpoint(
    config: TrainConfig,
    step: int,
    policy: Pi0Policy,
    weights: dict[str, torch.Tensor],
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline],
    optimizer_state: dict[str, Any],
    scheduler: LRScheduler,
    model_card: str,
    global_batch: int,
) -> Path:
    """Write the checkpoint of `step` beside the others and let `last` point to it.

    `weights` and `optimizer_state` are the whole state dicts of policy and optimizer; see `gather`.
    Everything is written to a temporary folder, synced and renamed, so a crash leaves the earlier
    checkpoints and `last` as they were. Returns the checkpoint's folder.
    """
    assert config.output_dir is not None
    final = config.checkpoints_dir / get_step_identifier(step, config.steps)
    temporary = config.checkpoints_dir / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    pretrained = temporary / PRETRAINED_MODEL_DIR
    state = temporary / TRAINING_STATE_DIR
    for folder in (pretrained, state):
        folder.mkdir(parents=True)

    save_policy(pretrained, policy, *processors, weights=weights)
    if config.peft is not None:
        (temporary / ADAPTER_DIR).mkdir()
        save_adapter_checkpoint(temporary / ADAPTER_DIR, policy, *processors)
    write_text(pretrained / TRAIN_CONFIG_NAME, config_to_json(config))
    write_text(pretrained / "README.md", model_card)
    shutil.copyfile(config.output_dir / DATA_REPORT_NAME, pretrained / DATA_REPORT_NAME)
    save_optimizer_state(None, state, optimizer_state)
    save_scheduler_state(scheduler, state)
    write_json(state / TRAINING_STEP_NAME, {"step": step, "global_batch": global_batch})

    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    _point_last_to(final)
    return final


def load_training_state(
    config: TrainConfig, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, global_batch: int
) -> int:
    """Restore optimizer and schedule from the run's last checkpoint and return its step.

    Raises:
        UserError: a file is missing or damaged, or the run saw another number of samples per step.
    """
    state = last_checkpoint(config) / TRAINING_STATE_DIR
    saved = read_json(state / TRAINING_STEP_NAME)
    if saved["global_batch"] != global_batch:
        raise UserError(
            f"the run to resume sees {saved['global_batch']} samples per step, this command {global_batch}: "
            "keep batch_size x processes x gradient_accumulation_steps"
        )
    try:
        _load_optimizer(optimizer, state)
        load_scheduler_state(scheduler, state)
    except Exception as error:  # torn JSON, truncated safetensors, shapes of another model: all mean the same
        raise UserError(f"the training state in {state} is damaged: {error}") from error
    return saved["step"]


def _load_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    saved = load_optimizer_state_dict(folder)
    state = distribute({int(number): values for number, values in saved["state"].items()}, optimizer)
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})


def load_trained_policy(config: TrainConfig) -> Pi0Policy:
    """Return the policy of the run's last checkpoint, to go on training it.

    Adapters are put on the same base weights again, which a merged checkpoint does not hold exactly.

    Raises:
        UserError: there is no checkpoint, it is damaged, or the base weights are gone or others.
    """
    assert config.policy is not None
    last = last_checkpoint(config)
    if config.peft is None:
        return load_policy(last / PRETRAINED_MODEL_DIR, device=config.policy.device)
    base = config.policy.pretrained_path
    assert base is not None
    policy = load_policy(base, config=load_config(last / PRETRAINED_MODEL_DIR), device=config.policy.device)
    add_adapters(policy.model, config.peft)
    load_adapters(policy.model, last / ADAPTER_DIR)
    return policy


def last_checkpoint(config: TrainConfig) -> Path:
    """Return the folder of the run's newest checkpoint.

    Raises:
        UserError: the run has none yet.
    """
    last = config.checkpoints_dir / LAST_CHECKPOINT_LINK
    if not (last / PRETRAINED_MODEL_DIR).is_dir():
        raise UserError(f"{config.output_dir} has no complete checkpoint to resume from")
    return last.resolve()


def _point_last_to(checkpoint: Path) -> None:
    link = checkpoint.parent / LAST_CHECKPOINT_LINK
    temporary = checkpoint.parent / f".{LAST_CHECKPOINT_LINK}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.name)
    os.replace(temporary, link)
    _sync_path(checkpoint.parent)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _sync_path(path)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
