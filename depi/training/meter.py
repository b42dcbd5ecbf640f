"""Measures training steps without waiting for the device."""

import contextlib
import time
from collections.abc import Iterator

import torch

from depi.training.metrics import StepMetrics
from depi.training.run import Run


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
