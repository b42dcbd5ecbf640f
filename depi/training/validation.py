"""Evaluation during training: the loss on held-out episodes, and rollouts in a simulator.

Both leave training as it would be without them: random numbers, modes and the stream of samples.
"""

import contextlib
import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import BatchSampler

from depi.datasets.recording.joints import CONVENTIONS
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.evaluation.actors import Actor, Observation
from depi.evaluation.as_trained import differences, trained_on
from depi.evaluation.config import EnvironmentConfig, EvaluateConfig, PolicyConfig
from depi.evaluation.environments import resolve
from depi.evaluation.evaluate import as_actor, check_environment, roll_out
from depi.evaluation.lerobot_policies import sized_for
from depi.policies.factory import AnyPolicy
from depi.policies.families import family_of
from depi.training.config import TrainConfig
from depi.training.data import Collate, PolicyStream, load_batches
from depi.training.metrics import short_count
from depi.training.run_state import Run
from depi.training.sharding import reshard

logger = logging.getLogger(__name__)

# W&B gets curves for so many datasets; a log line names so many, those of the largest loss.
CURVES, NAMED = 10, 3


def check_simulator(
    config: TrainConfig, policy: AnyPolicy, dataset: MultiLeRobotDataset, report: Mapping[str, Any]
) -> None:
    """Raise a UserError where the policy or the data do not fit the environment of `--env.type`.

    `report` is the run's data report.
    """
    if rolls_out(config):
        env = _environment(config, policy)
        choices = EvaluateConfig(env=env, eval=config.eval, seed=config.seed)
        actor = _actor(config, dataset, policy, (None, None), choices)
        check_environment(choices, actor)
        found = differences(env, trained_on(report, config.dataset.action_freq))
        if found:
            logger.warning("--env differs from the data: %s", "; ".join(found))


def rolls_out(config: TrainConfig) -> bool:
    """Whether the policy is rolled out during training."""
    return config.eval_freq > 0 and config.env is not None


def is_due(run: Run) -> bool:
    """Whether the run is to be evaluated after the step that it has just taken."""
    config = run.config
    wanted = config.eval_freq > 0 and (run.held_out is not None or rolls_out(config))
    return wanted and (run.step % config.eval_freq == 0 or run.step == config.steps)


def what_is_measured(run: Run) -> str:
    """Name what `evaluate` measures, for a log line before it."""
    config = run.config
    parts = ["the loss on held-out episodes"] if run.held_out is not None else []
    if rolls_out(config):
        env = _environment(config, run.policy)
        parts.append(
            f"{config.eval.n_episodes} episodes of {env.type}" + (f", {env.task}" if env.task else "")
        )
    return " and ".join(parts)


def evaluate(run: Run, stop: Sequence[int] = ()) -> dict[str, float]:
    """Measure the policy as it is; every process must call this.

    Args:
        run: what is trained.
        stop: signals that have come; rollouts end early once there is one.

    Returns:
        by names that begin with `eval/`: `eval/loss` and `eval/loss/<repo id>`; and of the rollouts, on the
        main process alone, `eval/success_rate`, `eval/mean_length` in steps, `eval/mean_reward`, which is the
        sum over an episode, and `eval/seconds` for all of them.
    """
    values = {}
    with undisturbed(run):
        if run.held_out is not None:
            values.update(held_out_loss(run, run.held_out))
        if rolls_out(run.config):
            values.update(success(run, stop))
    return values


@contextlib.contextmanager
def undisturbed(run: Run) -> Iterator[None]:
    """Put the policy into evaluation mode, with the weights that checkpoints offer (`--ema.export`).

    Afterwards it, and random numbers, are as they were before.
    """
    device = run.accelerator.device
    numbers, arrays = random.getstate(), np.random.get_state()
    average = run.average if run.config.ema.export else None
    offered = contextlib.nullcontext() if average is None else average.in_place()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), offered:
        run.policy.eval()
        try:
            yield
        finally:
            run.policy.train()
            run.policy.reset()
            reshard(run.policy.model)
            random.setstate(numbers)
            np.random.set_state(arrays)


