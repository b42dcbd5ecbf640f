import dataclasses
import gc
import json

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from depi.datasets.recording.convention import detect_convention
from depi.datasets.recording.joints import to_degrees
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.sim.env import make_env
from depi.sim.expert import Expert
from depi.sim.record import main, record_dataset, to_convention
from depi.sim.rollout import play
from depi.sim.setup import Camera, Setup


def decode(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def moves(frames):
    """Share of pixels that some later frame changes clearly."""
    return (np.abs(frames.astype(int) - frames[0]).max(axis=(0, 3)) > 60).mean()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def expert_episode(setup, seed):
    env = make_env("touch", setup)
    episode = play(env, Expert(env), seed)
    env.close()
    return episode


def test_v21_layout_file_by_file(recording_v21):
    recording, setup = recording_v21
    root = recording.root
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    key = "observation.images.laptop"
    assert files == [
        "README.md",
        "data/chunk-000/episode_000000.parquet",
        "data/chunk-000/episode_000001.parquet",
        "meta/episodes.jsonl",
        "meta/episodes_stats.jsonl",
        "meta/info.json",
        "meta/tasks.jsonl",
        f"videos/chunk-000/{key}/episode_000000.mp4",
        f"videos/chunk-000/{key}/episode_000001.mp4",
    ]
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["robot_type"], info["fps"]) == ("v2.1", "so100", 10)
    assert (info["total_episodes"], info["total_videos"], info["total_chunks"]) == (2, 2, 1)
    assert info["total_frames"] == recording.frames
    assert info["splits"] == {"train": "0:2"}
    assert info["features"]["action"]["names"] == list(setup.joint_names)
    assert info["features"][key]["shape"] == [64, 96, 3]
    assert info["features"][key]["info"]["video.codec"] == "h264"
    assert lines(root / "meta/tasks.jsonl") == [{"task_index": 0, "task": "test"}]
    episodes = lines(root / "meta/episodes.jsonl")
    assert [episode["tasks"] for episode in episodes] == [["test"], ["test"]]
    assert sum(episode["length"] for episode in episodes) == recording.frames


def test_v21_tables_and_stats(recording_v21):
    recording, _ = recording_v21
    stats = lines(recording.root / "meta/episodes_stats.jsonl")
    start = 0
    for index, path in enumerate(sorted(recording.root.rglob("*.parquet"))):
        table = pq.read_table(path)
        length = table.num_rows
        assert table["index"].to_pylist() == list(range(start, start + length))
        assert set(table["episode_index"].to_pylist()) == {index}
        np.testing.assert_allclose(table["timestamp"].to_numpy(), np.arange(length) / 10, atol=1e-5)
        actions = np.stack(table["action"].to_numpy())
        assert actions.dtype == np.float32
        written = stats[index]["stats"]
        np.testing.assert_allclose(written["action"]["min"], actions.min(axis=0), atol=1e-4)
        np.testing.assert_allclose(written["action"]["mean"], actions.mean(axis=0), atol=1e-3)
        assert written["action"]["count"] == [length]
        assert np.shape(written["observation.images.laptop"]["mean"]) == (3, 1, 1)
        played = expert_episode(Setup(cameras=(), fps=10), index)
        np.testing.assert_allclose(to_degrees(actions, "degrees_v1"), played.actions, atol=1e-4)
        start += length
    assert start == recording.frames


def test_v21_videos_show_the_arm_moving(recording_v21):
    recording, setup = recording_v21
    for episode in lines(recording.root / "meta/episodes.jsonl"):
        name = f"videos/chunk-000/observation.images.laptop/episode_{episode['episode_index']:06d}.mp4"
        frames = decode(recording.root / name)
        assert frames.shape == (episode["length"], setup.height, setup.width, 3)
        assert moves(frames) > 0.02


def test_v30_opens_with_lerobot_and_shows_the_arm_moving(recording_v30):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    recording, setup = recording_v30
    dataset = LeRobotDataset(recording.repo_id, root=recording.root, video_backend="pyav")
    assert dataset.meta.info.codebase_version == "v3.0"
    assert (len(dataset), dataset.num_episodes, dataset.fps) == (recording.frames, 2, 10)
    sample = dataset[recording.frames - 1]
    assert sample["observation.images.front"].shape == (3, setup.height, setup.width)
    assert sample["task"] == "Touch the red cube."
    frames = np.concatenate([decode(path) for path in sorted(recording.root.rglob("*.mp4"))])
    assert len(frames) == recording.frames
    assert moves(frames) > 0.02


@pytest.mark.parametrize("fixture", ["recording_v21", "recording_v30"])
def test_conventions_are_recognised(fixture, request):
    recording, setup = request.getfixturevalue(fixture)
    tables = [pq.read_table(path) for path in sorted((recording.root / "data").rglob("*.parquet"))]
    action, state = (
        np.concatenate([np.stack(table[column].to_numpy()) for table in tables])
        for column in ("action", "observation.state")
    )
    assert detect_convention(setup.joint_names, action, state).convention == setup.convention


@pytest.mark.parametrize("convention", ["degrees", "radians"])
def test_other_conventions_are_recognised_too(convention):
    setup = Setup(cameras=(), convention=convention)
    episode = expert_episode(setup, 0)
    action, state = (to_convention(values, convention) for values in (episode.actions, episode.states))
    assert detect_convention(setup.joint_names, action, state).convention == convention


