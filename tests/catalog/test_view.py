import shutil
import time
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recordings
from huggingface_hub import HfApi

from depi.catalog import view
from depi.catalog.episode_video import TITLE_HEIGHT, tile_sizes
from depi.catalog.view import ViewConfig, file_name, main, why_no_viewer
from depi.errors import UserError

RECORDING = recordings.Recording(
    lengths=(7, 12), size=(64, 64), tasks=("pick the $\\frac cube", "drop the <b>cube</b> 把方块放下")
)


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("recordings")
    return {
        "v2.0": recordings.write_v2(folder / "v20", RECORDING, "v2.0"),
        "v2.1": recordings.write_v2(folder / "v21", RECORDING, "v2.1"),
        "v3.0": recordings.write_v3(folder / "v30", RECORDING),
        "images": recordings.write_v3(folder / "images", RECORDING, use_videos=False),
    }


def decode(path: Path) -> tuple[list[np.ndarray], float]:
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)], float(rate)


def camera_numbers(image: np.ndarray) -> list[int]:
    """The numbers in the two cameras, which stand in the middle of the upper part."""
    left = image.shape[1] // 2 - 64
    return [recordings.number_in(image[:64, x : x + 64].transpose(2, 0, 1)) for x in (left, left + 64)]


def cursor(image: np.ndarray) -> list[int]:
    """The columns of the curves in which the cursor stands."""
    chart = image[64 + TITLE_HEIGHT :].astype(int)
    red = (chart[..., 0] - chart[..., 1] > 40) & (chart[..., 0] - chart[..., 2] > 40)
    return np.flatnonzero(red.sum(axis=0) > 100).tolist()


