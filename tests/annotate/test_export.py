from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_annotations import HAND, REVISION, TOP, failure, result, write

from depi.annotate.episode_journal import Review, append, claim, journal_path, read_results, release
from depi.annotate.export import main
from depi.annotate.pull import MAX_BYTES, choose, pull
from depi.datasets.samples.annotations import (
    SCHEMA,
    AnnotatedEpisodes,
    EpisodeAnnotation,
    read_annotations,
    write_annotations,
)
from depi.errors import UserError
from depi.hub.client import api as client
from depi.hub.server.cards import parse_card
from tests.helpers.training_set import training_set

REPO = "curator/annotations"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    edited = Review(1, "edited", "Lift the red cube.", REVISION)
    write(folder, "ann/one", result(0), result(1), failure(2, "refused"), edited)
    write(folder, "bob/many:inner/v1.5", result(0, model="x`y"))
    return folder


def commit(folder: Path, repo_id: str, files: dict[str, bytes], work: Path) -> str:
    for name, content in files.items():
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return client.upload_folder(work, repo_id, repo_type="dataset", commit_message="Add")


def test_what_is_pushed_is_pulled_elsewhere(hub, folder: Path, tmp_path: Path, capsys):
    assert main(["--push", f"--repo_id={REPO}", f"--annotations={folder}", "--private"]) == 0
    assert "pushed the annotations of 2 datasets" in capsys.readouterr().out
    info = client.repo_info(REPO)
    assert info.private
    other = tmp_path / "other"
    assert main(["--pull", f"--repo_id={REPO}", f"--annotations={other}"]) == 0
    assert f"annotations of 2 datasets from {REPO} at {info.sha}" in capsys.readouterr().out
    for name in ("ann/one", "bob/many:inner/v1.5"):
        assert read_annotations(other, name) == read_annotations(folder, name)
        assert read_results(other, name) == read_results(folder, name)
    # As training reads them.
    annotated = AnnotatedEpisodes(training_set({"ann/one": [0, 1]}, revisions=[REVISION]), other)
    assert annotated.task(1) == "Lift the red cube."
    assert annotated.views(0) == {TOP: "top", HAND: "wrist"}
    assert annotated.other_revision == []
    assert not [path for path in [*folder.iterdir(), *other.iterdir()] if path.name.startswith(".")]
    again = pull(other, REPO)
    assert (again.new, again.replaced, again.same) == ((), (), ("ann/one", "bob/many:inner/v1.5"))


def test_a_pull_leaves_alone_what_is_being_annotated(hub, folder: Path, tmp_path: Path, capsys):
    main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])
    other = tmp_path / "other"
    claimed = claim(other, "ann/one")
    assert main(["--pull", f"--repo_id={REPO}", f"--annotations={other}"]) == 3
    assert "not taken: ann/one: another depi annotate works on ann/one" in capsys.readouterr().out
    assert not journal_path(other, "ann/one").exists()
    assert read_annotations(other, "bob/many:inner/v1.5")
    release(claimed)
    assert pull(other, REPO).new == ("ann/one",)
    assert not list(other.rglob(".*"))


def test_a_push_is_one_commit_with_a_card(hub, folder: Path):
    assert main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"]) == 0
    readme = client.download_file(REPO, "README.md", revision="main").read_text()
    card = parse_card(readme)
    assert "LeRobot" not in card["tags"], "it is no recording: `depi collect-ids` looks for that tag"
    assert "4 episodes" in readme
    assert "reviewed by a person: 1." in readme
    assert "`openai:x'y` (1)" in readme, "a model's name does not leave its code span"
    files = {file.rfilename for file in client.repo_info(REPO).siblings}
    names = ("ann/one", "bob/many:inner/v1.5")
    assert files - {".gitattributes"} == {
        "README.md",
        *(f"{name}.{suffix}" for name in names for suffix in ("parquet", "json", "jsonl")),
    }
    from huggingface_hub import HfApi

    titles = [entry.title for entry in HfApi(hub.endpoint).list_repo_commits(REPO, repo_type="dataset")]
    assert sum("Add annotations" in title for title in titles) == 1


