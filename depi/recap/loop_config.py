"""The flags of `depi recap`: those of each stage's own command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from depi.evaluation.config import EpisodesConfig, EvaluateConfig
from depi.flags import check_ranges

STARTS = ("pretrained", "sft")
BASELINES = ("no_advantages", "successes")
TEACHERS = ("advantages", "successes")
# The rollouts of each iteration have seeds of their own, so there are at most this many.
SEEDS_PER_ITERATION = 1_000_000

# Flags of a command, nested as in a file: {"policy": {"path": "lerobot/pi0_base"}, "steps": 10000}.
CommandFlags = dict[str, Any]


@dataclass
class RecapConfig:
    """Improve a policy from its own successes and failures: depi recap --config=configs/recap/loop.yaml.

    RECAP (pi0.6* paper, section IV) in stages, each a command of DePi's that can be run alone: train the
    policy on demonstrations (sft), train a value function on them (value); then in every iteration roll the
    policy out (rollouts), train the value function on all data (value), compute advantages (advantage), train
    the policy conditioned on them (policy), evaluate it (eval). At the end `baselines` are trained on the
    same data. The same command again continues where it was stopped.

    Sections hold flags of the commands: sft, policy and value those of depi/train.py, rollouts and evaluation
    those of `depi eval`, advantage those of `depi advantage`.
    """

    # A folder for each stage; iteration_1 and so on; results.json, results.png, commands in stages/.
    output_dir: Path = Path("outputs/recap")
    iterations: int = 2
    # The demonstrations: a list of {repo_id, root, revision, episodes, weight}, as of --dataset.mixture.
    demonstrations: list[dict[str, Any]] = field(default_factory=list)
    # Weight of all rollouts of one iteration, only where the demonstrations have weights too; without weights
    # every dataset is drawn by its number of frames.
    rollouts_weight: float | None = None
    # The network that `policy` starts from in each iteration: as sft does (pretrained), or the one of sft.
    start_from: str = "pretrained"
    # What `policy` learns from: advantages (RECAP), of all data; or successes, that is the demonstrations and
    # the rollouts that succeeded, cloned without value function and advantages.
    learn_from: str = "advantages"
    # What to train as well, from the same start for as many steps as the last `policy`, and to evaluate:
    # no_advantages (the same data, advantage.mode=off), successes (likewise, without episodes that failed).
    baselines: list[str] = field(default_factory=lambda: ["no_advantages"])
    # Flags of `accelerate launch`, such as [--config_file=configs/accelerate/gpu8_ddp.yaml]; null: without.
    accelerate: list[str] | None = None
    # Existing checkpoints to use instead of the stages sft and value: {sft: FOLDER_OR_REPO}.
    given: dict[str, str] = field(default_factory=dict)
    # Flags of all trainings; the sections below override them.
    train: CommandFlags = field(default_factory=dict)
    sft: CommandFlags = field(default_factory=dict)
    # Its `policy.init_from` may be `sft`: the value function begins with the weights of that stage.
    value: CommandFlags = field(default_factory=dict)
    # Overrides `value` in the iterations, where the value function continues from its first training.
    value_update: CommandFlags = field(default_factory=dict)
    policy: CommandFlags = field(default_factory=dict)
    advantage: CommandFlags = field(default_factory=dict)
    # The environment, for rollouts and evaluation.
    env: CommandFlags = field(default_factory=dict)
    rollouts: CommandFlags = field(default_factory=dict)
    evaluation: CommandFlags = field(default_factory=dict)
    # Print the commands that are left to run, and run nothing.
    dry_run: bool = False
    # Print the results as JSON instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        check_ranges(self, iterations=(1, None))
        if self.start_from not in STARTS:
            raise ValueError(f"--start_from={self.start_from} is none of {', '.join(STARTS)}")
        for name in self.baselines:
            if name not in BASELINES:
                raise ValueError(f"--baselines: {name} is none of {', '.join(BASELINES)}")
        if self.learn_from not in TEACHERS:
            raise ValueError(f"--learn_from={self.learn_from} is none of {', '.join(TEACHERS)}")
        if self.learn_from == "successes" and "successes" in self.baselines:
            raise ValueError("--baselines: successes is what --learn_from=successes trains by itself")
        if not self.demonstrations:
            raise ValueError("no demonstrations: name datasets under `demonstrations`")
        unknown = set(self.given) - {"sft", "value"}
        if unknown:
            raise ValueError(
                f"--given: {', '.join(sorted(unknown))} is no stage with a checkpoint: sft, value"
            )
        if self.learn_from == "successes" and "value" in self.given:
            raise ValueError("--given: --learn_from=successes asks no value function, leave out value")
        self._check_sections()
        self._check_seeds()
        if self.start_from == "pretrained" and "path" not in self.sft.get("policy", {}):
            raise ValueError(
                "--start_from=pretrained needs sft.policy.path, the pretrained policy: without one use sft"
            )

    def _check_sections(self) -> None:
        """Refuse values such as `policy: NAME` where a section of flags is expected."""
        for section in ("train", "sft", "value", "value_update", "policy", "advantage"):
            for name in ("policy", "dataset"):
                found = getattr(self, section).get(name, {})
                if not isinstance(found, dict):
                    raise ValueError(
                        f"{section}.{name} is {found!r}: write flags under it, such as path or type, "
                        f"as in {section}: {{{name}: {{...}}}}"
                    )
        start = self.value.get("policy", {}).get("init_from") or "sft"
        if start != "sft" and "/" not in str(start) and not Path(start).exists():
            raise ValueError(
                f"value.policy.init_from is {start!r}: neither sft, the stage, nor a folder, nor "
                "USER/NAME on the Hub"
            )
        for section in ("rollouts", "evaluation"):
            if not isinstance(getattr(self, section).get("eval", {}), dict):
                raise ValueError(f"{section}.eval holds flags, such as n_episodes")

    def _check_seeds(self) -> None:
        """Refuse evaluations on seeds that are also used for training."""
        first, episodes = self._seeds("rollouts", seed=0)
        start, evaluated = self._seeds("evaluation", seed=EvaluateConfig.seed)
        if episodes > SEEDS_PER_ITERATION:
            raise ValueError(
                f"rollouts.eval.n_episodes must be at most {SEEDS_PER_ITERATION}, not {episodes}"
            )
        for iteration in range(1, self.iterations + 1):
            begin = first + SEEDS_PER_ITERATION * iteration
            if start < begin + episodes and begin < start + evaluated:
                raise ValueError(
                    f"evaluation.seed={start}: the rollouts of iteration {iteration} have the seeds {begin} "
                    f"to {begin + episodes - 1}, the {evaluated} episodes of the evaluation must have others"
                )

    def _seeds(self, section: str, seed: int) -> tuple[int, int]:
        """The first seed of a section, and how many there are; `seed` is the default."""
        flags = getattr(self, section)
        first = flags.get("seed", seed)
        episodes = flags.get("eval", {}).get("n_episodes", EpisodesConfig.n_episodes)
        for name, value in (("seed", first), ("eval.n_episodes", episodes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{section}.{name} must be a whole number of 0 or more, not {value!r}")
        return first, episodes