@pytest.mark.parametrize("kind", ["v2.0", "v2.1", "v3.0", "images"])
def test_mp4_shows_every_frame_of_the_cameras_and_moves_the_cursor(
    roots: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    output = tmp_path / "episode.mp4"
    args = ["someone/something", "--episode", "1", f"--root={roots[kind]}", "--height=64"]
    assert main([*args, f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"written to {output}\n"
    images, rate = decode(output)
    assert len(images) == 12
    assert rate == RECORDING.fps
    assert images[0].shape == (64 + TITLE_HEIGHT + 2 * 120, 720, 3)
    assert [camera_numbers(image) for image in images] == [[100 + n, 1100 + n] for n in range(12)]
    columns = [cursor(image) for image in images]
    first = [min(found) for found in columns]
    assert all(len(found) >= 3 for found in columns), "a cursor in each of the three columns of curves"
    assert np.diff(first).min() > 5
    assert np.ptp(np.diff(first)) <= 2, "in step with time"


def test_curves_are_those_of_state_and_action(roots: dict[str, Path], tmp_path: Path):
    source = view.DatasetSource("someone/something", None, roots["v2.1"])
    episode = view.read_episode(*view.find_episode(source, 1))
    action, state = RECORDING.joints(1)
    np.testing.assert_array_equal(episode.curves["action"], action)
    np.testing.assert_array_equal(episode.curves["state"], state)
    assert episode.names["action"] == tuple(recordings.NAMES)
    assert episode.title == "someone/something · episode 1 · drop the <b>cube</b> 把方块放下"


def test_from_the_hub_only_the_files_of_the_episode_are_fetched(
    hub, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    api = HfApi()
    api.create_repo("someone/arm", repo_type="dataset")
    api.upload_folder(repo_id="someone/arm", folder_path=roots["v2.1"], repo_type="dataset")
    monkeypatch.chdir(tmp_path)
    assert main(["someone/arm", "--episode=1", "--height=64"]) == 0
    reason = "LeRobot's viewer reads v3.0, this dataset is v2.1"
    assert capsys.readouterr().out == f"written to outputs/view/someone_arm_episode_000001.mp4 ({reason})\n"
    assert len(decode(tmp_path / "outputs" / "view" / "someone_arm_episode_000001.mp4")[0]) == 12
    fetched = [path.name for path in (tmp_path / "hf-home").rglob("episode_0*")]
    assert sorted(set(fetched)) == ["episode_000001.mp4", "episode_000001.parquet"]


def test_a_dataset_inside_a_collection(
    hub, roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    api = HfApi()
    api.create_repo("someone/many", repo_type="dataset")
    api.upload_folder(
        repo_id="someone/many", folder_path=roots["v2.1"], path_in_repo="ann/pick", repo_type="dataset"
    )
    monkeypatch.chdir(tmp_path)
    assert main(["someone/many:ann/pick", "--height=64"]) == 0
    assert len(decode(tmp_path / "outputs" / "view" / "someone_many_ann_pick_episode_000000.mp4")[0]) == 7


def test_recordings_without_cameras_or_names_and_of_other_robots(tmp_path: Path):
    recording = recordings.Recording(lengths=(3,), cameras=(), names=None, dim=14, tasks=("move",))
    recordings.write_v2(tmp_path / "native", recording)
    output = tmp_path / "out.mp4"
    assert main(["a/b", f"--root={tmp_path / 'native'}", f"--output={output}"]) == 0
    images, _ = decode(output)
    assert [image.shape for image in images] == [(TITLE_HEIGHT + 5 * 120, 720, 3)] * 3


def test_three_hundred_frames_take_seconds(tmp_path: Path):
    recording = recordings.Recording(lengths=(300,), size=(240, 320), fps=30)
    recordings.write_v2(tmp_path / "long", recording)
    started = time.monotonic()
    assert main(["a/b", f"--root={tmp_path / 'long'}", f"--output={tmp_path / 'out.mp4'}"]) == 0
    taken = time.monotonic() - started
    print(f"{taken:.1f} s")
    assert taken < 30
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].frames == 300


def test_the_faults_of_an_episode_are_printed_and_shaded(tmp_path: Path, capsys):
    root = recordings.write_v2(tmp_path / "data", RECORDING, "v2.1")
    file = root / "data/chunk-000/episode_000001.parquet"
    table = pq.read_table(file)
    actions = table["action"].to_pylist()
    actions[6] = [float("nan")] * 6
    column = pa.array(actions, table["action"].type)
    pq.write_table(table.set_column(table.column_names.index("action"), "action", column), file)
    out = tmp_path / "out.mp4"
    assert main(["user/data", "--episode=1", f"--root={root}", f"--output={out}", "--height=64"]) == 0
    assert "numbers_finite: the action is not a finite number in 1 of 12 frames" in capsys.readouterr().out
    whole, _ = decode(out)
    plain = tmp_path / "plain.mp4"
    assert main(["user/data", "--episode=0", f"--root={root}", f"--output={plain}", "--height=64"]) == 0
    assert whole[0].shape[0] > decode(plain)[0][0].shape[0]


def test_cameras_keep_their_shape_and_fit_the_width():
    assert tile_sizes([(480, 640), (640, 480)], 360) == [(360, 480), (360, 270)]
    assert tile_sizes([(480, 640)] * 6, 360) == [(240, 320)] * 6
    assert tile_sizes([], 360) == []


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "depi view needs a dataset"),
        (["a/b", "--episode=7"], "dataset a/b has no episode 7: it has 2, numbered 0 to 1"),
        (["a/b", "--episode=-1"], "episodes are numbered from 0"),
        (["a/b", "--height=5"], "16 to 2160 pixels are possible"),
        (["a/b", "--root=nowhere"], "dataset a/b cannot be shown: there is no folder"),
        (["a/b", "--output=/proc/nowhere/out.mp4"], "cannot write /proc/nowhere/out.mp4"),
    ],
)
def test_errors_are_one_sentence(roots: dict[str, Path], args: list[str], message: str):
    if args and not any(arg.startswith("--root") for arg in args):
        args = [*args, f"--root={roots['v2.1']}"]
    with pytest.raises(UserError, match=message):
        main(args)


def test_a_dataset_that_is_not_there(hub):
    with pytest.raises(UserError, match="nobody/nothing"):
        main(["nobody/nothing"])


def test_a_broken_video_leaves_no_file(tmp_path: Path):
    root = recordings.write_v2(tmp_path / "broken", recordings.Recording(lengths=(7,)))
    video = next(root.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:900])
    with pytest.raises(UserError, match="episode 0 of a/b cannot be shown: "):
        main(["a/b", f"--root={root}", f"--output={tmp_path / 'sub/out.mp4'}"])
    assert list((tmp_path / "sub").iterdir()) == []


def test_lerobots_viewer_is_used_where_it_can_be(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from lerobot.scripts import lerobot_dataset_viz

    saved: list[Path] = []
    real = lerobot_dataset_viz.visualize_dataset
    monkeypatch.setattr(
        lerobot_dataset_viz,
        "visualize_dataset",
        lambda dataset, episode: saved.append(real(dataset, episode, save=True, output_dir=tmp_path)),
    )
    config = ViewConfig("someone/something")
    assert "no display" in why_no_viewer(config, "v3.0")
    monkeypatch.setenv("DISPLAY", ":0")
    assert why_no_viewer(config, "v3.0") is None
    assert "reads v3.0" in why_no_viewer(config, "v2.1")
    assert "collection" in why_no_viewer(ViewConfig("someone/many:one"), "v3.0")
    assert main(["someone/something", "--episode=1", f"--root={roots['v3.0']}"]) == 0
    assert saved == [tmp_path / "someone_something_episode_1.rrd"]
    assert saved[0].stat().st_size > 10_000


def test_what_lerobots_viewer_cannot_show_names_the_way_out(
    roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DISPLAY", ":0")
    shutil.copytree(roots["v3.0"] / "meta", tmp_path / "odd/meta")
    (tmp_path / "odd/meta/stats.json").write_text("no JSON")
    with pytest.raises(UserError, match=r"pass --output=FILE.mp4 to write a video"):
        main(["a/b", f"--root={tmp_path / 'odd'}"])


def test_file_names_are_plain():
    assert file_name("user/name:path/inside") == "user_name_path_inside"
    assert file_name("../../etc") == "_.._etc"