def test_what_was_reviewed_here_is_not_replaced_silently(hub, folder: Path, tmp_path: Path):
    main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])
    other = tmp_path / "other"
    mine = Review(0, "edited", "Raise the red cube.", REVISION)
    write(other, "ann/one", result(0), mine)
    write(other, "bob/many:inner/v1.5", result(0, task="Touch it.", proposed="Touch it."))
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"of 1 datasets were reviewed here .*: ann/one; .*--overwrite"):
        main(["--pull", f"--repo_id={REPO}", f"--annotations={other}"])
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    pulled = pull(other, REPO, overwrite=True)
    assert pulled.replaced == ("ann/one", "bob/many:inner/v1.5")
    assert read_annotations(other, "ann/one") == read_annotations(folder, "ann/one")
    assert read_results(other, "ann/one").reviews[1].task == "Lift the red cube."


def test_a_review_of_an_earlier_revision_and_one_made_meanwhile_are_kept(
    hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])
    other, mine = tmp_path / "other", Review(0, "edited", "Raise the red cube.", "b" * 40)
    write(other, "ann/one", result(0, revision="b" * 40), mine, result(0, task="Touch it."))
    with pytest.raises(UserError, match="annotations of 1 datasets were reviewed here"):
        pull(other, REPO)
    journal_path(other, "ann/one").unlink()
    write(other, "ann/one", result(0, task="Touch it."))

    def decide(folder: Path, name: str):
        append(folder, name, Review(0, "edited", "Raise the red cube.", REVISION))
        return claim(folder, name)

    monkeypatch.setattr("depi.annotate.episode_journal.claim", decide)
    pulled = pull(other, REPO)
    assert pulled.refused["ann/one"] == "it has been reviewed here since; --overwrite replaces that"
    assert read_results(other, "ann/one").reviews[0].task == "Raise the red cube."


def test_a_journal_that_a_kill_left_without_a_sidecar_is_replaced(hub, folder: Path, tmp_path: Path):
    main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])
    other = tmp_path / "other"
    append(other, "ann/one", result(0, task="Touch it."))
    pulled = pull(other, REPO)
    assert (pulled.new, pulled.replaced) == (("bob/many:inner/v1.5",), ("ann/one",))


def parquet(rows: list[EpisodeAnnotation], tmp_path: Path) -> bytes:
    return write_annotations(tmp_path / "made", "x/y", rows, {}).read_bytes()