def test_card_carries_what_the_hub_lists_by(recording_v21):
    from huggingface_hub import DatasetCard

    card = DatasetCard.load(recording_v21[0].root / "README.md")
    assert {"LeRobot", "so100"} <= set(card.data.tags)
    assert card.data.license == "apache-2.0"
    assert card.data.task_categories == ["robotics"]


def test_failed_episodes_are_counted_and_drawn_again(tmp_path, monkeypatch):
    from depi.sim import record

    def fail_on_even_seeds(env, expert, seed, *, images=True):
        episode = play(env, expert, seed, images=images)
        return episode if seed % 2 else type(episode)(**{**vars(episode), "success": False})

    monkeypatch.setattr(record, "play", fail_on_even_seeds)
    setup = Setup(width=32, height=32, fps=10, format="v2.1", codec="h264")
    recording = record_dataset("touch", setup, "a/b", tmp_path / "b", episodes=2)
    assert recording.failed_seeds == (0, 2)
    assert recording.episodes == len(lines(tmp_path / "b/meta/episodes.jsonl")) == 2


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_nothing_is_left_when_recording_breaks_off(tmp_path, monkeypatch, version):
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from depi.sim.v21 import V21Writer

    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(V21Writer, "finalize", interrupt)
    monkeypatch.setattr(LeRobotDataset, "save_episode", interrupt)  # its encoders are running then
    setup = Setup(width=32, height=32, fps=10, format=version, codec="h264")
    with pytest.raises(KeyboardInterrupt):
        record_dataset("touch", setup, "a/b", tmp_path / "b", episodes=1)
    gc.collect()  # LeRobot's writer closes files once more when it is collected
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["record", "--task=touch", "--repo_id=nouser"], "user/name"),
        (["record", "--task=touch", "--repo_id=a/../b"], "user/name"),
        (["record", "--task=touch", "--repo_id=a/b c"], "user/name"),
        (["record", "--task=fly", "--repo_id=a/b"], "unknown simulated task 'fly'"),
        (["record", "--task=touch", "--repo_id=a/b", "--fps=17"], "fps is 17"),
        (["record", "--task=touch", "--repo_id=a/b", "--episodes=0", "--root={new}"], "0 episodes"),
        (["record", "--task=touch", "--repo_id=a/b", "--cameras=", "--root={new}"], "needs a camera"),
        (["record", "--task=touch", "--repo_id=a/b", "--root={old}"], "exists already"),
        (["record", "--task=touch", "--repo_id=a/b", "--seed=-1", "--root={new}"], "negative"),
        (["expert", "--task=touch", "--seed=-1"], "negative"),
        (["expert", "--task=touch", "--episodes=0"], "must be positive"),
        (["record", "--task=touch", "--repo_id=a/b", "--root=/dev/null/new"], "cannot be written"),
        (["record", "--task=touch", "--repo_id=a/b", "--push", "--root={new}"], "needs a token"),
        (["record", "--task=touch", "--repo_id=a/b", "--rig={new}"], "does not exist"),
        (["record", "--task=touch", "--repo_id=a/b", "--rig={new}", "--fps=10"], "--fps and --rig describe"),
        (["record", "--task=pusht", "--repo_id=a/b", "--rig={new}"], "--rig goes with touch and pick_lift"),
        (["dance"], "record or expert"),
        ([], "record or expert"),
    ],
)
def test_command_refuses_what_it_cannot_do(flags, complaint, tmp_path):
    (tmp_path / "old").mkdir()
    flags = [flag.format(old=tmp_path / "old", new=tmp_path / "new") for flag in flags]
    with pytest.raises(UserError, match=complaint):
        main(flags)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_expert_command_reports_as_json(capsys):
    assert main(["expert", "--task=touch", "--episodes=2", "--fps=10", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["task"], report["episodes"], report["successes"]) == ("touch", 2, 2)


def test_a_rig_is_recorded_as_its_file_describes_it(tmp_path):
    rig = Setup(
        cameras=(Camera("gripper", "wrist", azimuth=5),), width=32, height=32, fps=10, object_size=0.04
    )
    write_json(tmp_path / "rig.json", [rig.to_dict()])
    flags = ["record", "--task=touch", "--repo_id=a/b", f"--rig={tmp_path / 'rig.json'}"]
    assert main([*flags, f"--root={tmp_path / 'data'}", "--episodes=1", "--seed=3"]) == 0
    info = read_json(tmp_path / "data" / "meta" / "info.json")
    assert info["features"]["observation.images.gripper"]["shape"] == [32, 32, 3]
    played = expert_episode(dataclasses.replace(rig, cameras=()), 3)
    assert info["total_frames"] == len(played.actions)
    write_json(tmp_path / "rig.json", [rig.to_dict(), rig.to_dict()])
    with pytest.raises(UserError, match="holds 2 rigs"):
        main([*flags, f"--root={tmp_path / 'other'}"])


def test_push_publishes_a_tagged_dataset(hub, tmp_path, capsys):
    from huggingface_hub import HfApi

    flags = [
        "--task=touch",
        "--repo_id=carol/touch",
        f"--root={tmp_path / 'touch'}",
        "--episodes=1",
        "--push",
    ]
    small = [
        "--width=32",
        "--height=32",
        "--fps=10",
        "--codec=h264",
        "--format=v2.1",
        "--cameras=laptop:front",
    ]
    assert main(["record", *flags, *small]) == 0
    assert "pushed to carol/touch" in capsys.readouterr().out
    info = HfApi().dataset_info("carol/touch", revision="v2.1")
    names = {sibling.rfilename for sibling in info.siblings}
    assert "videos/chunk-000/observation.images.laptop/episode_000000.mp4" in names
    assert "LeRobot" in info.tags
