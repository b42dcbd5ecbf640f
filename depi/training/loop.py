"""The training loop: step, log, save, stop cleanly."""

import contextlib
import logging
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch.distributed.tensor import DTensor

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.log import start_logging
from depi.policies import Pi0Policy
from depi.training.card import model_card
from depi.training.checkpoint import DATA_REPORT_NAME, save_checkpoint
from depi.training.config import TrainConfig
from depi.training.data import Collate, batches
from depi.training.meter import Meter
from depi.training.metrics import MetricsWriter
from depi.training.run import Run, prepare
from depi.training.sharding import gather, synchronize_gradients

logger = logging.getLogger(__name__)

# With several processes, agreeing on a stop costs a collective: they ask each other this often.
STOP_CHECK_STEPS = 10


def train(config: TrainConfig) -> int:
    """Train as configured and return the exit status.

    0 when the run reached its last step; 128 + signal when SIGINT or SIGTERM stopped it, after the
    current step was finished and saved.
    """
    assert config.policy is not None
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)
    accelerator = Accelerator(cpu=config.policy.device == "cpu", kwargs_handlers=[ddp])
    start_logging(main_process=accelerator.is_main_process)
    if config.sharding != "none" and accelerator.num_processes == 1:
        raise UserError(
            f"--sharding={config.sharding} needs several processes: accelerate launch --num_processes=8 ..."
        )
    run = prepare(config, accelerator)
    with stop_signals() as stop:
        status = fit(run, stop)
    accelerator.end_training()
    return status


def fit(run: Run, stop: list[int]) -> int:
    """Step until the end or a signal; save on `save_freq`, at the end, and when stopped."""
    config, accelerator = run.config, run.accelerator
    writer = MetricsWriter(config, run.step) if accelerator.is_main_process else None
    meter = Meter(run)
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
        while run.step < config.steps and not status:
            train_step(run, stream, meter)
            status = agree_to_stop(run, stop)
            finished = status or run.step == config.steps
            if run.step % config.log_freq == 0 or finished:
                metrics = meter.read()
                if writer:
                    writer.write(metrics)
            if finished or (config.save_freq > 0 and run.step % config.save_freq == 0):
                save(run)
            if writer:
                writer.advance()
    finally:
        if writer:
            writer.close()
    return status


def train_step(run: Run, stream: Iterator[dict[str, Any]], meter: Meter) -> None:
    """Take one optimizer step over `gradient_accumulation_steps` micro-batches."""
    accelerator, count = run.accelerator, run.config.gradient_accumulation_steps
    for micro_step in range(count):
        with meter.waiting_for_data():
            batch = send_to_device(next(stream), accelerator.device, non_blocking=True)
        with gradients_added_up(run, micro_step == count - 1):
            with run.policy.autocast():
                losses, _ = run.model(batch, reduction="none")
            loss = losses.mean() / count
            loss.backward()
        meter.add_loss(loss.detach())
    meter.add_grad_norm(clip_gradients(run.policy))
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    run.scheduler.step()
    run.step += 1


@contextlib.contextmanager
def gradients_added_up(run: Run, wanted: bool) -> Iterator[None]:
    """Add gradients up over the processes in the body's backward pass, or leave that to a later one."""
    synchronize_gradients(run.policy.model, wanted)
    with contextlib.nullcontext() if wanted else run.accelerator.no_sync(run.model):
        yield


def clip_gradients(policy: Pi0Policy) -> torch.Tensor:
    """Clip the norm of all gradients together, and return what it was, a scalar tensor."""
    norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def save(run: Run) -> None:
    """Write a checkpoint from the main process while the others wait."""
    weights, optimizer_state = gather(run.policy.state_dict()), gather(run.optimizer.state_dict())
    if run.accelerator.is_main_process:
        report = count_replaced(run)
        folder = save_checkpoint(
            run.config,
            run.step,
            run.policy,
            weights,
            run.processors,
            optimizer_state,
            run.scheduler,
            model_card(run.config, run.policy.config, report, run.step),
            run.global_batch,
        )
        logger.info("saved %s", folder)
    run.accelerator.wait_for_everyone()


def count_replaced(run: Run) -> dict[str, Any]:
    """Bring the data report up to date with the samples that could not be decoded, and return it."""
    assert run.config.output_dir is not None
    path = run.config.output_dir / DATA_REPORT_NAME
    report = {**read_json(path), "decode_failures": run.dataset.report()["decode_failures"]}
    write_json(path, report)
    return report


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
    """Collect SIGINT and SIGTERM instead of dying of them; a second one kills at once."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        logger.warning(
            "%s: finishing the step and saving; once more to stop at once", signal.Signals(number).name
        )
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.SIG_DFL)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
