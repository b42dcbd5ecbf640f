"""A run before its first step: data, policy, optimizer, and what a checkpoint brings back."""

import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.configs import PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.hub.client.api import go_offline
from depi.models.float8 import LEAST_CAPABILITY, takes_float8
from depi.policies import load_processors, make_policy, make_processors, relative_joints
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.policies.choices import choices_of
from depi.policies.factory import AnyPolicy, load_any_policy
from depi.policies.families import family_of
from depi.policies.letterbox_step import letterboxing
from depi.policies.processors import is_told_advantages
from depi.training.checkpoint import DATA_REPORT_NAME, load_trained_policy, load_training_state
from depi.training.config import TrainConfig
from depi.training.data import PolicyStream, dataset_sources, open_sources, resumed_sources, training_stream
from depi.training.device_defaults import settle
from depi.training.ema import MovingAverage
from depi.training.estimate import Estimate, estimate_run
from depi.training.fitting import full_memory_named, warn_if_too_large
from depi.training.folders import check_checkpoint, remove_leftovers
from depi.training.gpu.examination import first_contact
from depi.training.optimizer import make_optimizer, make_scheduler
from depi.training.run_state import Run
from depi.training.sharding import shard
from depi.training.validation import check_simulator

logger = logging.getLogger(__name__)

# Side of images in pixels, where policies that take any size see cameras of several.
LETTERBOXED = 224


