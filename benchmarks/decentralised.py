"""What DePi's data work is worth: pi0 trained on unlike contributors, with parts of that work taken away.

    python benchmarks/decentralised.py                 # one GPU and 16 cores, about 10 minutes
    python benchmarks/decentralised.py --scale=cpu     # two cores, about 15 minutes
    python benchmarks/decentralised.py --smoke         # two cores, 3 minutes: does it run?

Simulated contributors record `touch`, each with other cameras, looks, rates and joint conventions. One
small pi0 is trained on all of them, and one per ablation with as many steps of the same size and the same
seed. Each is played in the rigs that were recorded in, in new episodes, and in rigs that nobody has
recorded in. At `--scale=cpu` contributors differ little, in what a tiny policy can learn in a few minutes:
four people, one of each joint convention, with the same two cameras under keys in another order, other
file formats, and small differences of camera poses, base and light. All arms play the same episodes, so
each is compared with the union by an exact test on pairs (McNemar's). What is complete in --output_dir is
kept: run the same command again after an interruption. The last line is JSON.

Episodes are played by the actor of `depi eval`, not by `depi eval` itself, which draws a rig for each
episode and cannot be told to keep one.
"""

import argparse
import dataclasses
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import decentralised_work as work
from decentralised_rigs import ARMS, COLOR, RATE, SCALES, Arm, Experiment, Trials
from rich.console import Console
from rich.table import Table

from depi.errors import UserError
from depi.evaluation.compare import mcnemar, wilson
from depi.files import read_json, write_json

# Raise it when recordings, trainings or episodes of an older version no longer compare.
VERSION = 1


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="What DePi's data work is worth.")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--smoke", action="store_true", help="the same as --scale=smoke")
    parser.add_argument("--output_dir", type=Path, help="outputs/decentralised_SCALE by default")
    parser.add_argument("--seed", type=int, default=0, help="of rigs and trainings")
    parser.add_argument("--steps", type=int, help="of each training, in place of the scale's")
    parser.add_argument("--trials", type=int, help="episodes in each rig, in place of the scale's")
    names = [arm.name for arm in ARMS]
    parser.add_argument(
        "--arms", default=",".join(names), help="some of them; the union is always among them"
    )
    options = parser.parse_args(args)
    wanted = options.arms.split(",")
    for name in wanted:
        if name not in names:
            parser.error(f"--arms: {name} is none of {', '.join(names)}")
    options.arms = tuple(arm for arm in ARMS if arm.name in {"union", *wanted})
    options.scale = "smoke" if options.smoke else options.scale
    options.output_dir = options.output_dir or Path("outputs") / f"decentralised_{options.scale}"
    return options


def experiment_of(options: argparse.Namespace) -> Experiment:
    """What the flags ask for."""
    given = {name: getattr(options, name) for name in ("steps", "trials") if getattr(options, name)}
    scale = dataclasses.replace(SCALES[options.scale], **given)
    return Experiment(options.output_dir, scale, options.seed, options.arms)


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


class Stage:
    """Progress of one kind of work: what is done, and how long the rest will take."""

    def __init__(self, name: str, total: int, seconds: float) -> None:
        self.name, self.total, self.done, self._began = name, total, 0, time.monotonic()
        if total:
            say(f"{name}: {total} to do, about {seconds:.0f} s expected")

    def step(self, what: str) -> None:
        """One more is done."""
        self.done += 1
        spent = time.monotonic() - self._began
        left = spent / self.done * (self.total - self.done)
        say(f"{self.name} {self.done} of {self.total}: {what}; {spent:.0f} s, about {left:.0f} s left")


