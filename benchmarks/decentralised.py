"""What DePi's data work is worth: pi0 trained on unlike contributors, with parts of that work taken away.

    python benchmarks/decentralised.py                 # one GPU and 16 cores, about 10 minutes
    python benchmarks/decentralised.py --scale=cpu     # two cores, about 15 minutes
    python benchmarks/decentralised.py --scale=evidence  # two cores, some hours
    python benchmarks/decentralised.py --smoke         # two cores, 3 minutes: does it run?

Simulated contributors record `touch`, each with other cameras, looks, rates and joint conventions. One
small pi0 is trained on all of them, and one per ablation with as many steps of the same size and the same
seed. Each is played in the rigs that were recorded in, in new episodes, and in rigs that nobody has
recorded in. At `--scale=cpu` contributors differ little, in what a tiny policy can learn in a few minutes:
four people, one of each joint convention, with the same two cameras under keys in another order, other
file formats, and small differences of camera poses, base and light. At `--scale=evidence` (see evidence.md)
there are eight such people, every arm is trained three times, one in five recorded episodes is bad, and each
contributor is also trained on alone. `depi eval` plays all arms in the same episodes. What is complete
in --output_dir is kept: run the same command again after an interruption. Every arm is trained and played
once before any a second time, so that `--trainings=1` has a table in a third of the time, and the same
command without it goes on from there, or another machine with `--first_training=1`: who succeeded is in
outcomes.json, a plot of the table in outcomes.png, and `decentralised_summary.py` makes one table of several
files of outcomes. The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bootstrap
import decentralised_summary as summary
import decentralised_work as work
from decentralised_rigs import BLIND, COLOR, POLICIES, RATE, SCALES, Arm, Experiment, arms_of

from depi.errors import UserError
from depi.files import read_json, write_json

# Raise it when recordings, trainings or episodes of an older version no longer compare.
VERSION = 3


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="What DePi's data work is worth.")
    parser.add_argument("--scale", choices=SCALES, default="full")
    parser.add_argument("--smoke", action="store_true", help="the same as --scale=smoke")
    parser.add_argument("--output_dir", type=Path, help="outputs/decentralised_SCALE by default")
    parser.add_argument("--seed", type=int, default=0, help="of rigs and trainings")
    parser.add_argument("--steps", type=int, help="of each training, in place of the scale's")
    parser.add_argument("--trainings", type=int, help="of each arm, in place of the scale's")
    parser.add_argument("--first_training", type=int, default=0, help="1 where each arm's first is elsewhere")
    parser.add_argument("--trials", type=int, help="episodes in each rig, in place of the scale's")
    parser.add_argument("--arms", default="", help="some of them; the union is always among them")
    options = parser.parse_args(args)
    options.scale = "smoke" if options.smoke else options.scale
    arms = arms_of(SCALES[options.scale])
    wanted = options.arms.split(",") if options.arms else [arm.name for arm in arms]
    arms = (*arms, *(arm for arm in POLICIES if arm not in arms))  # can be named at any scale
    names = [arm.name for arm in arms]
    for name in wanted:
        if name not in names:
            parser.error(f"--arms: {name} is none of {', '.join(names)}")
    options.arms = tuple(arm for arm in arms if arm.name in {"union", *wanted})
    options.output_dir = options.output_dir or Path("outputs") / f"decentralised_{options.scale}"
    return options


def experiment_of(options: argparse.Namespace) -> Experiment:
    """What the flags ask for.

    Raises:
        UserError: there is no such training.
    """
    asked = {name: getattr(options, name) for name in ("steps", "trainings", "trials")}
    given = {name: number for name, number in asked.items() if number}
    scale = dataclasses.replace(SCALES[options.scale], **given)
    if not 0 <= options.first_training < scale.trainings:
        raise UserError(
            f"--first_training={options.first_training}: each arm has {scale.trainings} trainings"
        )
    return Experiment(options.output_dir, scale, options.seed, options.arms, options.first_training)


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
    """Refuse a folder of another experiment, and write down the rigs for `depi eval`.

    Raises:
        UserError: it is one.
    """
    root = experiment.root
    settings = {"version": VERSION, "seed": experiment.seed, **dataclasses.asdict(experiment.scale)}
    for name in ("trainings", "processes", "loaders", "render_s", "step_s"):
        del settings[name]
    settings["rigs"] = [rig.setup.to_dict() for rig in experiment.rigs]
    settings = json.loads(json.dumps(settings))
    path = root / "settings.json"
    before = read_json(path) if path.exists() else settings
    for name in sorted(settings.keys() | before.keys()):
        if settings.get(name) != before.get(name):
            raise UserError(
                f"{root} holds an experiment with other {name}, {_short(before.get(name))} instead of "
                f"{_short(settings.get(name))}: choose another --output_dir, or remove that one"
            )
    write_json(path, settings)
    write_json(experiment.rigs_file, settings["rigs"])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def record(experiment: Experiment) -> None:
    """Record the contributors whose recordings are not there yet."""
    from depi.sim.community import record_community

    scale, root = experiment.scale, experiment.root / "recorded"
    missing = [person for person in experiment.recording if not (root / person.repo_id).exists()]
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
    from depi.hub.server.serve import serve

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


def train(experiment: Experiment, trainings: Sequence[Arm]) -> None:
    """Train those that are not trained yet, `scale.processes` at a time."""
    scale, root = experiment.scale, experiment.root
    to_train = [arm for arm in trainings if not experiment.trained(arm)]
    if not to_train:
        return
    for arm in to_train:  # what was played of an earlier training does not count
        shutil.rmtree(experiment.played_folder(arm), ignore_errors=True)
    at_once = min(len(to_train), scale.processes)
    pool = ProcessPoolExecutor(at_once, get_context("spawn"), work.start, (root / "logs",))
    try:
        say("prepare: images for training")
        pool.submit(work.prepare_images, experiment).result()
        stage = Stage("train", len(to_train), scale.steps * scale.step_s * len(to_train) / at_once)
        jobs = {pool.submit(work.train_arm, experiment, arm): arm for arm in to_train}
        for job in as_completed(jobs):
            stage.step(f"{jobs[job].label}, loss {job.result():.3f}")
    finally:
        pool.shutdown(cancel_futures=True)


def play(experiment: Experiment, trainings: Sequence[Arm]) -> None:
    """Play what is trained, as far as it is not played yet."""
    for arm in trainings:
        say(f"play {arm.label}: {experiment.episodes} episodes in {len(experiment.rigs)} rigs")
        work.play(experiment, arm)


def show(results: Mapping[str, Mapping[str, bootstrap.Row]], experiment: Experiment) -> None:
    """Print the table, and what its rows mean."""
    scale = experiment.scale
    print(
        f"Touch the {COLOR} cube, {RATE} actions per second. {scale.contributors} contributors recorded "
        f"{scale.episodes} episodes each; {len(experiment.rounds)} trainings of each arm, of {scale.steps} "
        f"steps of {scale.batch_size} samples; {experiment.episodes} episodes for each training."
    )
    summary.show(results)
    for arm in (*experiment.arms, BLIND):
        print(f"  {arm.name}: {arm.meaning}")


def main(args: list[str] | None = None) -> int:
    """Run the experiment and print what came of it."""
    options = parse(args)
    experiment = experiment_of(options)
    began = time.monotonic()
    check_settings(experiment)
    record(experiment)
    with offline_hub(experiment.root):
        for trainings in experiment.rounds:
            train(experiment, trainings)
            play(experiment, trainings)
        play(experiment, [BLIND])
    outcomes = summary.outcomes(experiment)
    write_json(experiment.root / "outcomes.json", outcomes)
    results = summary.summarise([outcomes])
    show(results, experiment)
    bootstrap.plot(results, summary.COLUMNS, experiment.root / "outcomes.png")
    misjudged = work.misjudged(experiment, experiment.trainings[0])
    for sentence in misjudged:
        print(f"the joint convention was not recognised: {sentence}")
    head = {"scale": options.scale, "seed": options.seed, "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps({**head, "conventions_misjudged": misjudged, "arms": bootstrap.figures(results)}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