def prepare(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Open the data, build or load the policy, and bring a resumed run to where it stopped."""
    assert config.policy is not None
    assert config.output_dir is not None
    torch.manual_seed(config.seed)
    settle(config, accelerator.device)
    check_float8(config.policy, accelerator.device)
    if config.dataset.offline:
        go_offline()
    # Read once: --keep_last removes the checkpoint that the run resumed from, sooner or later.
    began = read_json(config.resume_from / DATA_REPORT_NAME) if config.resume_from else None
    with accelerator.main_process_first():  # one process downloads, the others find the files
        dataset = open_dataset(config, began)
    check_same_data(accelerator, dataset)
    if began is not None:
        check_resumed_data(dataset, began["datasets"])
    first_contact(config, accelerator)
    with accelerator.main_process_first():  # likewise for checkpoints and the tokenizer
        if config.resume_from and accelerator.is_main_process:
            check_checkpoint(config.resume_from)
        facts = memory_facts(dataset, accelerator)
        warn_if_too_large(config, accelerator.device, **facts)
        with full_memory_named(config, **facts):
            policy = build_policy(config, dataset).to(accelerator.device)
        stream = training_stream(dataset, config, policy.config)
        processors = build_processors(config, policy, stream)
    held_out = None
    if config.dataset.eval_split and config.eval_freq:
        held_out = training_stream(dataset, config, policy.config, "eval")
    report = {**dataset.report(), "stream": stream.report()} if began is None else began
    if accelerator.is_main_process:
        check_simulator(config, policy, dataset, report)
        if began is not None and stream.conditioning is not None:
            stream.conditioning.check_same(began["stream"].get("advantage"))
        begin_output(config, report)
    model, average, optimizer, scheduler = make_trainable(config, policy, accelerator)
    run = Run(
        config, accelerator, dataset, stream, policy, model, processors, optimizer, scheduler, average, report
    )
    run.held_out = held_out
    if config.resume_from:
        run.step = load_training_state(
            config.resume_from, optimizer, scheduler, average, policy, run.global_batch
        )
        if run.step > config.steps:
            raise UserError(
                f"the run has taken {run.step} steps, more than --steps={config.steps}: ask for more, or go "
                "on from an earlier checkpoint with --config_path"
            )
        announce_schedule(run)
    if run.step < config.steps:
        describe(run)
        if family_of(policy.config).own:
            logger.info("%s", expected_memory(run).line())
    else:
        logger.info("the run has finished its %s steps: ask for more with --steps", run.step)
    return run


def check_float8(policy: Any, device: torch.device) -> None:
    """Raise a UserError where `--policy.float8` is asked for and cannot be done.

    A processor computes the same products, slowly: to see on small networks what the rounding does.
    """
    if not choices_of(policy).float8:
        return
    if policy.dtype != "bfloat16":
        raise UserError("--policy.float8=true goes with --policy.dtype=bfloat16, in which the rest computes")
    if not takes_float8(device):
        raise UserError(
            "--policy.float8=true needs an NVIDIA GPU of compute capability "
            f"{'.'.join(map(str, LEAST_CAPABILITY))} or higher (Ada, Hopper, Blackwell): leave it out"
        )


def make_trainable(
    config: TrainConfig, policy: AnyPolicy, accelerator: Accelerator
) -> tuple[torch.nn.Module, MovingAverage | None, torch.optim.Optimizer, LRScheduler]:
    """Prepare a policy on the accelerator's device for training steps, as the flags say.

    Returns:
        The policy as accelerate wraps it, the average of its weights, its optimizer and schedule.
    """
    policy.train()
    if getattr(policy.config, "dtype", None) == "bfloat16":
        hold_frozen_in_bfloat16(policy.model)
    if config.recompute:
        policy.model.set_recompute(config.recompute)
    if config.compile:
        policy.model.compile_layers()

    model: torch.nn.Module = policy
    if config.sharding == "none":
        model = accelerator.prepare(policy)
    else:
        shard(policy, accelerator, config.sharding, getattr(torch, config.reduce_dtype))
    average = None if config.ema.decay is None else MovingAverage(policy, config.ema.decay)
    optimizer = make_optimizer(policy)
    return model, average, optimizer, make_scheduler(policy, optimizer, config.steps)


def announce_schedule(run: Run) -> None:
    """Say where a resumed run's learning rate does not go on where it stopped, as with more --steps.

    LeRobot's presets fit the warm-up and decay into --steps where these are fewer.
    """
    scheduler = run.scheduler
    if not run.accelerator.is_main_process or not isinstance(scheduler, LambdaLR):
        return
    stopped, goes_on = scheduler.get_last_lr()[0], scheduler.base_lrs[0] * scheduler.lr_lambdas[0](run.step)
    if not math.isclose(stopped, goes_on, rel_tol=1e-3):
        logger.warning(
            "--steps=%s changes the schedule: the learning rate goes on at %.2g, it was %.2g at step %s",
            run.config.steps,
            goes_on,
            stopped,
            run.step,
        )


def begin_output(config: TrainConfig, report: dict[str, Any]) -> None:
    """Write the data report, now that all the user named is known to fit; a resumed run keeps its own."""
    assert config.output_dir is not None
    path = config.output_dir / DATA_REPORT_NAME
    if config.resume_from is None or not path.exists():
        write_json(path, report)
    remove_leftovers(config.checkpoints_dir)


def memory_facts(dataset: MultiLeRobotDataset, accelerator: Accelerator) -> dict[str, Any]:
    """What the data and the launch say about memory, for `fitting`."""
    images = max(len(entry["cameras"]) for entry in dataset.entries)
    return {
        "images": min(images, len(dataset.camera_slots)),
        "processes": accelerator.num_processes,
        "local": processes_here(),
    }


def expected_memory(run: Run) -> Estimate:
    """What the run will need on each device, before it has allocated most of it."""
    return estimate_run(
        run.config,
        run.policy.model,
        images=max(run.stream.samples.images),
        processes=run.accelerator.num_processes,
        local=processes_here(),
        cuda=run.accelerator.device.type == "cuda",
    )


def processes_here() -> int:
    """The processes of the run on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def open_dataset(config: TrainConfig, began: Mapping[str, Any] | None = None) -> MultiLeRobotDataset:
    """Open the datasets that the flags name or, on resume, exactly those that the run began with.

    Args:
        config: of the run.
        began: the data report of a run that is resumed.
    """
    assert config.policy is not None
    assert config.output_dir is not None
    sources = dataset_sources(config) if began is None else resumed_sources(config, began["datasets"])
    return open_sources(
        config,
        sources,
        began=None if began is None else began["datasets"],
        **sample_shape(config),
        action_freq=config.dataset.action_freq,
        prepared=config.dataset.prepared,
    )


def sample_shape(config: TrainConfig) -> dict[str, Any]:
    """The arguments of MultiLeRobotDataset that follow from the policy."""
    policy: Any = config.policy
    if family_of(policy).own:
        return {
            "chunk_size": policy.chunk_size,
            "image_size": policy.image_resolution[0],
            "antialias": choices_of(policy).image_antialias,
        }
    data = config.dataset
    seen, actions = policy.observation_delta_indices, policy.action_delta_indices
    return {
        "chunk_size": len(actions),
        "chunk_start": actions[0],
        "history": None if seen is None else len(seen),
        "image_size": data.image_size or (None if config.as_recorded else LETTERBOXED),
        "recorded_keys": config.as_recorded,
        "max_cameras": None if config.as_recorded else data.max_cameras,
    }


def check_same_data(accelerator: Accelerator, dataset: MultiLeRobotDataset) -> None:
    """Raise a UserError where the processes opened different data, as when the Hub failed one of them."""
    facts = [(entry["repo_id"], entry["revision"], entry["frames"]) for entry in dataset.entries]
    mine = torch.tensor([zlib.crc32(repr(facts).encode())], device=accelerator.device)
    if len(accelerator.gather(mine).unique()) > 1:
        raise UserError(
            f"the processes opened different data (process {accelerator.process_index}: "
            f"{dataset.num_datasets} datasets, {dataset.num_frames} frames): start the run again"
        )


def check_resumed_data(dataset: MultiLeRobotDataset, began: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError where a resumed run would go on with other data than it began with.

    Args:
        dataset: as it was opened now.
        began: the entries of the run's `data_report.json`.
    """
    advice = "resume with the data as it was, or start a new run"
    for before, now in zip_longest(began, dataset.entries):
        if now is None or (before is not None and before["repo_id"] != now["repo_id"]):
            reason = dataset.quarantined.get(before["repo_id"], "others came in its place")
            raise UserError(
                f"dataset {before['repo_id']}, with which the run began, is not there ({reason}): {advice}"
            )
        if before is None:
            raise UserError(f"dataset {now['repo_id']} was not there when the run began: {advice}")
        for key in ("revision", "episodes", "frames", "convention", "cameras"):
            if now[key] != before[key]:
                raise UserError(
                    f"dataset {now['repo_id']} has {_fact(key, now)}, the run began with "
                    f"{_fact(key, before)}: {advice}"
                )


def _fact(key: str, entry: Mapping[str, Any]) -> str:
    value = entry[key]
    return f"{value} {key}" if isinstance(value, int) else f"{key} {value}"


def build_policy(config: TrainConfig, dataset: MultiLeRobotDataset) -> AnyPolicy:
    """Return the policy of the last checkpoint, of `--policy.path`, or with random weights."""
    policy_config: PreTrainedConfig = config.policy
    if config.resume_from:
        return load_trained_policy(config, config.resume_from)
    if hasattr(policy_config, "action_feature_names"):
        policy_config.action_feature_names = list(dataset.action_names or []) or None
    if policy_config.pretrained_path is None:
        return make_policy(policy_config, dataset)
    policy = load_any_policy(
        policy_config.pretrained_path, config=policy_config, data=dataset, strict=config.strict
    )
    if config.advantage.mode == "off" and is_told_advantages(Path(policy_config.pretrained_path)):
        logger.warning(
            "the policy was trained with an advantage indicator in its prompts; --advantage.mode=off leaves "
            "it out, and the new one will not know it"
        )
    if config.peft is not None:
        add_adapters(policy.model, config.peft)
    return policy


def build_processors(
    config: TrainConfig, policy: AnyPolicy, stream: PolicyStream
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """Return new processors, which normalise by what the stream is drawn from, or the last checkpoint's."""
    if config.resume_from:
        return load_processors(config.resume_from, device=policy.config.device)
    indicator = config.advantage.mode != "off"
    stats = stream.samples.stats(relative_joints(policy.config))
    base = policy.config.pretrained_path
    pre, post = make_processors(
        policy.config, stats, indicator=indicator, base=None if base is None else Path(base)
    )
    side = stream.samples.dataset.image_size
    if side is not None and not family_of(policy.config).own:
        pre = letterboxing(pre, side, list(policy.config.image_features))
    return pre, post


def describe(run: Run) -> None:
    """Log what is about to be trained on what."""
    config, data = run.config, run.dataset
    parameters = sum(parameter.numel() for parameter in run.policy.parameters())
    logger.info(
        "training %s (%.1f M parameters) on %s: %s datasets, %s episodes, %s frames; steps %s to %s, "
        "each of %s samples (batch size %s, processes %s, accumulation %s); output in %s, %s",
        run.policy.config.type,
        parameters / 1e6,
        run.accelerator.device,
        data.num_datasets,
        data.num_episodes,
        data.num_frames,
        run.step + 1,
        config.steps,
        run.global_batch,
        config.batch_size,
        run.accelerator.num_processes,
        config.gradient_accumulation_steps,
        config.output_dir,
        "with all checkpoints"
        if config.keep_last is None
        else f"with the newest {config.keep_last} checkpoints (--keep_last=null keeps all)",
    )
    bad = [
        (entry["repo_id"], episode, reason)
        for entry in data.entries
        for episode, reason in entry["bad_episodes"].items()
    ]
    if bad:
        logger.warning(
            "bad episodes left out: %d, such as episode %s of %s (%s); %s names all, and "
            "--dataset.use_bad_episodes=true trains on them",
            len(bad),
            bad[0][1],
            bad[0][0],
            bad[0][2],
            DATA_REPORT_NAME,
        )
