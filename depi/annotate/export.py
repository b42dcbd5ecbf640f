"""`depi annotate export`: publish a folder of annotations as a dataset repository, or download one."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from depi.annotate import episode_journal as store
from depi.annotate.pull import SUFFIXES, pull
from depi.annotate.stats import count
from depi.catalog.text import in_markdown
from depi.datasets.recording.addresses import is_address
from depi.datasets.samples.annotations import annotation_path
from depi.errors import UserError
from depi.files import draft_folder, write_text
from depi.flags import parse_flags
from depi.hub.names import is_repo_id
from depi.journal import LineFile


@dataclass
class ExportConfig:
    """Publish annotations on the Hub, or download published ones: `--push` or `--pull`.

    A push is one commit: the sidecars, where they come from, their journals and a dataset card. A pull
    does not replace sidecars that were reviewed here, unless `--overwrite`.
    """

    # The folder of the sidecars.
    annotations: Path = Path("so100_data/annotations")
    # The dataset repository, USER/NAME.
    repo_id: str = ""
    # Publish what the folder holds.
    push: bool = False
    # Download what the repository holds into the folder.
    pull: bool = False
    # Make a repository that the push creates private.
    private: bool = False
    # Branch, tag or commit to pull, by default the newest.
    revision: str | None = None
    # Let a pull replace annotations that were reviewed here.
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.push == self.pull:
            raise UserError("depi annotate export needs either --push or --pull")
        if not is_repo_id(self.repo_id):
            raise UserError(f"--repo_id must be USER/NAME, got {self.repo_id!r}")
        wrong = ["--private"] * (self.pull and self.private)
        wrong += ["--overwrite"] * (self.push and self.overwrite)
        wrong += ["--revision"] * (self.push and self.revision is not None)
        if wrong:
            raise UserError(f"{wrong[0]} does not go with {'--push' if self.push else '--pull'}")


def main(args: list[str]) -> int:
    """Run `depi annotate export`; returns the exit status."""
    config = parse_flags(ExportConfig, args, "depi annotate export")
    if config.push:
        commit, number = push(config.annotations, config.repo_id, private=config.private)
        print(f"pushed the annotations of {number} datasets to {config.repo_id} at {commit}")
        return 0
    pulled = pull(config.annotations, config.repo_id, revision=config.revision, overwrite=config.overwrite)
    print(
        f"pulled the annotations of {len(pulled.new)} datasets from {config.repo_id} at {pulled.commit} into "
        f"{config.annotations}; replaced those of {len(pulled.replaced)}, {len(pulled.same)} were the same"
    )
    for name, reason in pulled.refused.items():
        print(f"not taken: {name}: {reason}")
    return 3 if pulled.refused else 0


def push(folder: Path, repo_id: str, *, private: bool = False) -> tuple[str, int]:
    """Publish the sidecars of a folder in one commit; return the commit and the number of datasets.

    Raises:
        UserError: there is nothing to publish, or a sidecar is damaged.
        HubError: the Hub refuses or cannot be reached.
    """
    from depi.hub.client import api as client

    client.require_token()
    numbers = count(folder)
    if numbers["damaged"]:
        name, reason = next(iter(numbers["damaged"].items()))
        raise UserError(f"the sidecar of {name} is damaged and is not published: {reason}")
    names = [name for name in store.annotated_datasets(folder) if annotation_path(folder, name).exists()]
    names = [name for name in names if not is_address(name)]  # of buckets nobody else knows
    if not names:
        raise UserError(f"{folder} holds no sidecars: `depi annotate` writes them")
    with draft_folder(folder / "export") as work:
        for name in names:
            _copy_for_push(folder, work, name)
        write_text(work / "README.md", card(repo_id, names, numbers))
        commit = client.upload_folder(
            work,
            repo_id,
            repo_type="dataset",
            commit_message=f"Add annotations of {len(names)} datasets",
            private=private,
        )
    return commit, len(names)


def _copy_for_push(folder: Path, work: Path, name: str) -> None:
    """Copy a dataset's three files in a consistent state: the journal is locked meanwhile."""
    journal = store.journal_path(folder, name)
    if journal.exists():
        with LineFile(journal, wait=True):
            _copy(folder, work, name)
    else:
        _copy(folder, work, name)


def _copy(folder: Path, work: Path, name: str) -> None:
    for suffix in SUFFIXES:
        source = annotation_path(folder, name).with_suffix(suffix)
        if source.exists():
            target = work / source.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def card(repo_id: str, names: Sequence[str], numbers: dict) -> str:
    """The README.md of a repository of annotations.

    Args:
        repo_id: of the repository.
        names: of the annotated datasets.
        numbers: as `depi.annotate.stats.count` gives them.
    """
    from huggingface_hub import DatasetCardData

    data = DatasetCardData(
        pretty_name=f"Annotations of {len(names)} LeRobot datasets",
        tags=["robotics", "depi", "annotations"],
        task_categories=["robotics"],
        configs=[{"config_name": "default", "data_files": "*/**/*.parquet"}],
    )
    episodes = numbers["episodes"]
    models = ", ".join(f"{in_markdown(name, 200)} ({number:,})" for name, number in numbers["models"].items())
    lines = [
        *("---", data.to_yaml(), "---", ""),
        f"# {repo_id}",
        "",
        f"Task instructions and camera views for {len(names)} LeRobot datasets, {episodes['all']:,} "
        "episodes, as sidecars: the datasets themselves are not part of this repository, nor changed.",
        "",
        f"- Episodes with a new instruction: {episodes['with_task']:,}; with the recorded one: "
        f"{episodes['kept_recorded']:,}; reviewed by a person: {episodes['reviewed']:,}.",
        f"- Written by (episodes): {models or 'not recorded'}.",
        "",
        "`USER/NAME.parquet` has a row per episode of the dataset USER/NAME: the recorded task, the new "
        "one, the view of each camera, flags and a confidence. `USER/NAME.json` names the revision that was "
        "annotated, the model and the prompts; `USER/NAME.jsonl` is everything that was found out.",
        "",
        "Use them in training with DePi:",
        "",
        "```",
        f"depi annotate export --pull --repo_id={repo_id}",
        "accelerate launch depi/train.py --dataset.use_annotated_tasks=true ...",
        "```",
        "",
    ]
    return "\n".join(lines)
