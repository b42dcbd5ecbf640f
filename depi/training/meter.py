"""Measures training steps without waiting for the device."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from depi.policies.families import family_of
from depi.training.metrics import StepMetrics
from depi.training.run_state import Run
from depi.training.utilisation import FlopsCounter, memory_gb, peak_flops


class Meter:
    """Sums losses and norms on the device, so that the host waits for it at log steps only."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.peak = peak_flops(run.accelerator.device)
        whole = all(parameter.requires_grad for parameter in run.policy.parameters())
        counted = whole and family_of(run.policy.config).own
        self.flops = FlopsCounter(run.policy) if self.peak and counted else None
        self.reset()

    def reset(self) -> None:
        """Start again with the next step."""
        self.sums = torch.zeros(3, device=self.run.accelerator.device)
        self.details: dict[str, torch.Tensor] = {}
        self.first_step = self.run.step
        self.data_s = 0.0
        self.other_s = 0.0
        if self.flops:
            self.flops.reset()
        self.started = time.perf_counter()

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Count the time of the body as waiting for data."""
        started = time.perf_counter()
        yield
        self.data_s += time.perf_counter() - started

    @contextlib.contextmanager
    def not_training(self) -> Iterator[None]:
        """Do not count the time of the body at all."""
        started = time.perf_counter()
        yield
        self.other_s += time.perf_counter() - started

    def add_batch(self, batch: dict[str, Any]) -> None:
        """Count a micro-batch while it is still on the CPU."""
        if self.flops:
            self.flops.add(batch)

    def add_step(self, loss: torch.Tensor, norm: torch.Tensor, bad: torch.Tensor) -> None:
        """Add a step: its loss in this process, its gradient norm, and 1.0 if it was skipped; scalars."""
        taken = bad == 0
        self.sums += torch.stack([loss.where(taken, 0.0), norm.where(taken, 0.0), taken.float()])

    def add_details(self, details: Mapping[str, torch.Tensor]) -> None:
        """Add the scalars that a policy returns for a micro-batch beside its loss; on the device."""
        for name, value in details.items():
            if value.ndim == 0:
                self.details[name] = self.details.get(name, 0.0) + value.detach().float()

    def _read_details(self, steps: int) -> dict[str, float]:
        """Means over micro-batches and processes, by name."""
        if not self.details:
            return {}
        batches = steps * self.run.config.gradient_accumulation_steps
        sums = torch.stack(list(self.details.values())) / batches
        return dict(zip(self.details, self.run.accelerator.reduce(sums, "mean").tolist(), strict=True))

    def read(self, skipped: int) -> StepMetrics:
        """Return the averages since the last call, over all processes, and start again.

        Args:
            skipped: steps skipped since the run began.
        """
        run = self.run
        loss, norm, taken = run.accelerator.reduce(self.sums, "mean").tolist()
        elapsed = time.perf_counter() - self.started - self.other_s
        steps = run.step - self.first_step
        replaced, memory, flops = self._of_all_processes()
        metrics = StepMetrics(
            step=run.step,
            samples=run.samples,
            episodes=run.episodes,
            epochs=run.epochs,
            loss=loss / taken if taken else None,
            grad_norm=norm / taken if taken else None,
            lr=run.scheduler.get_last_lr()[0],
            update_s=(elapsed - self.data_s) / steps,
            data_s=self.data_s / steps,
            samples_per_s=steps * run.global_batch / elapsed,
            memory_gb=memory,
            mfu=flops / (self.peak * elapsed) if self.flops and self.peak else None,
            replaced=replaced,
            skipped=skipped,
            details=self._read_details(steps),
        )
        self.reset()
        return metrics

    def _of_all_processes(self) -> tuple[int, float, float]:
        """The total of replaced samples, the largest memory in GB, and the mean operations of a process."""
        run = self.run
        replaced = sum(sum(counts.values()) for counts in run.dataset.decode_failures().values())
        memory = memory_gb(run.accelerator.device)
        mine = [replaced, memory, self.flops.total() if self.flops else 0.0]
        every = run.accelerator.gather(torch.tensor([mine], device=run.accelerator.device))
        return int(every[:, 0].sum()), float(every[:, 1].max()), float(every[:, 2].mean())
