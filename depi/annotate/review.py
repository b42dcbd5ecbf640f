"""`depi annotate review`: judge new texts beside the recorded ones and the frames that the model saw."""

import base64
import secrets
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from depi.annotate.episode_journal import (
    VERDICTS,
    Journal,
    Review,
    annotated_datasets,
    append,
    now,
    read_results,
)
from depi.annotate.sidecar import rows_of, typed, write_sidecar
from depi.datasets.recording.addresses import check_dataset_name
from depi.datasets.samples.annotations import MAX_TEXT, EpisodeAnnotation, check_text
from depi.errors import UserError
from depi.flags import check_ranges, parse_flags
from depi.page import document

PAGE_PIXELS = 24_000
"""Of a picture on the page: about 180 by 135, 6 kB."""
SCRIPTS = ("review.js",)

Key = tuple[str, int]
"""(repo_id, episode)"""
Pictures = Mapping[Key, Sequence[tuple[str, int, bytes]]]
"""(camera, number of the frame, JPEG) of an episode"""


@dataclass
class ReviewConfig:
    """Write annotations as one web page that needs no network: recorded and new texts beside the frames that
    the model saw. With `--serve` the page is served to this machine only and can accept, reject and edit;
    each decision is written to the sidecar at once.
    """

    # The folder of the sidecars.
    annotations: Path = Path("so100_data/annotations")
    # Only this dataset.
    repo_id: str | None = None
    # Its local folder, where it was annotated from one.
    root: Path | None = None
    # The page, by default review.html in --annotations.
    output: Path | None = None
    # Serve the page instead of writing it, and save decisions.
    serve: bool = False
    # The port for --serve; 0 takes any free one.
    port: int = 0
    # More names that the browser may call the server by, without ports: '["review.lab.org"]'.
    allowed_hosts: list[str] = field(default_factory=list)
    # The largest number of episodes: undecided ones first, of these the least confident first.
    max_episodes: int = 300
    # Images are put into the page up to this many megabytes.
    max_picture_mb: float = 64.0

    def __post_init__(self) -> None:
        check_ranges(self, max_episodes=(1, None), max_picture_mb=(0, None))
        if self.repo_id is not None:
            self.repo_id = check_dataset_name(self.repo_id)
        if self.root is not None and self.repo_id is None:
            raise ValueError("--root needs --repo_id: name the dataset in that folder")
        if self.serve and self.output is not None:
            raise ValueError("--output does not go with --serve: a served page is not written")


@dataclass
class Selection:
    """The episodes of a page.

    keys: in the order of the page
    left_out: how many more there are
    frames: of each episode, camera -> numbers of the frames that the model saw; empty where it saw none
    revisions: of the datasets, as annotated
    """

    keys: list[Key] = field(default_factory=list)
    left_out: int = 0
    frames: dict[Key, Mapping[str, Sequence[int]]] = field(default_factory=dict)
    revisions: dict[str, str | None] = field(default_factory=dict)


def main(args: list[str]) -> int:
    """Run `depi annotate review`; returns the exit status."""
    config = parse_flags(ReviewConfig, args, "depi annotate review", ["annotations"])
    chosen = select(config.annotations, config.repo_id, config.max_episodes)
    pictures, without = take_pictures(chosen, config.root, config.max_picture_mb * 1e6)
    if config.serve:
        return serve(config, chosen, pictures, without)
    output = config.output or config.annotations / "review.html"
    page = render(config.annotations, chosen, pictures, without=without, command=serve_command(config))
    document.write(output, page, f"{len(chosen.keys)} episodes")
    return 0


def serve_command(config: ReviewConfig) -> str:
    """The command that serves the page, so that decisions can be saved."""
    names = ("annotations", "repo_id", "root")
    flags = [f"--{name}={value}" for name in names if (value := getattr(config, name))]
    return shlex.join(["depi", "annotate", "review", "--serve", *flags])


