"""What the numbers behind a robot's action do to its sampled chunks: see `depi.models.sampling`.

    python benchmarks/numbers_behind.py --runs="[RUN, RUN]"
    python benchmarks/numbers_behind.py --runs="[RUN]" --tune=RUN

The first samples chunks on frames of each run's own training, as LeRobot does and as DePi does, and prints
their squared errors. The second begins with a network that has learned these numbers too, as openpi publishes
them: it trains one from nothing, with all numbers in the loss, on the data of `runs`, goes on with the data
of `tune` and the policy's own loss, and prints what becomes of them. `benchmarks/README.md` keeps what was
measured.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from lerobot.utils.constants import ACTION
from rich.console import Console
from rich.table import Table
from torch import Tensor

from depi.errors import UserError
from depi.flags import parse_flags
from depi.models.flow import sample_noise, sample_time
from depi.models.sampling import sample_actions
from depi.policies import load_policy, load_processors
from depi.policies.batches import pad_last
from depi.progress import tracked
from depi.training.data import Collate
from depi.training.samples_of_run import PastRun, open_run

BATCH = 16
COLUMNS = ("one step", "ten, as LeRobot", "ten, as DePi", "behind, as LeRobot; true: 0")


@dataclass
class BehindConfig:
    """Squared errors of sampled chunks with and without the true velocity behind the robot's numbers."""

    # Folders of runs of pi0 or pi0.5.
    runs: list[Path] = field(default_factory=list)
    # Another run, whose data a network that knows these numbers is fine-tuned on.
    tune: Path | None = None
    steps: int = 2000
    tune_steps: int = 1000
    lr: float = 1e-3
    tune_lr: float = 1e-4
    # Batches of 16 frames to measure on, which come after those of the training in the stream of samples.
    batches: int = 6

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError('no runs: name folders of runs with --runs="[RUN, RUN]"')


def batches(run: PastRun, policy: Any, first: int, count: int, *, ragged: bool) -> Iterator[dict[str, Any]]:
    """So many processed batches of a run's stream of samples, from a position on."""
    collate = Collate(load_processors(run.folder)[0], policy.config, ragged=ragged)
    for begin in range(first, first + count * BATCH, BATCH):
        yield collate([run.stream[position] for position in range(begin, begin + BATCH)])


@torch.no_grad()
def errors(config: BehindConfig, run: PastRun, policy: Any) -> dict[str, float]:
    """Of chunks on frames of a run: mean squared errors, normalised, and where the rest ends (rms)."""
    policy.eval()
    torch.manual_seed(0)
    size, found = policy.config.action_feature.shape[0], []
    for batch in batches(run, policy, run.config.steps * BATCH, config.batches, ragged=False):
        observation, target = policy.observe(batch), batch[ACTION]
        counts = ~batch["action_is_pad"][..., None].expand_as(target)
        noise = sample_noise((BATCH, policy.config.chunk_size, policy.config.max_action_dim), target.device)
        guessed = sample_actions(policy.model, observation, noise)
        chunks = (
            sample_actions(policy.model, observation, noise, num_steps=1),
            guessed,
            sample_actions(policy.model, observation, noise, action_dim=size),
        )
        squares = [(chunk[..., :size] - target)[counts].square().mean().item() for chunk in chunks]
        found.append([*squares, guessed[..., size:].square().mean().sqrt().item()])
    policy.train()
    return dict(zip(COLUMNS, (round(mean(column), 4) for column in zip(*found, strict=True)), strict=True))


def loss_of_all(policy: Any, batch: dict[str, Any]) -> Tensor:
    """The flow's loss over every number that the network has room for, as openpi computes it."""
    actions = pad_last(batch[ACTION], policy.config.max_action_dim)
    noise, time = sample_noise(tuple(actions.shape), actions.device), sample_time(BATCH, actions.device)
    return policy.model(policy.observe(batch), actions, noise, time).mean()


def loss_of_the_robots(policy: Any, batch: dict[str, Any]) -> Tensor:
    """The policy's own loss, over the robot's numbers."""
    return policy(batch)[0]


def fine_tuned(config: BehindConfig, run: PastRun, other: PastRun) -> Iterator[tuple[str, dict[str, float]]]:
    """Train a network on all numbers, then on the robot's alone; the errors after both."""
    torch.manual_seed(0)
    policy = load_policy(run.folder, device="cpu").train()
    policy.model.init_weights()
    stages = (
        ("all numbers in the loss", run, config.steps, config.lr, loss_of_all),
        ("then the robot's alone", other, config.tune_steps, config.tune_lr, loss_of_the_robots),
    )
    for name, data, steps, lr, loss_of in stages:
        optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=lr, betas=(0.9, 0.95), weight_decay=1e-10)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05)
        for batch in tracked(batches(data, policy, 0, steps, ragged=True), name, steps):
            loss_of(policy, batch).backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        yield f"{steps} steps, {name}", errors(config, data, policy)


def main() -> None:
    """Measure what the flags name."""
    config = parse_flags(BehindConfig, sys.argv[1:], "numbers_behind")
    rows = {}
    for folder in config.runs:
        run = open_run(folder, None)
        rows[folder.name] = errors(config, run, load_policy(run.folder, device="cpu"))
    if config.tune is not None:
        rows |= fine_tuned(config, open_run(config.runs[0], None), open_run(config.tune, None))
    table = Table("run", *COLUMNS)
    for name, row in rows.items():
        table.add_row(name, *(f"{value:.4f}" for value in row.values()))
    Console().print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
