"""LeRobot's commands load DePi's checkpoints with nothing patched, drive a robot and record what it does."""

import json
import os
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from depi.files import write_json
from depi.hub.client.api import upload_folder
from depi.policies import load_policy, load_processors

SLOTS = ("observation.images.0", "observation.images.1")
# Where the policy sends the arm, up to a few degrees of noise: each joint somewhere else.
TARGET = np.array([25.0, -70.0, 60.0, 45.0, -30.0, 60.0])
TO_SLOTS = {"observation.images.wrist": SLOTS[0], "observation.images.front": SLOTS[1]}
TASK = "Touch the red cube."


@pytest.fixture(scope="module")
def arm(module_hub, tmp_path_factory, write_checkpoint):
    """A checkpoint for the arm."""
    values = {"observation.state": (TARGET, np.full(6, 30.0)), "action": (TARGET, np.full(6, 2.0))}
    return write_checkpoint(tmp_path_factory.mktemp("arm"), SLOTS, values)


def rollout_flags(policy, *more: str) -> list[str]:
    return [
        f"--policy.path={policy}",
        "--robot.type=sim_so101",
        f"--rename_map={json.dumps(TO_SLOTS)}",
        f"--task={TASK}",
        "--fps=10",
        "--device=cpu",
        "--play_sounds=false",
        "--return_to_initial_position=false",
        *more,
    ]


def recording_flags(root, episodes: int, *more: str) -> list[str]:
    return [
        "--strategy.type=episodic",
        "--dataset.repo_id=alice/rollout_touch",
        "--dataset.no_stamp=true",
        f"--dataset.root={root}",
        f"--dataset.num_episodes={episodes}",
        "--dataset.episode_time_s=4",
        "--dataset.reset_time_s=0",
        "--dataset.fps=10",
        "--dataset.rgb_encoder.vcodec=h264",
        "--dataset.push_to_hub=false",
        *more,
    ]


def test_rollout_records_a_dataset_of_the_robot_that_the_policy_drives(arm, lerobot, tmp_path):
    root = tmp_path / "recorded"
    lerobot("rollout", *rollout_flags(arm), *recording_flags(root, 1))
    dataset = LeRobotDataset("alice/rollout_touch", root=root)
    assert (dataset.num_episodes, dataset.fps, dataset.meta.robot_type) == (1, 10, "sim_so101")
    assert 5 <= dataset.num_frames <= 41
    assert dataset.meta.features["action"]["names"][0] == "shoulder_pan.pos"
    table = dataset.hf_dataset.with_format("numpy")[:]
    actions, states = np.stack(table["action"]), np.stack(table["observation.state"])
    assert np.abs(actions - TARGET).max() < 15
    assert np.abs(actions[0] - states[0]).max() > 20
    assert np.abs(states[-1] - TARGET).max() < 15, "the arm has not followed the policy"
    first, last = dataset[0], dataset[dataset.num_frames - 1]
    assert first["task"] == TASK
    for view in ("front", "wrist"):
        key = f"observation.images.{view}"
        assert first[key].shape == (3, 48, 64)
        assert (first[key] - last[key]).abs().max() > 0.2, view


@pytest.fixture(params=["depi_pi0", "depi_pi05"])
def pusher(module_hub, tmp_path, write_checkpoint, request):
    """A checkpoint for PushT, whose agent it sends to one corner."""
    values = {
        "observation.state": (np.full(2, 256.0), np.full(2, 100.0)),
        "action": (np.array([450.0, 60.0]), np.full(2, 5.0)),
    }
    return write_checkpoint(tmp_path / "pusher", SLOTS[:1], values, kind=request.param)


def eval_flags(policy, folder) -> list[str]:
    return [
        f"--policy.path={policy}",
        "--policy.device=cpu",
        "--env.type=pusht",
        "--env.episode_length=12",
        "--env.observation_width=96",
        "--env.observation_height=96",
        "--eval.n_episodes=2",
        "--eval.batch_size=2",
        "--eval.use_async_envs=false",
        f"--rename_map={json.dumps({'observation.image': SLOTS[0]})}",
        f"--output_dir={folder}",
    ]


