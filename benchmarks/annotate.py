"""How right `depi annotate` is, and how fast, on simulated datasets of which everything is known.

    python benchmarks/annotate.py --backend=openai --base_url=http://127.0.0.1:8000/v1 --model=MODEL
    python benchmarks/annotate.py --backend=transformers --model=FOLDER    # the model's files, in a folder
    python benchmarks/annotate.py --backend=rules                          # no model: the floor
    python benchmarks/annotate.py --backend=oracle --error_rate=0.25       # tests the benchmark itself
    python benchmarks/annotate.py --smoke                                  # seconds; the oracle on 4 episodes

Records `--datasets` datasets of `--episodes` episodes, each with a rig of its own: goal (touch, pick up),
colour of the cube, table, one to three cameras. Their task texts are junk or wrong and their camera names say
nothing. They are published on an embedded Hub, and `depi annotate` runs over the list in a process of its
own. `--data=DIR` keeps the recordings for the next call; flags after `--` go to `depi annotate`.

Of each episode the text that training would read is held against the truth, by goal, object and colour;
of each camera its view. The confidence is held against whether the proposed text is right in all three.

The last line is JSON: instruction_accuracy (share of attributes right), instruction_exact (share of episodes
with all three right), goal, object, color, view_accuracy (share of cameras), calibration_error (expected
calibration error over ten bins; null without confidences), with_task (share of episodes with a new text),
precision (share of these with all three right; null if there are none), episodes, failed, episodes_per_s,
tokens_per_episode, requests_per_episode, backend, model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from annotate_truth import (
    ATTRIBUTES,
    Calibration,
    attributes_right,
    calibration,
    contributors,
    record,
    truth_of,
)
from rich.console import Console
from rich.table import Table

from depi.annotate.episode_journal import read_results
from depi.datasets.samples.annotations import read_annotations
from depi.files import write_json
from depi.sim.community import Contributor


def score(annotations: Path, rigs: Sequence[Contributor]) -> tuple[dict[str, Any], Calibration]:
    """Hold the sidecars against the truth; an episode without a row has nothing right."""
    counts = dict.fromkeys((*ATTRIBUTES, "exact", "with_task", "precise", "views", "cameras", "episodes"), 0)
    confidence: list[float] = []
    exact: list[bool] = []
    for rig in rigs:
        truth = truth_of(rig)
        found = read_annotations(annotations, rig.repo_id)
        rows = {row.episode_index: row for row in found[0]} if found else {}
        results = read_results(annotations, rig.repo_id).results
        for episode in range(rig.episodes):
            row = rows.get(episode)
            right = attributes_right((row.task or row.original_task) if row is not None else None, truth)
            for name in ATTRIBUTES:
                counts[name] += right[name]
            counts["episodes"] += 1
            counts["exact"] += all(right.values())
            if row is not None and row.task is not None:
                counts["with_task"] += 1
                counts["precise"] += all(right.values())
            result = results.get(episode)
            if result is not None and result.confidence is not None:
                confidence.append(result.confidence)
                exact.append(all(attributes_right(result.proposed, truth).values()))
        views = next(iter(rows.values())).camera_views if rows else {}
        counts["cameras"] += len(truth.views)
        counts["views"] += sum(views.get(key) == view for key, view in truth.views.items())
    calibrated = calibration(confidence, exact)
    return _shares(counts, calibrated if confidence else None), calibrated


def _shares(counts: dict[str, int], calibrated: Calibration | None) -> dict[str, Any]:
    episodes = counts["episodes"]
    shares = {name: counts[name] / episodes for name in (*ATTRIBUTES, "exact", "with_task")}
    return {
        "instruction_accuracy": round(sum(shares[name] for name in ATTRIBUTES) / len(ATTRIBUTES), 4),
        "instruction_exact": round(shares["exact"], 4),
        **{name: round(shares[name], 4) for name in ATTRIBUTES},
        "view_accuracy": round(counts["views"] / counts["cameras"], 4),
        "calibration_error": None if calibrated is None else round(calibrated.error, 4),
        "with_task": round(shares["with_task"], 4),
        "precision": round(counts["precise"] / counts["with_task"], 4) if counts["with_task"] else None,
        "episodes": episodes,
    }


@contextmanager
def published(root: Path, rigs: Sequence[Contributor], work: Path) -> Iterator[dict[str, str]]:
    """The datasets on an embedded Hub; the environment of programs that read them there."""
    from depi.hub.server.access import OWNER
    from depi.hub.server.folder import Store
    from depi.hub.server.serve import serve

    store = Store(work / "hub")
    for rig in rigs:
        repo = store.create("dataset", rig.repo_id, OWNER)
        store.commit_folder(repo, root / rig.repo_id, "Add data", OWNER)
    store.close()
    with serve(work / "hub") as hub:
        home = {"HF_HOME": str(work / "home"), "DEPI_CACHE": str(work / "cache")}
        yield {**os.environ, **hub.environment(), **home}


def annotate(
    environment: dict[str, str], work: Path, ids: Sequence[str], flags: Sequence[str]
) -> dict[str, Any]:
    """Run `depi annotate` in a process of its own; its summary."""
    write_json(work / "ids.json", list(ids))
    command = [sys.executable, "-m", "depi.cli", "annotate", "--json", f"--repo_ids={work / 'ids.json'}"]
    command += [f"--annotations={work / 'annotations'}", *flags]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(f"depi annotate ended with status {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def print_tables(scores: dict[str, Any], calibrated: Calibration) -> None:
    """What is right, and how the confidence fits."""
    console = Console(stderr=True)
    table = Table("right", "share")
    for name in ("goal", "object", "color", "instruction_exact", "view_accuracy", "with_task"):
        table.add_row(name.replace("_", " "), f"{scores[name]:.2f}")
    console.print(table)
    if calibrated.bins:
        table = Table("confidence from", "episodes", "mean confidence", "share right")
        for lower, episodes, mean, share in calibrated.bins:
            table.add_row(f"{lower:.1f}", str(episodes), f"{mean:.2f}", f"{share:.2f}")
        console.print(table)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Record, publish, annotate, score."""
    size = (160, 120) if options.smoke else (320, 240)
    rigs = contributors(options.datasets, options.episodes, options.seed, size)
    root = options.data or work / "recorded"
    record(root, rigs)
    flags, backend = list(options.flags), options.backend
    with ExitStack() as stack:
        if backend == "oracle":
            from annotate_oracle import Oracle, oracle_server

            oracle = Oracle(root, rigs, options.error_rate, options.view_error_rate)
            flags += ["--backend=openai", f"--base_url={stack.enter_context(oracle_server(oracle))}"]
        else:
            flags += [f"--backend={backend}"]
            flags += [f"--base_url={options.base_url}"] if options.base_url else []
            flags += [f"--model={options.model}"] if options.model else []
        environment = stack.enter_context(published(root, rigs, work))
        summary = annotate(environment, work, [rig.repo_id for rig in rigs], flags)
    scores, calibrated = score(work / "annotations", rigs)
    print_tables(scores, calibrated)
    done = max(summary["done"], 1)
    tokens = summary["prompt_tokens"] + summary["completion_tokens"]
    return {
        **scores,
        "failed": summary["failed"],
        "episodes_per_s": round(summary["done"] / summary["seconds"], 3) if summary["seconds"] else 0.0,
        "tokens_per_episode": round(tokens / done, 1),
        "requests_per_episode": round(summary["requests"] / done, 2),
        "backend": backend,
        "model": options.model,
    }


