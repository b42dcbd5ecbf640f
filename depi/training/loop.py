"""The training loop: step, log, save, stop cleanly."""

import contextlib
import logging
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    send_to_device,
)

from depi.errors import UserError
from depi.log import start_logging
from depi.policies.factory import AnyPolicy
from depi.policies.families import family_of
from depi.training.bad_steps import BadSteps, steps_skipped_before
from depi.training.config import TrainConfig
from depi.training.data import STOP_SIGNALS, Collate, batches, lost_workers_named
from depi.training.fitting import full_memory_named
from depi.training.meter import Meter
from depi.training.metrics import MetricsWriter, is_measured
from depi.training.optimizer import clipped_step
from depi.training.profiling import StepProfiler
from depi.training.run import memory_facts, prepare
from depi.training.run_state import Run
from depi.training.saving import Saver
from depi.training.sharding import synchronize_gradients, whole_norm
from depi.training.validation import curves, describe, evaluate, is_due, what_is_measured

logger = logging.getLogger(__name__)

# With several processes, agreeing on a stop costs a collective operation: it is done every so many steps.
STOP_CHECK_STEPS = 10
# Signals within this many seconds of the first one are the same request to stop.
SAME_STOP_SECONDS = 1.0
# How DDP adds gradients up, by --reduce_dtype.
COMM_HOOKS = {"float32": DDPCommunicationHookType.NO, "bfloat16": DDPCommunicationHookType.BF16}
# While the main process rolls out, or downloads, the others wait in a collective.
LONGEST_WAIT = timedelta(hours=6)


def train(config: TrainConfig) -> int:
    """Train as configured and return the exit status.

    0 when the run reached its last step; 128 + signal when SIGINT or SIGTERM stopped it, after the
    current step was finished and saved.
    """
    assert config.policy is not None
    ddp = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True,
        broadcast_buffers=False,
        comm_hook=COMM_HOOKS[config.reduce_dtype],
        # LeRobot's policies may leave parts out of a step, such as vqbet one half of it.
        find_unused_parameters=not family_of(config.policy).own,
    )
    group = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    accelerator = Accelerator(cpu=config.policy.device == "cpu", kwargs_handlers=[ddp, group])
    start_logging(main_process=accelerator.is_main_process)
    check_launch(accelerator)
    if config.sharding != "none" and accelerator.num_processes == 1:
        raise UserError(
            f"--sharding={config.sharding} needs several processes: accelerate launch --num_processes=8 ..."
        )
    run = prepare(config, accelerator)
    facts = memory_facts(run.dataset, accelerator)
    with stop_signals() as stop, lost_workers_named(), full_memory_named(config, **facts):
        status = fit(run, stop)
    accelerator.wait_for_everyone()
    # Gloo's threads need the interpreter to free their last tensors; ending them while they wait for it would
    # block for ever.
    time.sleep(0.1)
    accelerator.end_training()
    return status


def check_launch(accelerator: Accelerator) -> None:
    """Raise a UserError where accelerate's own configuration would change what the flags say.

    It would wrap the policy in another precision, sharding or compilation than DePi's.
    """
    state = accelerator.state
    asked = {
        "mixed_precision": ("no", state.mixed_precision, "use --policy.dtype=bfloat16"),
        "dynamo_backend": ("NO", state.dynamo_plugin.backend.value, "use --compile=true"),
    }
    for name, (none, value, instead) in asked.items():
        if value != none:
            raise UserError(
                f"accelerate is configured with {name} {value}: {instead}, and launch with --{name}=no"
            )
    if state.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
        DistributedType.MEGATRON_LM,
    ):
        raise UserError(
            f"accelerate is configured with {state.distributed_type.value}: use --sharding=full, and launch "
            "with --multi_gpu"
        )


@dataclass
class Monitors:
    """What measures, checks and saves a run while it takes steps."""

    meter: Meter
    bad_steps: BadSteps
    profiler: StepProfiler
    saver: Saver
    skipped: int  # steps, as last read from the device

    @classmethod
    def of(cls, run: Run) -> Self:
        """The monitors of a run, from its next step on."""
        skipped = steps_skipped_before(run.optimizer, run.step)
        accelerator = run.accelerator
        return cls(
            Meter(run),
            BadSteps(run.config, accelerator, run.dataset.repo_ids, skipped),
            StepProfiler(run.config, accelerator.device, run.step, wanted=accelerator.is_main_process),
            Saver(run),
            skipped,
        )


def fit(run: Run, stop: list[int]) -> int:
    """Step until the end or a signal; save on `save_freq`, at the end, and when stopped."""
    config, accelerator = run.config, run.accelerator
    writer = MetricsWriter(config, run.step) if accelerator.is_main_process else None
    monitors = Monitors.of(run)
    stream = batches(
        run.stream,
        config,
        Collate(run.processors[0], run.policy.config, ragged=config.ragged),
        start_step=run.step,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        pin=accelerator.device.type == "cuda",
    )
    status = 0
    try:
        make_up(run, monitors, writer, stop)
        while run.step < config.steps and not status:
            with monitors.profiler.step(run.step + 1):
                train_step(run, stream, monitors)
            monitors.saver.after_step()
            status = agree_to_stop(run, stop)
            finished = status or run.step == config.steps
            if run.step % config.log_freq == 0 or finished:
                log(run, monitors, writer)
            if finished or (config.save_freq > 0 and run.step % config.save_freq == 0):
                monitors.saver.save()
            # After saving, so that a process that ends during the evaluation loses no step.
            if not status and is_due(run):
                with monitors.meter.not_training():
                    measure(run, writer, stop)
            if writer:
                writer.advance(run.step)
        monitors.profiler.finish(run.step)
        monitors.saver.finish(stopped=status != 0)
    finally:
        monitors.saver.close()
        if writer:
            writer.close()
    return status