@pytest.mark.slow
def test_eval_runs_a_gym_environment(pusher, lerobot, tmp_path):
    lerobot("eval", *eval_flags(pusher, tmp_path))
    info = json.loads((tmp_path / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
    videos = sorted((tmp_path / "videos").rglob("*.mp4"))
    assert len(videos) == 2
    with av.open(str(videos[0])) as file:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    height, width, _ = frames[-1].shape
    # The agent is the only thing that is blue; the block and the goal are grey and green.
    red, _, blue = frames[-1].transpose(2, 0, 1)
    rows, columns = np.nonzero(blue - red > 80)
    assert abs(columns.mean() / width - 450 / 512) < 0.08
    assert abs(rows.mean() / height - 60 / 512) < 0.08


def test_policies_of_lerobots_own_are_left_alone_in_eval(site):
    code = (
        "from lerobot.configs.eval import EvalPipelineConfig\n"
        "from lerobot.envs.configs import PushtEnv\n"
        "from lerobot.policies.act.configuration_act import ACTConfig\n"
        "import lerobot_policy_depi\n"
        "policy = ACTConfig(device='cpu', pretrained_path='trained')\n"
        "before = dict(vars(policy))\n"
        "EvalPipelineConfig(env=PushtEnv(), policy=policy, rename_map={'a': 'b'})\n"
        "assert vars(policy) == before, policy"
    )
    here = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_advantage_conditioned_policies_are_guided(module_hub, write_checkpoint, lerobot, tmp_path):
    """LeRobot's command adds the indicator; its flag sets how strongly the policy follows it."""
    values = {
        "observation.state": (np.full(2, 256.0), np.full(2, 100.0)),
        "action": (np.array([256.0, 256.0]), np.full(2, 100.0)),
    }
    told = write_checkpoint(tmp_path / "told", SLOTS[:1], values, indicator=True)
    rewards = {}
    for name, policy, *flags in (("plain", told), ("guided", told, "--policy.guidance=40")):
        lerobot("eval", *eval_flags(policy, tmp_path / name), *flags)
        info = json.loads((tmp_path / name / "eval_info.json").read_text())
        rewards[name] = info["overall"]["avg_sum_reward"]
    assert rewards["plain"] != rewards["guided"]


def told(checkpoint, folder, *cameras: str):
    """A copy of a checkpoint that says which cameras its training had."""
    shutil.copytree(checkpoint, folder)
    stream = {"cameras": "name", "annotations": None}
    entry = {"cameras": cameras, "camera_sizes": {}, "recorded_fps": 15.0}
    write_json(folder / "data_report.json", {"datasets": [entry], "stream": stream})
    write_json(folder / "train_config.json", {"dataset": {"action_freq": None}})
    return folder


def without(name: str, flags: list[str]) -> list[str]:
    return [flag for flag in flags if not flag.startswith(name)]


@pytest.mark.slow
def test_rollout_renames_cameras_as_in_training(arm, lerobot, tmp_path):
    trained = told(arm, tmp_path / "arm", "observation.images.front", "observation.images.wrist")
    said = lerobot("rollout", *without("--rename_map", rollout_flags(trained)), "--duration=2")
    assert f"cameras as in training: --rename_map='{json.dumps(TO_SLOTS)}'" in said
    assert "trained at 15 actions a second: --fps=15 plays it at its speed" in said


@pytest.mark.slow
def test_rollout_acts_and_records_as_often_as_in_training(arm, lerobot, tmp_path):
    trained = told(arm, tmp_path / "arm", "observation.images.front", "observation.images.wrist")
    flags = [*rollout_flags(trained), *recording_flags(tmp_path / "recorded", 1)]
    said = lerobot("rollout", *without("--dataset.fps", without("--fps", flags)))
    assert "actions a second as in training: --fps=15 --dataset.fps=15" in said
    assert LeRobotDataset("alice/rollout_touch", root=tmp_path / "recorded").fps == 15


@pytest.mark.slow
def test_eval_renames_the_camera_as_in_training(pusher, lerobot, tmp_path):
    trained = told(pusher, tmp_path / "told", "observation.image")
    said = lerobot("eval", *without("--rename_map", eval_flags(trained, tmp_path / "out")))
    assert f'--rename_map=\'{{"observation.image": "{SLOTS[0]}"}}\'' in said


@pytest.mark.slow
def test_rollout_of_a_hub_repository_in_real_time_chunks(arm, lerobot, tmp_path):
    upload_folder(arm, "alice/touch", repo_type="model", commit_message="Upload")
    root = tmp_path / "recorded"
    rtc = ("--inference.type=rtc", "--inference.rtc.execution_horizon=4", "--inference.queue_threshold=4")
    lerobot("rollout", *rollout_flags("alice/touch"), *recording_flags(root, 2), *rtc)
    dataset = LeRobotDataset("alice/rollout_touch", root=root)
    assert dataset.num_episodes == 2
    actions = np.stack(dataset.hf_dataset.with_format("numpy")[:]["action"])
    assert len(actions) > 10
    assert np.abs(actions - TARGET).max() < 15


@pytest.mark.slow
def test_train_makes_and_continues_policies(arm, lerobot, tmp_path):
    root = tmp_path / "recorded"
    lerobot("rollout", *rollout_flags(arm), *recording_flags(root, 1))
    shared = [
        "--policy.device=cpu",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=alice/rollout_touch",
        f"--dataset.root={root}",
        "--steps=2",
        "--batch_size=2",
        "--num_workers=0",
    ]
    small = ("--policy.image_resolution=[28,28]", "--policy.depth=2", "--policy.chunk_size=4")
    fresh, continued = tmp_path / "fresh", tmp_path / "continued"
    new = ("--policy.type=depi_pi0", *small, "--policy.n_action_steps=4")
    lerobot("train", *shared, *new, f"--output_dir={fresh}")
    trained = fresh / "checkpoints" / "last" / "pretrained_model"
    lerobot("train", *shared, f"--policy.path={trained}", f"--output_dir={continued}")
    policy = load_policy(continued)
    assert list(policy.config.image_features) == ["observation.images.front", "observation.images.wrist"]
    # As DePi draws it: PyTorch itself draws them `sqrt(width)` times as large.
    embedding = policy.model.token_embedding.weight
    assert 0.8 < embedding.std() * embedding.shape[1] ** 0.5 < 1.2
    load_processors(continued)