def select(folder: Path, repo_id: str | None, max_episodes: int) -> Selection:
    """Choose the episodes of a page: undecided ones first, of these the least confident first.

    Raises:
        UserError: there is nothing to review.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder} of annotations: `depi annotate` writes one")
    chosen, order = Selection(), []
    for name in [repo_id] if repo_id is not None else annotated_datasets(folder):
        journal = read_results(folder, name)
        chosen.revisions[name] = journal.revision
        for row in rows_of(journal):
            key = (name, row.episode_index)
            result = journal.results.get(row.episode_index)
            chosen.frames[key] = {} if result is None else result.frames
            # Results of rules have no confidence; the texts that they dropped come first.
            unsure = float(row.task is not None) if row.confidence is None else row.confidence
            order.append((row.episode_index in journal.reviews, unsure, key))
        for episode in journal.failures.keys() - set(typed(journal)):
            chosen.frames[name, episode] = {}
            order.append((False, 2.0, (name, episode)))
    if not order:
        of = f"of {repo_id} " if repo_id is not None else ""
        raise UserError(f"{folder} has no annotations {of}to review: `depi annotate` writes them")
    order.sort()
    chosen.keys = [key for _, _, key in order[:max_episodes]]
    chosen.left_out = len(order) - len(chosen.keys)
    return chosen


def take_pictures(chosen: Selection, root: Path | None, max_bytes: float) -> tuple[Pictures, int]:
    """The frames that the model saw, decoded again, and the number of episodes whose frames are left out."""
    from depi.annotate.review_frames import load_frames

    pictures: dict[Key, list[tuple[str, int, bytes]]] = {}
    for key, images in load_frames(chosen.keys, chosen.frames, chosen.revisions, root, PAGE_PIXELS):
        size = sum(len(jpeg) for _, _, jpeg in images)
        if size > max_bytes:
            break
        max_bytes -= size
        pictures[key] = images
    return pictures, len(chosen.keys) - len(pictures)


def render(
    folder: Path,
    chosen: Selection,
    pictures: Pictures,
    *,
    without: int = 0,
    command: str = "",
    token: str | None = None,
) -> str:
    """Return the page, with the annotations as they are now.

    Args:
        folder: of the annotations.
        chosen: which episodes.
        pictures: of these.
        without: how many have no pictures.
        command: shown where nothing can be saved.
        token: with which the page may save; None for a page to read.
    """
    rows = []
    known = {name: _page_rows(folder, name) for name in dict.fromkeys(name for name, _ in chosen.keys)}
    for name, episode in chosen.keys:
        row = known[name].get(episode)
        if row is not None:
            seen = [
                [camera, frame, base64.b64encode(jpeg).decode()]
                for camera, frame, jpeg in pictures.get((name, episode), ())
            ]
            rows.append({**row, "pictures": seen})
    data = {
        "written_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "left_out": chosen.left_out,
        "pictures_left_out": without,
        "max_text": MAX_TEXT,
        "command": command,
        "save": token and {"token": token},
        "rows": rows,
    }
    return document.render(
        data,
        package="depi.annotate",
        name="review",
        scripts=SCRIPTS,
        title="Review of annotations",
        about="annotations",
        skip_to="episodes",
        may_save=token is not None,
    )


def _page_rows(folder: Path, repo_id: str) -> dict[int, dict[str, Any]]:
    """Episode -> what the page shows of it."""
    journal = read_results(folder, repo_id)
    found = {row.episode_index: _page_row(repo_id, row, journal) for row in rows_of(journal)}
    for episode in journal.failures.keys() - found.keys():
        failure = journal.failures[episode]
        found[episode] = {
            **dict.fromkeys(("task", "proposed", "confidence", "review")),
            **{"repo_id": repo_id, "episode": episode, "recorded": failure.recorded, "views": []},
            **{"status": "failed", "flags": [f"failed: {failure.reason}"]},
        }
    return found


def _page_row(repo_id: str, row: EpisodeAnnotation, journal: Journal) -> dict[str, Any]:
    result = journal.results.get(row.episode_index)
    review = next((flag for flag in reversed(row.flags) if flag in VERDICTS), None)
    return {
        "repo_id": repo_id,
        "episode": row.episode_index,
        "recorded": row.original_task or "",
        "proposed": None if result is None else result.proposed,
        "task": row.task,
        "confidence": None if row.confidence is None else round(row.confidence, 4),
        "flags": [flag for flag in row.flags if flag not in VERDICTS],
        "status": "annotated" if row.task is not None else "kept recorded",
        "views": list(map(list, row.camera_views.items())),
        "review": review,
    }


def decide(folder: Path, repo_ids: Iterable[str], decision: Mapping[str, Any]) -> dict[str, Any]:
    """Keep a person's decision in the journal, and write the sidecar; return the row as the page shows it.

    Args:
        folder: of the annotations.
        repo_ids: about which decisions are accepted.
        decision: `repo_id`, `episode`, `verdict` and `task`, from a page and not yet checked.

    Raises:
        UserError: there is no such episode, the text has changed meanwhile, or the decision is not valid.
        DatasetError: the text of an edit is too long or not printable.
    """
    repo_id, episode, verdict, text = (decision.get(k) for k in ("repo_id", "episode", "verdict", "task"))
    known = isinstance(repo_id, str) and repo_id in set(repo_ids)
    if not known or isinstance(episode, bool) or not isinstance(episode, int):
        raise UserError("there is no such episode on this page")
    if verdict not in VERDICTS or not isinstance(text, str | None):
        raise UserError("this is not a valid decision")
    assert isinstance(repo_id, str)
    text = check_text(text, "the text")
    journal = read_results(folder, repo_id)
    result = journal.results.get(episode)
    if verdict == "edited":
        if text is None:
            raise UserError("an edit needs a text; to use none, reject it")
        if result is None and episode not in journal.failures:
            raise UserError(f"episode {episode} of {repo_id} was not annotated")
    elif result is None and verdict == "rejected" and episode in typed(journal):
        text = journal.reviews[episode].task
    elif result is None:
        raise UserError(f"episode {episode} of {repo_id} has no annotation to decide about")
    elif verdict == "accepted":
        now_shown = next(row.task for row in rows_of(journal) if row.episode_index == episode)
        if text is None or text not in (now_shown, result.proposed):
            raise UserError("the text has changed meanwhile: load the page again")
    else:
        text = result.proposed
    append(folder, repo_id, Review(episode, verdict, text, journal.revision, now()))
    write_sidecar(folder, repo_id)
    return _page_rows(folder, repo_id)[episode]


def serve(config: ReviewConfig, chosen: Selection, pictures: Pictures, without: int) -> int:
    """Serve the page until SIGINT or SIGTERM; returns the exit status."""
    from depi.serving import listen, make_server, own_names, stop_on_signals

    with listen("127.0.0.1", config.port, "depi annotate review") as sock:
        token = secrets.token_urlsafe(24)
        port = sock.getsockname()[1]
        app = make_app(config.annotations, token, chosen, pictures, without)
        server = make_server(app, [*own_names("127.0.0.1", sock), *config.allowed_hosts])
        stop_on_signals(server)
        print(f"{len(chosen.keys)} episodes at http://127.0.0.1:{port}/?token={token}")
        print("Each decision is saved at once. Press Ctrl-C to stop.", flush=True)
        server.run([sock])
    print("Review ended.")
    return 0


def make_app(folder: Path, token: str, chosen: Selection, pictures: Pictures, without: int = 0) -> Any:
    """The application that serves a page and saves what is decided on it; see `review_server.build_app`."""
    from depi.annotate.review_server import build_app

    repo_ids = {name for name, _ in chosen.keys}
    return build_app(
        token,
        page=lambda: render(folder, chosen, pictures, without=without, token=token),
        save=lambda decision: decide(folder, repo_ids, decision),
    )
