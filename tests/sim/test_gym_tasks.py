"""The scripted experts of gym-pusht and gym-aloha, and the datasets recorded with them."""

from itertools import pairwise

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.files import read_json
from depi.sim.gym_tasks import GYM_TASKS, play_gym, record_gym_dataset
from depi.sim.record import main


def test_the_pusht_expert_solves_its_task_and_plays_the_same_again():
    task = GYM_TASKS["pusht"]
    env, expert = task.make((16, 16))
    episodes = [play_gym(env, expert, seed, task.max_steps) for seed in range(4)]
    assert sum(episode.success for episode in episodes) >= 3
    again = play_gym(*task.make((16, 16)), 3, task.max_steps)
    for key, values in episodes[3].columns.items():
        np.testing.assert_array_equal(values, again.columns[key])
    for episode in episodes:
        reward, done = episode.columns["next.reward"][:, 0], episode.columns["next.done"][:, 0]
        assert 0 <= reward.min() <= reward.max() <= 1
        assert list(np.flatnonzero(done)) == [len(done) - 1]


def test_the_aloha_expert_transfers_every_cube():
    env, expert = GYM_TASKS["aloha_transfer_cube"].make((48, 64))
    env.with_images = False
    for seed in range(5):
        episode = play_gym(env, expert, seed, 400)
        reward = episode.columns["next.reward"][:, 0]
        assert episode.success
        assert reward[-1] == 4
        assert {0, 2} <= set(reward[:-1].tolist())  # nothing was touched, then the right arm held the cube
        arms = np.delete(episode.columns["action"], [6, 13], axis=1)
        assert np.abs(np.diff(arms, axis=0)).max() < 0.1  # radians in 0.02 s


# An episode of aloha takes half a minute to draw, at any size.
ALOHA = pytest.param("aloha_transfer_cube", marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=["pusht", ALOHA])
def recorded(request, tmp_path_factory):
    task = GYM_TASKS[request.param]
    root = tmp_path_factory.mktemp("gym") / "ann" / task.name
    size = {"pusht": task.size, "aloha_transfer_cube": (48, 64)}[task.name]
    episodes = {"pusht": 2, "aloha_transfer_cube": 1}[task.name]
    recording = record_gym_dataset(task, f"ann/{task.name}", root, episodes=episodes, size=size, codec="h264")
    return task, size, recording


def test_recordings_are_what_the_hub_has_of_these_tasks(recorded):
    task, size, recording = recorded
    info = read_json(recording.root / "meta/info.json")
    assert (info["codebase_version"], info["fps"]) == ("v3.0", task.fps)
    assert (info["total_episodes"], info["total_frames"]) == (recording.episodes, recording.frames)
    features = info["features"]
    dim = {"pusht": 2, "aloha_transfer_cube": 14}[task.name]
    camera = {"pusht": "observation.image", "aloha_transfer_cube": "observation.images.top"}[task.name]
    assert features["observation.state"]["shape"] == features["action"]["shape"] == [dim]
    assert features[camera]["shape"] == [*size, 3]
    (table,) = (pq.read_table(path) for path in (recording.root / "data").rglob("*.parquet"))
    success = table["next.success"].to_numpy()
    assert success.sum() == recording.episodes
    ends = np.flatnonzero(success)
    assert list(table["episode_index"].to_numpy()[ends]) == list(range(recording.episodes))
    (tasks,) = (pq.read_table(path).to_pydict() for path in recording.root.glob("meta/tasks.parquet"))
    assert task.text in str(tasks)


def test_recorded_videos_show_something_moving(recorded):
    _, size, recording = recorded
    (path,) = recording.root.rglob("*.mp4")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == recording.frames
    assert frames[0].shape == (*size, 3)
    assert np.mean([np.abs(after - before).mean() for before, after in pairwise(frames)]) > 0.02
    assert np.abs(frames[-1] - frames[0]).max() > 60


def test_training_reads_recordings_in_their_own_units(recorded):
    task, _, recording = recorded
    source = DatasetSource(recording.repo_id, root=recording.root)
    dataset = MultiLeRobotDataset([source], image_size=32, chunk_size=4)
    sample = dataset[recording.frames // 2]
    assert sample["task"] == task.text
    assert sample["observation.images.0"].shape == (3, 32, 32)
    assert sample["action"].shape == (4, len(task.names))
    (entry,) = dataset.report()["datasets"]
    assert entry["convention"] == "native"


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--task=pusht", "--fps=20"], "--fps goes with touch and pick_lift"),
        (["--task=pusht", "--convention=radians"], "--convention goes with"),
        (["--task=aloha_transfer_cube", "--cameras=wrist"], "--cameras goes with"),
        (["--task=pusht", "--width=33"], "must be even"),
        (["--task=pusht", "--episodes=0"], "0 episodes"),
        (["--task=aloha", "--episodes=1"], "pusht, aloha_transfer_cube"),
    ],
)
def test_command_refuses_what_it_cannot_do(flags, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        main(["record", "--repo_id=a/b", f"--root={tmp_path / 'new'}", *flags])
    assert not list(tmp_path.iterdir())


def test_an_expert_that_keeps_failing_ends_the_recording(tmp_path):
    import dataclasses

    impatient = dataclasses.replace(GYM_TASKS["pusht"], max_steps=3)
    with pytest.raises(UserError, match="failed 10 of 10 episodes of pusht"):
        record_gym_dataset(impatient, "a/b", tmp_path / "b", episodes=1)
    assert not list(tmp_path.iterdir())
