"""The training loop: prepare, step, log, save, stop cleanly, resume exactly."""

import contextlib
import logging
import signal
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from lerobot.configs import PreTrainedConfig
from lerobot.processor import PolicyProcessorPipeline
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LRScheduler

from depi.datasets.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.hub.client import go_offline
from depi.log import start_logging
from depi.policies import Pi0Policy, load_policy, make_policy, make_processors
from depi.policies.adapters import add_adapters, hold_frozen_in_bfloat16
from depi.training.card import model_card
from depi.training.checkpoint import (
    DATA_REPORT_NAME,
    load_trained_policy,
    load_training_state,
    save_checkpoint,
)
from depi.training.config import TrainConfig
from depi.training.data import Collate, FlowStream, batches, dataset_sources, training_stream
from depi.training.estimate import Estimate, estimate_policy
from depi.training.metrics import MetricsWriter, StepMetrics
from depi.training.optimizer import make_optimizer
from depi.training.sharding import gather, shard, synchronize_gradients

logger = logging.getLogger(__name__)

# With several processes, agreeing on a stop costs a collective: they ask each other this often.
STOP_CHECK_STEPS = 10


@dataclass
class Run:
    """Everything that a training step touches."""

    config: TrainConfig
    accelerator: Accelerator
    dataset: MultiLeRobotDataset
    stream: FlowStream
    policy: Pi0Policy
    model: torch.nn.Module  # the policy as accelerate wraps it, for several processes
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    step: int

    @property
    def global_batch(self) -> int:
        """Samples that one optimizer step sees, over processes and micro-batches."""
        config = self.config
        return config.batch_size * self.accelerator.num_processes * config.gradient_accumulation_steps


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


def prepare(config: TrainConfig, accelerator: Accelerator) -> Run:
    """Open the data, build or load the policy, and bring a resumed run to where it stopped."""
    assert config.policy is not None
    assert config.output_dir is not None
    torch.manual_seed(config.seed)
    if config.dataset.offline:
        go_offline()
    with accelerator.main_process_first():  # one process downloads, the others find the files
        dataset = open_dataset(config)
    check_same_data(accelerator, dataset)
    with accelerator.main_process_first():  # likewise for checkpoints and the tokenizer
        policy = build_policy(config, dataset).to(accelerator.device)
        processors = make_processors(policy.config, dataset.stats)
    stream = training_stream(dataset, config, policy.config)
    # Nothing is written before all that the user named is known to fit; a resumed run keeps its report.
    if accelerator.is_main_process and not config.resume:
        report = {**dataset.report(), "stream": stream.samples.report()}
        write_json(config.output_dir / DATA_REPORT_NAME, report)
    policy.train()
    if policy.config.dtype == "bfloat16":
        hold_frozen_in_bfloat16(policy.model)
    if config.recompute:
        policy.model.set_recompute(config.recompute)
    if config.compile:
        policy.model.compile_layers()

    if config.sharding == "none":
        model = accelerator.prepare(policy)
    else:
        shard(policy, accelerator, config.sharding)
        model = policy
    optimizer = make_optimizer(policy)
    scheduler = policy.config.get_scheduler_preset().build(optimizer, config.steps)
    run = Run(config, accelerator, dataset, stream, policy, model, processors, optimizer, scheduler, step=0)
    if config.resume:
        run.step = load_training_state(config, optimizer, scheduler, run.global_batch)
        if run.step >= config.steps:
            raise UserError(f"the run has finished its {run.step} steps: ask for more with --steps")
    describe(run)
    logger.info("%s", expected_memory(run).line())
    return run


def expected_memory(run: Run) -> Estimate:
    """What the run will need on each device, before it has allocated most of it."""
    config = run.config
    return estimate_policy(
        run.policy.config,
        batch_size=config.batch_size,
        recompute=config.recompute or None,
        peft=config.peft,
        num_processes=run.accelerator.num_processes,
        sharding=config.sharding,
        cuda=run.accelerator.device.type == "cuda",
    )