def held_out_loss(run: Run, stream: PolicyStream) -> dict[str, float]:
    """The mean loss over the first samples of the held-out stream, and over those of each dataset."""
    config, accelerator = run.config, run.accelerator
    count = min(config.eval.n_samples, stream.samples.mixture.num_frames)
    # LeRobot's policies give the loss of a batch: each sample is one.
    batch_size = config.batch_size if family_of(run.policy.config).own else 1
    # Sharded networks need as many forward passes in every process: what is seen twice is counted once.
    processes = accelerator.num_processes
    positions = range(accelerator.process_index, -(-count // processes) * processes, processes)
    batches = load_batches(
        stream,
        config,
        Collate(run.processors[0], run.policy.config, ragged=config.ragged),
        BatchSampler([position % count for position in positions], batch_size, drop_last=False),
        pin=accelerator.device.type == "cuda",
    )
    # By dataset: the sum of the losses, and the number of samples.
    sums = torch.zeros(2, run.dataset.num_datasets, device=accelerator.device)
    counted = torch.tensor([float(position < count) for position in positions], device=accelerator.device)
    for batch, weight in zip(batches, counted.split(batch_size), strict=True):
        batch = send_to_device(batch, accelerator.device, non_blocking=True)
        with torch.no_grad(), run.policy.autocast():
            losses, _ = run.policy(batch, reduction="none")
        owner = batch["dataset_index"]
        sums[0].index_add_(0, owner, losses.float() * weight)
        sums[1].index_add_(0, owner, weight)
    losses_of, samples_of = accelerator.reduce(sums, "sum").tolist()
    triples = zip(run.dataset.repo_ids, losses_of, samples_of, strict=True)
    by_dataset = {f"eval/loss/{repo_id}": loss / samples for repo_id, loss, samples in triples if samples}
    return {"eval/loss": sum(losses_of) / sum(samples_of), **by_dataset}


class Stopped(Exception):  # noqa: N818  no error
    """A signal came while the policy was rolled out."""


class _Stoppable:
    """An actor that raises `Stopped` instead of acting once a signal has come."""

    def __init__(self, actor: Actor, stop: Sequence[int]):
        self._actor, self._stop = actor, stop
        self.batch, self.expert_steps, self.fit = actor.batch, actor.expert_steps, actor.fit

    def act(self, observations: Sequence[Observation]) -> list[NDArray[np.float32]]:
        if self._stop:
            raise Stopped
        return self._actor.act(observations)


def success(run: Run, stop: Sequence[int] = ()) -> dict[str, float]:
    """Roll the policy out on the main process, into `eval/<step>/` of the run, while the others wait.

    What goes wrong with the environment is logged, and training goes on.
    """
    policy = _whole_policy(run)
    values: dict[str, float] = {}
    if policy is not None:
        started = time.perf_counter()
        try:
            values = _rates(_roll_out(run, policy, stop))
            values["eval/seconds"] = time.perf_counter() - started
        except Stopped:
            logger.warning("the rollouts of step %d were stopped", run.step)
        except (UserError, OSError) as error:
            logger.error("the rollouts of step %d failed: %s", run.step, error)
    run.accelerator.wait_for_everyone()
    return values


def _roll_out(run: Run, policy: AnyPolicy, stop: Sequence[int]) -> dict[str, Any]:
    config = _evaluate_config(run)
    actor = _actor(run.config, run.dataset, policy, run.processors, config)
    return roll_out(config, _Stoppable(actor, stop))


def _rates(result: dict[str, Any]) -> dict[str, float]:
    names = ("success_rate", "mean_length", "mean_reward")
    values = {f"eval/{name}": result[name] for name in names if result[name] is not None}
    if result["n_errors"]:
        logger.warning("%d episodes ended in an error: %s", result["n_errors"], result["errors"])
        values["eval/errors"] = result["n_errors"]
    return values


def describe(run: Run, values: dict[str, float]) -> str:
    """The log line of an evaluation, in LeRobot's words where it has them; success in per cent."""
    parts = [
        f"eval step:{run.step} smpl:{short_count(run.samples)} ep:{short_count(run.episodes)} "
        f"epch:{run.epochs:.2f}"
    ]
    if "eval/loss" in values:
        worst = sorted(_by_dataset(values).items(), key=lambda pair: -pair[1])[:NAMED]
        named = ", ".join(f"{name.removeprefix('eval/loss/')} {loss:.3f}" for name, loss in worst)
        parts.append(f"loss:{values['eval/loss']:.3f} (largest: {named})")
    if "eval/success_rate" in values:
        parts.append(
            f"∑rwrd:{values['eval/mean_reward']:.3f} success:{100 * values['eval/success_rate']:.1f} "
            f"length:{values['eval/mean_length']:.1f} eval_s:{values['eval/seconds']:.3f}"
        )
    return " ".join(parts)


def curves(run: Run, values: dict[str, float]) -> dict[str, float]:
    """What goes to W&B: of the datasets, those with the most frames, the same ones at every evaluation."""
    frames = {f"eval/loss/{entry['repo_id']}": entry["frames"] for entry in run.dataset.entries}
    by_dataset = _by_dataset(values)
    largest = sorted(by_dataset, key=lambda name: (-frames[name], name))[:CURVES]
    return {name: value for name, value in values.items() if name in largest or name not in by_dataset}


def _by_dataset(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if name.startswith("eval/loss/")}


def _evaluate_config(run: Run) -> EvaluateConfig:
    config = run.config
    assert config.output_dir is not None
    return EvaluateConfig(
        policy=PolicyConfig(path=f"{config.output_dir} step {run.step}"),
        env=_environment(config, run.policy),
        eval=config.eval,
        output_dir=config.output_dir / "eval" / f"{run.step:06d}",
        seed=config.seed,
    )


def _actor(
    config: TrainConfig,
    dataset: MultiLeRobotDataset,
    policy: AnyPolicy,
    processors: tuple[Any, Any],
    choices: EvaluateConfig,
) -> Actor:
    return as_actor(
        policy,
        processors,
        choices,
        cameras=config.dataset.cameras,
        convention=_convention(config, dataset),
    )


def _environment(config: TrainConfig, policy: AnyPolicy) -> EnvironmentConfig:
    """The environment of `--env.type`; for policies that take one size of images, in that size."""
    assert config.env is not None
    env = resolve(config.env)
    if family_of(policy.config).own or config.letterboxed:
        return env
    return sized_for(policy.config, env)


def _convention(config: TrainConfig, dataset: MultiLeRobotDataset) -> str:
    """The joint convention that the policy is trained in."""
    assert config.env is not None
    convention = config.dataset.joint_convention
    if convention == "native":
        convention = dataset.entries[0]["convention"]
    if config.env.type == "so101" and (convention not in CONVENTIONS or convention in ("native", "unknown")):
        raise UserError(f"--env.type needs joints in known units, these datasets have {convention!r}")
    return convention


def _whole_policy(run: Run) -> AnyPolicy | None:
    """The policy for rollouts: on the main process, a copy if it is sharded; None on the others."""
    if not isinstance(run.policy.model, FSDPModule):
        return run.policy if run.accelerator.is_main_process else None
    weights = {}
    for name, value in run.policy.state_dict().items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value  # a collective
        if run.accelerator.is_main_process:
            weights[name] = whole.cpu()
    if not run.accelerator.is_main_process:
        return None
    policy = type(run.policy)(run.policy.config)
    policy.load_state_dict(weights)
    return policy.to(run.accelerator.device).eval()
