"""What RECAP's advantages are worth: independent loops beside the same data without them.

    python benchmarks/recap_loops.py                                # two cores, about an hour
    python benchmarks/recap_loops.py --loops=1 --seed=9000000 --guidance=2     # to choose settings
    python benchmarks/recap_loops.py --outcomes=benchmarks/recap_outcomes.json    # the table of kept outcomes

Every loop records its own demonstrations, and `depi recap` does the rest: configs/recap/loop_tiny.yaml with
three iterations, then two policies from the same start with as many steps as the last one, one on the same
data without advantages and one on its successes alone. All policies of all loops play the same seeds. What is
complete in --output_dir is kept: run the same command again after an interruption. Who succeeded in which
episode is in outcomes.json there, a plot of the table in outcomes.png. The last line is JSON.
"""

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from bootstrap import Played, Row, compare_all, figures, plot, table
from decentralised import offline_hub
from rich.console import Console

from depi.errors import UserError
from depi.evaluation.compare import read_evaluation
from depi.files import read_json, write_json
from depi.recap.loop_config import BASELINES
from depi.recap.results import NAMES
from depi.recap.stages import merge

LOOP = Path(__file__).parents[1] / "configs" / "recap" / "loop_tiny.yaml"
EPISODES, EVALUATED = 100, 200
# The first seed of the evaluation, far from those of demonstrations; rollouts have their own millions.
FIRST_SEED = 500_000
COLUMNS = {"evaluation": "success"}


def parse(args: list[str] | None = None) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description="What RECAP's advantages are worth.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/recap_loops"))
    parser.add_argument("--outcomes", type=Path, help="kept outcomes, whose table is printed: none is run")
    parser.add_argument("--loops", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first loop")
    parser.add_argument("--share", type=float, help="of frames that are positive, in place of the file's")
    parser.add_argument("--dropout", type=float, help="of the indicator in training")
    parser.add_argument("--guidance", type=float, help="of the policies when they play")
    parser.add_argument("--processes", type=int, default=2, help="loops at a time")
    parser.add_argument("--smoke", action="store_true", help="tiny: does it run?")
    return parser.parse_args(args)


def loop_file(options: argparse.Namespace, number: int) -> Path:
    """Write the configuration of a loop and return its path."""
    folder = options.output_dir / f"loop_{number}"
    seed = options.seed + number
    given: dict[str, Any] = {
        "output_dir": str(folder / "recap"),
        "iterations": options.iterations,
        "baselines": list(BASELINES),
        "demonstrations": [{"repo_id": "demo/touch", "root": str(folder / "demonstrations"), "weight": 1}],
        "train": {"seed": seed},
        "rollouts": {"seed": 10_000 * number},
        "evaluation": {"seed": FIRST_SEED, "eval": {"n_episodes": EVALUATED, "n_videos": 0}},
    }
    if options.share is not None:
        given["advantage"] = {"share": options.share}
    if options.dropout is not None:
        given["policy"] = {"advantage": {"dropout": options.dropout}}
    if options.guidance is not None:
        given = merge(
            given, {name: {"policy": {"guidance": options.guidance}} for name in ("rollouts", "evaluation")}
        )
    if options.smoke:
        given = merge(given, SMOKE)
    path = folder / "loop.json"
    write_json(path, merge(yaml.safe_load(LOOP.read_text()), given))
    return path


SMOKE: Mapping[str, Any] = {
    **{name: {"steps": 4} for name in ("sft", "value", "value_update", "policy")},
    "rollouts": {"eval": {"n_episodes": 2}},
    "evaluation": {"eval": {"n_episodes": 2}},
}


def run_loop(options: argparse.Namespace, number: int) -> None:
    """Record the demonstrations of a loop, and run it, as far as that has not been done.

    Raises:
        UserError: a command failed; its log is named.
    """
    path = loop_file(options, number)
    demonstrations = path.parent / "demonstrations"
    # Of the seeds of other loops none is the same: an episode of the expert takes one.
    recorded = [
        *("sim", "record", "--task=touch", "--fps=10", "--cameras=wrist", "--width=96", "--height=96"),
        f"--episodes={2 if options.smoke else EPISODES}",
        f"--seed={1000 * (options.seed + number)}",
        *("--repo_id=demo/touch", f"--root={demonstrations}"),
    ]
    commands = [] if demonstrations.exists() else [recorded]
    for command in [*commands, ["recap", f"--config_path={path}"]]:
        log = path.parent / f"{command[0]}.txt"
        with log.open("a") as said:
            done = subprocess.run([sys.executable, "-m", "depi.cli", *command], stdout=said, stderr=said)
        if done.returncode:
            raise UserError(f"loop {number}: `depi {command[0]}` ended with {done.returncode}, see {log}")
    print(f"loop {number} is complete", file=sys.stderr, flush=True)


def outcomes(options: argparse.Namespace) -> dict[str, Any]:
    """Who succeeded in which episode, as JSON.

    Returns:
        `seeds` of the episodes, and `loops`: each with the policies by name, a 1 or 0 per episode.
    """
    loops, seeds = [], []
    for number in range(options.loops):
        results = read_json(options.output_dir / f"loop_{number}" / "recap" / "results.json")
        loop = {}
        for row in results["evaluations"]:
            episodes = read_evaluation(Path(row["folder"])).rows
            seeds = sorted(episodes)
            loop[row["name"]] = "".join(str(int(episodes[seed].success)) for seed in seeds)
        loops.append(loop)
    return {"seeds": seeds, "loops": loops}


def summarise(kept: Mapping[str, Any]) -> dict[str, dict[str, Row]]:
    """Policy -> `evaluation` -> its rate over all loops; first the same data without advantages.

    Args:
        kept: see `outcomes`.
    """
    loops = kept["loops"]
    first = NAMES["no_advantages"]
    rigs = np.zeros(len(kept["seeds"]), np.int64)
    played = {}
    for name in (first, *(name for name in loops[0] if name != first)):
        played[name] = Played(np.array([list(loop[name]) for loop in loops]) == "1", rigs)
    return {name: {"evaluation": row} for name, row in compare_all(played, together=True).items()}


def run_loops(options: argparse.Namespace) -> None:
    """Run the loops that are not complete, `options.processes` at a time.

    Raises:
        UserError: one of them failed.
    """
    options.output_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with offline_hub(options.output_dir), ThreadPoolExecutor(options.processes) as pool:
        try:
            for job in [pool.submit(run_loop, options, number) for number in range(options.loops)]:
                job.result()
        except KeyboardInterrupt:  # a terminal tells the loops too, a signal to this process does not
            pool.shutdown(wait=False, cancel_futures=True)
            for loop in psutil.Process().children():
                loop.terminate()
            raise


def main(args: list[str] | None = None) -> int:
    """Run the loops and print what came of them."""
    options = parse(args)
    began = time.monotonic()
    kept = options.outcomes
    if kept is None:
        run_loops(options)
        kept = options.output_dir / "outcomes.json"
        write_json(kept, outcomes(options))
    results = summarise(read_json(kept))
    Console(width=150).print(table(results, COLUMNS, NAMES["no_advantages"]))
    plot(results, COLUMNS, kept.with_suffix(".png"))
    print("Success and differences in points, with 95% intervals over loops and episodes.")
    print(json.dumps({"seconds": round(time.monotonic() - began, 1), "policies": figures(results)}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
