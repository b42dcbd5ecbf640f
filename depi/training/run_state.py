"""The parts of a run, as the loop, the evaluations and the checkpoints share them."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from lerobot.processor import PolicyProcessorPipeline
from torch.optim.lr_scheduler import LRScheduler

from depi.datasets.union.multi import MultiLeRobotDataset
from depi.policies.factory import AnyPolicy
from depi.training.config import TrainConfig
from depi.training.data import PolicyStream
from depi.training.ema import MovingAverage


@dataclass
class Run:
    """Everything that a training step touches."""

    config: TrainConfig
    accelerator: Accelerator
    dataset: MultiLeRobotDataset
    stream: PolicyStream
    policy: AnyPolicy
    model: torch.nn.Module  # the policy as accelerate wraps it, for several processes
    processors: tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler
    average: MovingAverage | None
    report: dict[str, Any]  # the data report as the run began or, on resume, as its checkpoint has it
    step: int = 0
    held_out: PolicyStream | None = None  # samples that evaluations measure the loss on

    @property
    def global_batch(self) -> int:
        """Samples that one optimizer step sees, over processes and micro-batches."""
        config = self.config
        return config.batch_size * self.accelerator.num_processes * config.gradient_accumulation_steps

    @property
    def samples(self) -> int:
        """Samples seen since the run began."""
        return self.step * self.global_batch

    @property
    def episodes(self) -> float:
        """The same in episodes of average length."""
        return self.samples * self.dataset.num_episodes / self.dataset.num_frames

    @property
    def epochs(self) -> float:
        """The same in passes over the frames that are drawn."""
        return self.samples / self.stream.samples.mixture.num_frames