def check_settings(experiment: Experiment) -> None:
    """Refuse a folder of another experiment.

    Raises:
        UserError: it is one.
    """
    root = experiment.root
    settings = {"version": VERSION, "seed": experiment.seed, **dataclasses.asdict(experiment.scale)}
    for name in ("processes", "loaders", "render_s", "step_s", "trial_s"):
        del settings[name]
    settings["rigs"] = [trials.setup.to_dict() for trials in experiment.trials(experiment.arms[0])]
    settings = json.loads(json.dumps(settings))
    path = root / "settings.json"
    if not path.exists():
        write_json(path, settings)
        return
    before = read_json(path)
    for name in sorted(settings.keys() | before.keys()):
        if settings.get(name) != before.get(name):
            raise UserError(
                f"{root} holds an experiment with other {name}, {_short(before.get(name))} instead of "
                f"{_short(settings.get(name))}: choose another --output_dir, or remove that one"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def record(experiment: Experiment) -> None:
    """Record the contributors whose recordings are not there yet."""
    from depi.sim.community import record_community

    scale, root = experiment.scale, experiment.root / "recorded"
    missing = [person for person in experiment.contributors if not (root / person.repo_id).exists()]
    if not missing:
        return
    # An expert takes about two seconds to touch the cube.
    pictures = [2 * each.setup.fps * each.episodes * len(each.setup.cameras) for each in missing]
    seconds = 10 + max(sum(pictures) / scale.processes, max(pictures)) * scale.render_s
    stage = Stage("record", len(missing), seconds)
    record_community(
        root,
        missing,
        workers=scale.processes,
        progress=lambda person, done, total: stage.step(describe(person)),
    )


def describe(person: Any) -> str:
    """In what a contributor's recordings differ from the others'."""
    setup = person.setup
    cameras = "+".join(camera.kind for camera in setup.cameras)
    return f"{person.repo_id}, {person.episodes} episodes, {setup.convention}, {setup.fps} fps, {cameras}"


@contextmanager
def offline_hub(root: Path) -> Iterator[None]:
    """An embedded Hub for this process's children: policies need its tokenizer, and nothing else."""
    from depi.hub.local import serve

    with serve(root / "hub") as hub:
        variables = {
            **hub.environment(),
            "HF_HOME": str((root / "hf_home").resolve()),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
        }
        with patch.dict(os.environ, variables):
            yield


def train_and_play(experiment: Experiment) -> None:
    """Train what is not trained, and play each arm as soon as it is; `scale.processes` at a time."""
    scale, root = experiment.scale, experiment.root
    to_train = [arm for arm in experiment.arms if not experiment.trained(arm)]
    for arm in to_train:  # what was played of an earlier training does not count
        shutil.rmtree(root / "played" / arm.name, ignore_errors=True)
    missing = {
        arm: [trials for trials in experiment.trials(arm) if not experiment.outcomes(trials).exists()]
        for arm in experiment.played_arms
    }
    if not to_train and not any(missing.values()):
        return
    at_once = min(len(to_train), scale.processes) or 1
    training = Stage("train", len(to_train), scale.steps * scale.step_s * len(to_train) / at_once)
    count = sum(map(len, missing.values()))
    playing = Stage("play", count, count * scale.trials * scale.trial_s / scale.processes)
    pool = ProcessPoolExecutor(scale.processes, get_context("spawn"), work.start, (root / "logs",))
    jobs: dict[Future[Any], Callable[[Any], None]] = {}

    def played(trials: Trials, outcomes: list[bool]) -> None:
        playing.step(f"{trials.arm.name} in {trials.rig}, {sum(outcomes)} of {len(outcomes)}")

    def play(arm: Arm) -> None:
        for trials in missing[arm]:
            jobs[pool.submit(work.play, experiment, trials)] = functools.partial(played, trials)

    def train(arm: Arm) -> None:
        def trained(loss: float) -> None:
            training.step(f"{arm.name}, loss {loss:.3f}")
            play(arm)

        jobs[pool.submit(work.train_arm, experiment, arm)] = trained

    def prepared(_: Any) -> None:
        for arm in to_train:
            train(arm)

    try:
        if to_train:
            say("prepare: images for training")
            jobs[pool.submit(work.prepare_images, experiment)] = prepared
        for arm in experiment.played_arms:
            if arm not in to_train:
                play(arm)
        while jobs:
            for job in wait(jobs, return_when=FIRST_COMPLETED).done:
                jobs.pop(job)(job.result())
    finally:
        pool.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Successes of an arm over episodes, next to the union's in the same episodes.

    Attributes:
        successes, episodes: how many. interval: 95%, Wilson.
        gained, lost: episodes in which only this arm, or only the union, succeeded. p: that these differ
            by chance (McNemar's exact test).
    """

    successes: int
    episodes: int
    interval: tuple[float, float]
    gained: int
    lost: int
    p: float

    @classmethod
    def of(cls, mine: list[bool], unions: list[bool]) -> "Outcome":
        """From the successes of the same episodes."""
        gained = sum(a and not b for a, b in zip(mine, unions, strict=True))
        lost = sum(b and not a for a, b in zip(mine, unions, strict=True))
        interval = wilson(sum(mine), len(mine))
        return cls(sum(mine), len(mine), interval, gained, lost, mcnemar(lost, gained))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.successes / self.episodes:.0%} of {self.episodes} ({low:.0%} to {high:.0%})"

    def against(self) -> str:
        """The comparison with the union."""
        return f"+{self.gained} -{self.lost}, p {self.p:.2g}"


def evaluate(experiment: Experiment) -> dict[str, dict[str, Outcome]]:
    """Arm -> `seen` and `unseen` -> what it achieved."""

    def successes(arm: Arm, seen: bool) -> list[bool]:
        played = [experiment.outcomes(trials) for trials in experiment.trials(arm) if trials.seen == seen]
        return [success for path in played for success in read_json(path)["success"]]

    union = experiment.arms[0]
    return {
        arm.name: {
            split: Outcome.of(successes(arm, split == "seen"), successes(union, split == "seen"))
            for split in ("seen", "unseen")
        }
        for arm in experiment.played_arms
    }


def show(results: dict[str, dict[str, Outcome]], experiment: Experiment) -> None:
    """Print the table, and what its rows mean."""
    scale = experiment.scale
    print(
        f"Touch the {COLOR} cube, {RATE} actions per second. {scale.contributors} contributors recorded "
        f"{scale.episodes} episodes each; {scale.steps} training steps of {scale.batch_size} samples."
    )
    table = Table("trained", "seen rigs", "against union", "unseen rigs", "against union")
    for arm in experiment.played_arms:
        cells = []
        for split in ("seen", "unseen"):
            outcome = results[arm.name][split]
            cells += [str(outcome), "" if arm is experiment.arms[0] else outcome.against()]
        table.add_row(arm.name, *cells)
    Console(width=110).print(table)
    print("Success with 95% Wilson intervals; +G -L: episodes that only this arm, or only the union, did.")
    for arm in experiment.played_arms:
        print(f"  {arm.name}: {arm.meaning}")


def main(args: list[str] | None = None) -> int:
    """Run the experiment and print what came of it."""
    options = parse(args)
    experiment = experiment_of(options)
    began = time.monotonic()
    check_settings(experiment)
    record(experiment)
    with offline_hub(experiment.root):
        train_and_play(experiment)
    results = evaluate(experiment)
    show(results, experiment)
    misjudged = work.misjudged(experiment, experiment.arms[0])
    for sentence in misjudged:
        print(f"the joint convention was not recognised: {sentence}")
    arms = {name: {split: dataclasses.asdict(o) for split, o in by.items()} for name, by in results.items()}
    head = {"scale": options.scale, "seed": options.seed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**head, "conventions_misjudged": misjudged, "arms": arms}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