def open_dataset(config: TrainConfig) -> MultiLeRobotDataset:
    """Open the datasets that the flags name or, on resume, exactly those that the run began with."""
    assert config.policy is not None
    assert config.output_dir is not None
    data = config.dataset
    if config.resume:
        used = read_json(config.output_dir / DATA_REPORT_NAME)["datasets"]
        sources = [DatasetSource(entry["repo_id"], entry["revision"], data.root) for entry in used]
    else:
        sources = dataset_sources(config)
    return MultiLeRobotDataset(
        sources,
        chunk_size=config.policy.chunk_size,
        image_size=config.policy.image_resolution[0],
        max_cameras=data.max_cameras,
        action_freq=data.action_freq,
        joint_convention=data.joint_convention,
        max_bad_fraction=data.max_bad_fraction,
        max_bad_datasets=data.max_bad_datasets,
        episodes=data.episodes,
        offline=data.offline,
        prepared=data.prepared,
    )


def check_same_data(accelerator: Accelerator, dataset: MultiLeRobotDataset) -> None:
    """Raise a UserError where the processes opened different data, as when the Hub failed one of them."""
    facts = [(entry["repo_id"], entry["revision"], entry["frames"]) for entry in dataset.entries]
    mine = torch.tensor([zlib.crc32(repr(facts).encode())], device=accelerator.device)
    if len(accelerator.gather(mine).unique()) > 1:
        raise UserError(
            f"the processes opened different data (process {accelerator.process_index}: "
            f"{dataset.num_datasets} datasets, {dataset.num_frames} frames): start the run again"
        )


def build_policy(config: TrainConfig, dataset: MultiLeRobotDataset) -> Pi0Policy:
    """Return the policy of the last checkpoint, of `--policy.path`, or with random weights."""
    policy_config: PreTrainedConfig = config.policy
    if config.resume:
        return load_trained_policy(config)
    policy_config.action_feature_names = list(dataset.action_names or []) or None
    if policy_config.pretrained_path is None:
        return make_policy(policy_config, dataset)
    policy = load_policy(
        policy_config.pretrained_path, config=policy_config, data=dataset, strict=config.strict
    )
    if config.peft is not None:
        add_adapters(policy.model, config.peft)
    return policy


def describe(run: Run) -> None:
    """Log what is about to be trained on what."""
    config, data = run.config, run.dataset
    parameters = sum(parameter.numel() for parameter in run.policy.parameters())
    logger.info(
        "training %s (%.1f M parameters) on %s: %s datasets, %s episodes, %s frames; steps %s to %s, "
        "each of %s samples (batch size %s, processes %s, accumulation %s); output in %s",
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
    )


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


def train_step(run: Run, stream: Iterator[dict[str, Any]], meter: "Meter") -> None:
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


class Meter:
    """Sums losses and norms on the device, so that the host waits for it at log steps only."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._reset()

    def _reset(self) -> None:
        self.sums = torch.zeros(2, device=self.run.accelerator.device)
        self.first_step = self.run.step
        self.data_s = 0.0
        self.started = time.perf_counter()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        started = time.perf_counter()
        yield
        self.data_s += time.perf_counter() - started

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a micro-batch's share of the step's loss, a scalar tensor."""
        self.sums[0] += loss

    def add_grad_norm(self, norm: torch.Tensor) -> None:
        """Add the gradient norm of a step, a scalar tensor."""
        self.sums[1] += norm

    def read(self) -> StepMetrics:
        """Return the averages since the last call, over all processes, and begin anew."""
        run = self.run
        loss, grad_norm = run.accelerator.reduce(self.sums, "mean").tolist()
        replaced = sum(sum(counts.values()) for counts in run.dataset.decode_failures().values())
        replaced_anywhere = torch.tensor(replaced, device=run.accelerator.device)
        steps = run.step - self.first_step
        elapsed = time.perf_counter() - self.started
        samples = run.step * run.global_batch
        metrics = StepMetrics(
            step=run.step,
            samples=samples,
            episodes=samples * run.dataset.num_episodes / run.dataset.num_frames,
            epochs=samples / run.stream.samples.mixture.num_frames,
            loss=loss / steps,
            grad_norm=grad_norm / steps,
            lr=run.scheduler.get_last_lr()[0],
            update_s=(elapsed - self.data_s) / steps,
            data_s=self.data_s / steps,
            samples_per_s=steps * run.global_batch / elapsed,
            replaced=int(run.accelerator.reduce(replaced_anywhere, "sum")),
        )
        self._reset()
        return metrics


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