def test_hostile_repositories(hub, tmp_path: Path, capsys):
    good = parquet([EpisodeAnnotation(0, "x", "Wipe the table.")], tmp_path)
    wrong = pa.BufferOutputStream()
    pq.write_table(pa.table({"episode_index": [0]}, pa.schema([SCHEMA.field(0)])), wrong)
    line = journal_path(tmp_path / "made", "x/z")
    write(tmp_path / "made", "x/z", result(0))
    kept = line.read_text()
    files = {
        "good/fine.parquet": good,
        "good/fine.json": b'{"revision": "r"}',
        "bad/columns.parquet": wrong.getvalue().to_pybytes(),
        "bad/bytes.parquet": b"PAR1 and nothing else",
        "bad/control.parquet": parquet([EpisodeAnnotation(0, "x", "Turn \x1b[31m it.")], tmp_path),
        "bad/nan.parquet": good,
        "bad/nan.json": b'{"revision": NaN}',
        "bad/json.parquet": good,
        "bad/json.json": b"[" * 5000,
        "bad/journal.parquet": good,
        "bad/journal.jsonl": b'{"kind": "result"}\n',
        "bad/types.parquet": good,
        "bad/types.jsonl": kept.replace('"tokens": {"prompt": 1000', '"tokens": {"prompt": "x"').encode(),
        "bad/model.parquet": good,
        "bad/model.jsonl": kept.replace("some/vlm", "\\u001b]0;vlm").encode(),
        "bad/revision.parquet": good,
        "bad/revision.jsonl": kept.replace("a" * 40, "a\\u0007").encode(),
        "bad/text.parquet": good,
        "bad/text.jsonl": kept.replace("Pick up", "Pick\\u0000up").encode(),
        "too/deep/for.parquet": good,
        "loose.parquet": good,
        "lonely/only.json": b"{}",
        "-rf/name.parquet": good,
        "script/run.py": b"raise SystemExit",
        "README.md": b"# Some annotations\n",
    }
    commit(tmp_path, REPO, files, tmp_path / "work")
    other = tmp_path / "other"
    assert main(["--pull", f"--repo_id={REPO}", f"--annotations={other}"]) == 3
    shown = capsys.readouterr().out
    for name, reason in {
        "bad/columns": "has no column",
        "bad/bytes": "cannot be read",
        "bad/control": "is not printable",
        "bad/nan": "cannot be written again",
        "bad/json": "json.json cannot be read",
        "bad/journal": "the journal is damaged",
        "bad/types": "the journal is damaged: tokens is",
        "bad/model": "is not printable",
        "bad/revision": "is not printable",
        "bad/text": "is not printable",
        "too/deep/for.parquet": "its name is not of the form USER/NAME",
        "loose.parquet": "its name is not of the form USER/NAME",
        "-rf/name.parquet": "its name is not of the form USER/NAME",
    }.items():
        assert any(name in row and reason in row for row in shown.splitlines()), (name, shown)
    assert "lonely" not in shown
    assert sorted(path.relative_to(other).as_posix() for path in other.rglob("*") if path.is_file()) == [
        "good/fine.json",
        "good/fine.parquet",
    ]
    assert read_annotations(other, "good/fine") == (
        [EpisodeAnnotation(0, "x", "Wipe the table.")],
        {"revision": "r"},
    )


def test_sizes_are_looked_at_before_anything_is_fetched():
    wanted, refused = choose({"a/b.parquet": 10, "a/b.jsonl": MAX_BYTES[".jsonl"] + 1, "a/c.parquet": 10})
    assert wanted == ["a/c.parquet"]
    assert "at most" in refused["a/b.jsonl"]
    with pytest.raises(UserError, match=r"256 files of 17.2 GB are annotations: at most"):
        choose({f"a/b{number}.parquet": MAX_BYTES[".parquet"] for number in range(256)})


def test_damaged_sidecars_are_not_published(hub, folder: Path):
    (folder / "ann/one.parquet").write_bytes(b"no")
    with pytest.raises(UserError, match="the sidecar of ann/one is damaged and is not published"):
        main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])


def test_errors_name_the_remedy(hub, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no sidecars: `depi annotate` writes them"):
        main(["--push", f"--repo_id={REPO}", f"--annotations={tmp_path / 'empty'}"])
    with pytest.raises(UserError, match="there is no folder"):
        main(["--push", f"--repo_id={REPO}", f"--annotations={tmp_path / 'none'}"])
    commit(tmp_path, REPO, {"README.md": b"#"}, tmp_path / "work")
    with pytest.raises(UserError, match=f"{REPO} holds no annotations"):
        pull(tmp_path / "other", REPO)
    for flags, says in {
        (): "either --push or --pull",
        ("--push", "--pull"): "either --push or --pull",
        ("--push", "--repo_id=nobody"): "--repo_id must be USER/NAME",
        ("--push", f"--repo_id={REPO}", "--overwrite"): "--overwrite does not go with --push",
        ("--pull", f"--repo_id={REPO}", "--private"): "--private does not go with --pull",
    }.items():
        with pytest.raises(UserError, match=says):
            main(list(flags))


def test_a_push_needs_a_token_first(hub, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(client.TokenMissing):
        main(["--push", f"--repo_id={REPO}", f"--annotations={folder}"])
