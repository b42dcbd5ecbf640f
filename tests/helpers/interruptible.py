"""Every command that runs for long, with a small task for it: for tests of what interrupts them.

`Workplace` holds what the tasks work on; a `Task` says how to start one and what it makes, without anything
that differs between two undisturbed runs, such as times.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import HfApi
from recordings import Recording, write_v2, write_v3
from runs import losses, small_training, weights
from small_value import save_small_value

from depi import cli
from depi.annotate.episode_journal import read_results
from depi.catalog.catalogue import Row, read_rows
from depi.files import write_json
from depi.hub.client.api import upload_folder
from depi.hub.server.serve import LocalHub
from depi.train import main as train

TRAIN = [sys.executable, str(Path(__file__).parents[2] / "depi" / "train.py")]
DEPI = [sys.executable, "-m", "depi.cli"]
COUNT = 3


@dataclass(frozen=True)
class Workplace:
    """Datasets `user/so101_N`, a policy `user/policy` and a value function `user/value` on a Hub.

    hub: with all of it.
    data_ids: a folder with a list of the datasets.
    run: a finished training, the one of the policy.
    annotations: sidecars of the datasets.
    """

    hub: LocalHub
    data_ids: Path
    run: Path
    annotations: Path


@dataclass(frozen=True)
class Task:
    """One command.

    command: workplace, the folder to write to -> what to start.
    result: of what it wrote to that folder, or to the Hub under the folder's name.
    """

    command: Callable[[Workplace, Path], list[str]]
    result: Callable[[Workplace, Path], Any]


def set_up(hub: LocalHub, folder: Path) -> Workplace:
    """Publish what the tasks need; the environment must name the Hub."""
    ids = [f"user/so101_{number}" for number in range(COUNT)]
    for number, repo_id in enumerate(ids):
        recording = Recording(lengths=(24, 20, 22), seed=number)
        root = (write_v3 if number % 2 else write_v2)(folder / f"recorded_{number}", recording)
        card = json.dumps({"license": "apache-2.0", "tags": ["LeRobot", "so101"]})
        (root / "README.md").write_text(f"---\n{card}\n---\n")
        upload_folder(root, repo_id, repo_type="dataset", commit_message="Record")
    work = Workplace(hub, folder / "data_ids", folder / "run", folder / "annotations")
    write_json(work.data_ids / "dataset_list_valid.json", ids)
    assert train(_train(work, work.run)[len(TRAIN) :]) == 0
    assert cli.main(["upload", str(work.run), "user/policy"]) == 0
    upload_folder(save_small_value(folder / "value"), "user/value", repo_type="model", commit_message="Train")
    assert cli.main(_annotate(work, work.annotations)[len(DEPI) :]) == 0
    assert cli.main(_push(work, work.annotations)[len(DEPI) :]) == 0
    return work


def undisturbed(work: Workplace, name: str, out: Path) -> Any:
    """What a task makes in this process."""
    task = TASKS[name]
    command = task.command(work, out)
    run, words = (train, TRAIN) if command[: len(TRAIN)] == TRAIN else (cli.main, DEPI)
    assert run(command[len(words) :]) == 0
    return task.result(work, out)


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The variables of a process that has caches of its own in a folder."""
    own = {"HF_HOME": str(folder / "hf"), "DEPI_CACHE": str(folder / "depi"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own, **more}


def start(command: list[str], variables: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a command in a group of its own, whose number is its process id."""
    return subprocess.Popen(
        command,
        env=dict(variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    """Wait for its end; the status, and what it printed as error output."""
    _, said = process.communicate(timeout=seconds)
    return process.returncode, said


def drafts(*folders: Path) -> list[str]:
    """What is there of half written files, in folders and below."""
    names = (".*.tmp", "*.incomplete", ".*.annotating")
    return [str(path) for folder in folders for name in names for path in folder.rglob(name)]


def _collect(work: Workplace, out: Path) -> list[str]:
    ids = work.data_ids / "dataset_list_valid.json"
    return [*DEPI, "collect-ids", f"--data_ids={out}", f"--repo_ids={ids}", "--workers=2"]


def _collected(work: Workplace, out: Path) -> Any:
    names = [each.name for each in fields(Row) if each.name != "checked_at"]
    rows = [{name: getattr(row, name) for name in names} for row in read_rows(out)]
    return rows, {path.name: path.read_bytes() for path in out.glob("*.json")}


def _annotate(work: Workplace, out: Path) -> list[str]:
    ids = work.data_ids / "dataset_list_valid.json"
    return [*DEPI, "annotate", "--backend=rules", f"--repo_ids={ids}", f"--annotations={out}"]


def _annotated(work: Workplace, out: Path) -> Any:
    tables = {str(path.relative_to(out)): pq.read_table(path).to_pylist() for path in out.glob("*/*.parquet")}
    journals = {name: read_results(out, name.removesuffix(".parquet")) for name in tables}
    counts = {name: len(journal.everything) for name, journal in journals.items()}
    return tables, counts


def _prepare(work: Workplace, out: Path) -> list[str]:
    flags = ["--image_size=96", "--workers=1", f"--num_datasets={COUNT}"]
    return [*DEPI, "prepare", f"--dataset.data_ids={work.data_ids}", f"--output_dir={out}", *flags]


def _prepared(work: Workplace, out: Path) -> Any:
    found = (path for path in out.rglob("*") if path.is_file() and path.name != "report.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in found}


def _train(work: Workplace, out: Path) -> list[str]:
    begun = (out / "checkpoints" / "last").exists()
    if begun:
        return [*TRAIN, "--resume=true", f"--output_dir={out}"]
    if out.exists():
        shutil.rmtree(out)  # as the message says, a run without a checkpoint begins anew
    more = [f"--num_datasets={COUNT}", "--steps=12", "--save_freq=2", "--keep_last=2", "--batch_size=2"]
    return [*TRAIN, *small_training(work.data_ids, out), *more]


def _trained(work: Workplace, out: Path) -> Any:
    return weights(out), losses(out), sorted(os.listdir(out / "checkpoints"))


def _evaluate(work: Workplace, out: Path) -> list[str]:
    small = ["--env.episode_length=4", "--eval.n_episodes=4", "--eval.n_videos=2", "--eval.batch_size=1"]
    return [*DEPI, "eval", "--policy.path=user/policy", "--policy.device=cpu", f"--output_dir={out}", *small]


def _evaluated(work: Workplace, out: Path) -> Any:
    result = json.loads((out / "eval.json").read_text())
    episodes = [{**one, "seconds": None} for one in result.pop("episodes")]
    result = {key: value for key, value in result.items() if key not in ("timing", "checkpoint")}
    pictures = [*out.rglob("*.mp4"), *out.rglob("*.png")]
    return result, episodes, {str(path.relative_to(out)): path.read_bytes() for path in pictures}


def _advantage(work: Workplace, out: Path) -> list[str]:
    data = [f"--dataset.data_ids={work.data_ids}", f"--num_datasets={COUNT}", "--dataset.assume_success=true"]
    flags = ["--policy.path=user/value", "--policy.device=cpu", "--workers=1", "--part_frames=16"]
    return [*DEPI, "advantage", *flags, *data, "--look_ahead=8", f"--output_dir={out}"]


def _advantages(work: Workplace, out: Path) -> Any:
    summary = json.loads((out / "advantages.json").read_text())
    summary["value"].pop("folder")
    tables = {path.name: pq.read_table(path).to_pydict() for path in out.glob("user/*.parquet")}
    return summary, {
        name: {key: str(value) for key, value in table.items()} for name, table in tables.items()
    }


def _upload(work: Workplace, out: Path) -> list[str]:
    return [*DEPI, "upload", str(work.run), f"user/{out.name}", "--all"]


def _push(work: Workplace, out: Path) -> list[str]:
    flags = ["--push", f"--annotations={work.annotations}", f"--repo_id=user/{out.name}"]
    return [*DEPI, "annotate", "export", *flags]


def _published(repo_type: str) -> Callable[[Workplace, Path], Any]:
    def result(work: Workplace, out: Path) -> Any:
        api = HfApi(endpoint=work.hub.endpoint, token=work.hub.write_token)
        repo_id = f"user/{out.name}"
        tree = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type)
        files = {entry.path: entry.blob_id for entry in tree if hasattr(entry, "blob_id")}
        files.pop("README.md", None)  # it names the repository
        return files, [tag.name for tag in api.list_repo_refs(repo_id, repo_type=repo_type).tags]

    return result


def _pull(work: Workplace, out: Path) -> list[str]:
    return [*DEPI, "annotate", "export", "--pull", f"--annotations={out}", "--repo_id=user/annotations"]


TASKS: Mapping[str, Task] = {
    "collect-ids": Task(_collect, _collected),
    "annotate": Task(_annotate, _annotated),
    "prepare": Task(_prepare, _prepared),
    "train": Task(_train, _trained),
    "eval": Task(_evaluate, _evaluated),
    "advantage": Task(_advantage, _advantages),
    "upload": Task(_upload, _published("model")),
    "push": Task(_push, _published("dataset")),
    "pull": Task(_pull, _annotated),
}
