"""Steps that would spoil the weights are skipped, counted, and traced back to frames and datasets.

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
ROOM = 256
"""Frames of skipped steps that a process keeps until the next reading; further ones are only counted."""


@dataclass(frozen=True)
class Skipped:
    """Steps skipped since the run began, and whose samples were in those since it was started or resumed."""

    steps: int
    # Samples by repo id, most first: those whose own loss was bad or, if no sample's was, the one with the
    # largest loss of each step and process.
    samples: dict[str, int]
    # Those of the samples since the last reading, at most ROOM per process: (step, index of the frame).
    frames: list[tuple[int, int]]

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

        # Rows of (step, index of the frame, whether its own loss was bad); the last is for what has no room.
        self.frames = torch.zeros(ROOM + 1, 3, dtype=torch.int64, device=accelerator.device)
        self.kept = torch.zeros((), dtype=torch.int64, device=accelerator.device)

    def judge(
        self,
        losses: torch.Tensor,
        norm: torch.Tensor,
        dataset_index: torch.Tensor,
        index: torch.Tensor,
        step: int,
    ) -> torch.Tensor:
        """Whether the step is bad: 1.0 or 0.0, a float32 scalar on the device.

        Args:
            losses: of this process's samples in all micro-batches of the step, [B].
            norm: of the step's gradient over all processes, a scalar.
            dataset_index, index: of the samples, int64 [B].
            step: its number, from 1 on.
        """
        loss = self.accelerator.reduce(losses.mean(), "mean")
        bad = ~(self._fine(loss, self.max_loss) & self._fine(norm, self.max_norm))
        self.steps += bad
        suspects = torch.stack([~self._fine(losses, self.max_loss), losses == losses.max()]) & bad
        for row, samples in zip(self.samples, suspects, strict=True):
            row.index_add_(0, dataset_index, samples.long())
        self._keep(suspects, index, step)
        return bad.float()

    def _keep(self, suspects: torch.Tensor, index: torch.Tensor, step: int) -> None:
        """Add rows to `frames` for the suspects, bool [2, B], without waiting for their number."""
        named = suspects.any(dim=0)
        place = torch.where(named, self.kept + named.cumsum(0) - 1, ROOM).clamp(max=ROOM)
        self.frames[place] = torch.stack([torch.full_like(index, step), index, suspects[0].long()], dim=1)
        self.kept += named.sum()

    @staticmethod
    def _fine(values: torch.Tensor, largest: float) -> torch.Tensor:
        return values.isfinite() & (values <= largest)

    def read(self) -> Skipped:
        """What was skipped, over all processes, which must all call this; waits for the device."""
        steps = int(self.steps)
        if not steps:
            return Skipped(0, {}, [])
        own, largest = self.accelerator.reduce(self.samples.clone(), "sum").tolist()
        counts = own if any(own) else largest
        ranked = sorted(zip(self.repo_ids, counts, strict=True), key=lambda pair: -pair[1])
        samples = {repo_id: count for repo_id, count in ranked if count}
        return Skipped(steps, samples, self._read_frames())

    def _read_frames(self) -> list[tuple[int, int]]:
        """The kept frames of all processes, which are then forgotten: of each step those to blame first."""
        used = torch.arange(ROOM, device=self.kept.device) < self.kept
        rows = self.accelerator.gather(self.frames[:ROOM] * used[:, None]).tolist()
        self.kept.zero_()
        blamed = {step for step, _, own in rows if own}
        return sorted((step, index) for step, index, own in rows if step and (own or step not in blamed))


def steps_skipped_before(optimizer: torch.optim.Optimizer, step: int) -> int:
    """How many of a resumed run's `step` steps were skipped: those that Adam's own count of steps lacks."""
    taken = max((int(state["step"]) for state in optimizer.state.values()), default=step)
    return step - taken