def parse(args: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    backends = ("openai", "transformers", "rules", "oracle")
    parser.add_argument("--backend", choices=backends, help="default openai, oracle with --smoke")
    parser.add_argument("--base_url", help="of the server, up to and with /v1")
    parser.add_argument("--model", help="its id; a folder with --backend=transformers")
    parser.add_argument("--datasets", type=int, help="default 16")
    parser.add_argument("--episodes", type=int, help="of each dataset, default 4")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder of the recordings, kept; default a temporary one")
    parser.add_argument("--error_rate", type=float, default=0.0, help="of the oracle's instructions")
    parser.add_argument("--view_error_rate", type=float, default=0.0, help="of the oracle's views")
    parser.add_argument("--smoke", action="store_true", help="2 datasets of 2 episodes, small pictures")
    parser.add_argument("flags", nargs="*", help="after --: flags of `depi annotate`")
    options = parser.parse_args(args)
    options.backend = options.backend or ("oracle" if options.smoke else "openai")
    options.datasets = options.datasets or (2 if options.smoke else 16)
    options.episodes = options.episodes or (2 if options.smoke else 4)
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    with tempfile.TemporaryDirectory(prefix="annotate-") as folder:
        result = measure(options, Path(folder))
    hour = 3600 * result["episodes_per_s"]
    print(f"{hour:,.0f} episodes/h, {result['tokens_per_episode']:,.0f} tokens/episode")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
