"""Steps that would spoil the weights are skipped, counted, and traced back to datasets.

A step is bad when the loss or the gradient norm is not finite, or above a threshold. That is decided on the
device, and handed to the fused optimizer as its `found_inf`: weights, moments and step counts then stay as
they are, to the bit, and the host learns of it when it next logs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from depi.training.config import TrainConfig

NAMED = 5


@dataclass(frozen=True)
class Skipped:
    """Steps skipped since the run began, and whose samples were in those since it was started or resumed."""

    steps: int
    # Samples by repo id, most first: those whose own loss was bad or, if no sample's was, the one with the
    # largest loss of each step and process.
    samples: dict[str, int]

    def offenders(self) -> str:
        """The datasets to look at, for a sentence."""
        named = [f"{repo_id} ({count})" for repo_id, count in list(self.samples.items())[:NAMED]]
        more = len(self.samples) - len(named)
        return ", ".join(named) + (f" and {more} others" if more else "")


class BadSteps:
    """Judges steps on the device; every process comes to the same judgement.

    Args:
        config: has the thresholds.
        accelerator: of this process.
        repo_ids: of the datasets, by number.
        steps: that the run has skipped already.
    """

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, repo_ids: Sequence[str], steps: int = 0
    ) -> None:
        infinite = float("inf")
        self.accelerator, self.repo_ids = accelerator, repo_ids
        self.max_loss = infinite if config.loss_threshold is None else config.loss_threshold
        self.max_norm = infinite if config.grad_norm_threshold is None else config.grad_norm_threshold
        self.steps = torch.tensor(steps, device=accelerator.device)
        # Samples of bad loss, and those of the largest loss, in skipped steps of this process.
        self.samples = torch.zeros(2, len(repo_ids), dtype=torch.int64, device=accelerator.device)

    def judge(self, losses: torch.Tensor, norm: torch.Tensor, dataset_index: torch.Tensor) -> torch.Tensor:
        """Whether the step is bad: 1.0 or 0.0, a float32 scalar on the device.

        Args:
            losses: of this process's samples in all micro-batches of the step, [B].
            norm: of the step's gradient over all processes, a scalar.
            dataset_index: of the samples, int64 [B].
        """
        loss = self.accelerator.reduce(losses.mean(), "mean")
        bad = ~(self._fine(loss, self.max_loss) & self._fine(norm, self.max_norm))
        self.steps += bad
        suspects = torch.stack([~self._fine(losses, self.max_loss), losses == losses.max()])
        for row, samples in zip(self.samples, suspects & bad, strict=True):
            row.index_add_(0, dataset_index, samples.long())
        return bad.float()

    @staticmethod
    def _fine(values: torch.Tensor, largest: float) -> torch.Tensor:
        return values.isfinite() & (values <= largest)

    def read(self) -> Skipped:
        """What was skipped, over all processes, which must all call this; waits for the device."""
        steps = int(self.steps)
        if not steps:
            return Skipped(0, {})
        own, largest = self.accelerator.reduce(self.samples.clone(), "sum").tolist()
        counts = own if any(own) else largest
        ranked = sorted(zip(self.repo_ids, counts, strict=True), key=lambda pair: -pair[1])
        return Skipped(steps, {repo_id: count for repo_id, count in ranked if count})


def steps_skipped_before(optimizer: torch.optim.Optimizer, step: int) -> int:
    """How many of a resumed run's `step` steps were skipped: those that Adam's own count of steps lacks."""
    taken = max((int(state["step"]) for state in optimizer.state.values()), default=step)
    return step - taken