def make_up(run: Run, monitors: Monitors, writer: MetricsWriter | None, stop: list[int]) -> None:
    """Do what a run that goes on did not come to after its last save: evaluate and, at its end, publish."""
    config = run.config
    saved = config.resume_from
    if saved is None or config.output_dir is None:
        return
    if saved.parent.parent.resolve() != config.checkpoints_dir.resolve():
        return  # a run of its own, from a checkpoint of another one
    missing = [is_due(run) and writer is not None and not is_measured(config, run.step)]
    if broadcast_object_list(missing)[0]:
        with monitors.meter.not_training():
            measure(run, writer, stop)
    if run.step == config.steps:
        monitors.saver.publish_again(saved)


def log(run: Run, monitors: Monitors, writer: MetricsWriter | None) -> None:
    """Write metrics since the last log line.

    Raises:
        UserError: too many steps were skipped; the run is saved first.
    """
    skipped = monitors.bad_steps.read()
    metrics = monitors.meter.read(skipped.steps)
    if writer:
        writer.write(metrics, [{"step": step, **run.dataset.origin(index)} for step, index in skipped.frames])
    if skipped.steps > monitors.skipped:
        logger.warning(
            "skipped %s steps of %s so far; samples in question: %s",
            skipped.steps,
            run.step,
            skipped.offenders(),
        )
    monitors.skipped = skipped.steps
    if skipped.steps > run.config.max_bad_steps:
        monitors.saver.save()
        raise UserError(
            f"{skipped.steps} of {run.step} steps were skipped for their loss or gradient, more than "
            f"--max_bad_steps={run.config.max_bad_steps}: look at the datasets {skipped.offenders()}"
        )


def measure(run: Run, writer: MetricsWriter | None, stop: list[int]) -> None:
    """Evaluate the policy, and write what was measured."""
    logger.info("step %d: measuring %s", run.step, what_is_measured(run))
    values = evaluate(run, stop)
    if writer and values:
        logger.info("%s", describe(run, values))
        writer.write_evaluation(run.step, values, curves(run, values))


def train_step(run: Run, stream: Iterator[dict[str, Any]], monitors: Monitors) -> None:
    """Take one optimizer step over `gradient_accumulation_steps` micro-batches.

    A bad step is taken too, for position and schedule, but leaves weights and moments as they were.
    """
    count, phase = run.config.gradient_accumulation_steps, monitors.profiler.phase
    all_losses, owners, frames = [], [], []
    for micro_step in range(count):
        with monitors.meter.waiting_for_data(), phase("data"):
            batch = next(stream)
            monitors.meter.add_batch(batch)
            batch = send_to_device(batch, run.accelerator.device, non_blocking=True)
        with gradients_added_up(run, micro_step == count - 1):
            with phase("forward"), run.policy.autocast():
                losses, details = run.model(batch, reduction="none")
            with phase("backward"):
                (losses.mean() / count).backward()
        all_losses.append(losses.detach().float())
        owners.append(batch["dataset_index"])
        frames.append(batch["index"])
        monitors.meter.add_details(details)
    with phase("optimizer"):
        losses = torch.cat(all_losses)
        norm = gradient_norm(run.policy)
        bad = monitors.bad_steps.judge(losses, norm, torch.cat(owners), torch.cat(frames), run.step + 1)
        monitors.meter.add_step(losses.mean(), norm, bad)
        clipped_step(run.optimizer, norm, run.policy.config.get_optimizer_preset().grad_clip_norm, bad)
        if run.average is not None:
            run.average.update()
        run.optimizer.zero_grad(set_to_none=True)
    run.scheduler.step()
    run.step += 1


@contextlib.contextmanager
def gradients_added_up(run: Run, wanted: bool) -> Iterator[None]:
    """Add gradients up over the processes in the body's backward pass, or leave that to a later one."""
    synchronize_gradients(run.policy.model, wanted)
    with contextlib.nullcontext() if wanted else run.accelerator.no_sync(run.model):
        yield


def gradient_norm(policy: AnyPolicy) -> torch.Tensor:
    """The norm of all gradients together, a scalar tensor."""
    return whole_norm([parameter.grad for parameter in policy.parameters() if parameter.grad is not None])


def agree_to_stop(run: Run, stop: list[int]) -> int:
    """Return 128 + the signal that any process has received, else 0; the same on every process."""
    received = 128 + stop[0] if stop else 0
    if run.accelerator.num_processes == 1:
        return received
    if run.step % STOP_CHECK_STEPS:
        return 0
    mine = torch.tensor([float(received)], device=run.accelerator.device)
    return int(run.accelerator.gather(mine).max().item())


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; another one, after a second or more, kills.

    A request to stop arrives twice where a scheduler signals all processes and the launcher forwards it.
    """
    received: list[int] = []
    first = 0.0

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not received:
            received.append(number)
            first = time.monotonic()
            name = signal.Signals(number).name
            logger.warning("%s: finishing the step and saving; once more to stop at once", name)
        elif time.monotonic() - first > SAME_STOP_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    before = {number: signal.signal(number, receive) for number in STOP_SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
