"""Episodes in processes of their own: what goes wrong there, and that nothing depends on their number."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from evaluations import Steady, alike, choices, outcomes, pictures

from depi.errors import UserError
from depi.evaluation.actors import ExpertActor
from depi.evaluation.config import EnvironmentConfig, EpisodesConfig, EvaluateConfig
from depi.evaluation.environments import resolve
from depi.evaluation.evaluate import check_environment, evaluate, roll_out
from depi.evaluation.simulators import Simulator
from depi.files import read_json


def test_what_goes_wrong_in_an_environment_is_an_error_and_nothing_else(tmp_path):
    config = choices(tmp_path, crash=[1], hang=[2], fail=[4], batch_size=2, timeout=2.0)
    result = roll_out(config, Steady())
    errors = {row["seed"]: row["error"] for row in result["episodes"]}
    assert errors[0] is errors[3] is errors[5] is None
    assert "status 7" in errors[1]
    assert "2 s" in errors[2]
    assert errors[4] == "RuntimeError: the gripper is jammed"
    assert not any(row["success"] for row in result["episodes"] if row["error"])
    assert (result["n_episodes"], result["n_successes"], result["n_errors"]) == (3, 2, 3)
    assert result["success_rate"] == pytest.approx(2 / 3)
    assert sum(result["errors"].values()) == 3
    well = roll_out(choices(tmp_path / "well", batch_size=2), Steady())
    assert well["n_errors"] == 0
    assert [row for row in outcomes(well) if row["seed"] in (0, 3, 5)] == [
        row for row in outcomes(result) if row["seed"] in (0, 3, 5)
    ]


def test_an_environment_that_cannot_begin_is_said_before_training(tmp_path):
    with pytest.raises(UserError, match="cannot begin an episode: RuntimeError: the arm is stuck"):
        check_environment(choices(tmp_path, stuck=True), Steady())


def test_pictures_are_kept_where_a_simulator_draws_them_all_into_one_array(tmp_path):
    kept = []
    roll_out(choices(tmp_path, 1, batch_size=1), Steady(), on_episode=kept.append)
    widths = (kept[0].images["observation.image"][:, 0, :, 0] > 0).sum(axis=1)
    np.testing.assert_allclose(widths, np.clip(np.round(kept[0].states[:, 0] * 10), 0, 24))
    assert widths[-1] > widths[0]


def test_all_episodes_may_be_errors(tmp_path):
    result = roll_out(choices(tmp_path, 2, fail=[0, 1], batch_size=1), Steady())
    assert (result["success_rate"], result["success_interval_95"], result["n_errors"]) == (None, None, 2)
    json.dumps(read_json(tmp_path / "eval.json"), allow_nan=False)


def test_rewards_that_are_not_finite_are_an_error(tmp_path):
    kept = []
    config = choices(tmp_path, 2, endless=[1], batch_size=1)
    for _ in range(2):
        result = roll_out(config, Steady(), resume=True, on_episode=kept.append)
        assert result["errors"] == {"the environment's rewards are not finite": 1}
    assert [one.index for one in kept] == [0]


def test_a_policy_whose_actions_are_not_finite_is_named(tmp_path):
    class Lost(Steady):
        def act(self, observations):
            return [np.full((4, 2), np.nan, np.float32) for _ in observations]

    result = roll_out(choices(tmp_path, 1, batch_size=1), Lost())
    assert result["errors"] == {"the policy's actions are not finite": 1}


def test_stepping_overlaps_with_inference(tmp_path):
    calls = []

    class Slow(Steady):
        batch = 1

        def act(self, observations):
            began = time.monotonic()
            time.sleep(0.08 * len(observations))
            calls.append((began, time.monotonic()))
            return super().act(observations)

    log = tmp_path / "steps"
    config = choices(tmp_path / "eval", 4, batch_size=4, seconds=0.02, log=str(log))
    timing = roll_out(config, Slow())["timing"]
    # All processes have the same clock. With one after the other, no step begins during a call.
    steps = [float(line) for line in log.read_text().split()]
    assert any(began < step < ended for step in steps for began, ended in calls)
    assert timing["env_steps_per_s"] > 0
    assert timing["latency_ms_p95"] >= timing["latency_ms_median"] >= 80


def test_a_rerun_goes_on_and_another_configuration_is_refused(tmp_path):
    roll_out(choices(tmp_path, 2, batch_size=1), Steady())
    lines = (tmp_path / "episodes.jsonl").read_text()
    (tmp_path / "episodes.jsonl").write_text(lines + '{"index": 2, "se')  # killed while it wrote
    more = roll_out(choices(tmp_path, 4, batch_size=2), Steady(), resume=True)
    assert (tmp_path / "episodes.jsonl").read_text().startswith(lines)
    whole = roll_out(choices(tmp_path / "whole", 4, batch_size=2), Steady())
    assert outcomes(more) == outcomes(whole)
    again = roll_out(choices(tmp_path, 4, batch_size=2), Steady(), resume=True)
    assert again == more
    other = choices(tmp_path, 4)
    other.seed = 7
    with pytest.raises(UserError, match=r"another seed: 0 there, 7 now"):
        roll_out(other, Steady(), resume=True)


def test_a_full_disk_ends_it_and_is_no_error_of_an_episode(tmp_path, small_disk):
    out = small_disk.path / "eval"
    roll_out(choices(out, 1, batch_size=1, n_videos=2), Steady())
    more = choices(out, 2, batch_size=1, n_videos=2)
    small_disk.fill()
    with pytest.raises(UserError, match=f"cannot write {out}/videos: the disk is full .*--output_dir"):
        roll_out(more, Steady(), resume=True)
    small_disk.make_room()
    result = roll_out(more, Steady(), resume=True)
    whole = roll_out(choices(tmp_path / "whole", 2, n_videos=2), Steady())
    assert outcomes(result) == outcomes(whole)
    assert result["n_errors"] == 0


def test_a_command_that_played_nothing_may_be_corrected(tmp_path):
    class Refusing(Steady):
        def act(self, observations):
            raise UserError("wrong camera")

    config = choices(tmp_path, 1, batch_size=1)
    config.rename_map = {"observation.image": "observation.images.7"}
    with pytest.raises(UserError, match="wrong camera"):
        roll_out(config, Refusing(), resume=True)
    config.rename_map = {}
    assert roll_out(config, Steady(), resume=True)["n_errors"] == 0
    assert read_json(tmp_path / "eval_config.json")["rename_map"] == {}


def test_after_kill_9_the_same_command_gives_the_same_result(tmp_path):
    code = (
        "import sys; from pathlib import Path; from evaluations import Steady, choices\n"
        "from depi.evaluation.evaluate import roll_out\n"
        "config = choices(Path(sys.argv[1]), 8, batch_size=2, seconds=0.05, n_videos=2)\n"
        "roll_out(config, Steady(), resume=True)"
    )
    paths = os.pathsep.join(sys.path)
    command = [sys.executable, "-c", code, str(tmp_path / "killed")]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})
    journal = tmp_path / "killed" / "episodes.jsonl"
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_text().count("\n") >= 2) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = journal.read_text()
    assert 2 <= kept.count("\n") < 8
    config = choices(tmp_path / "killed", 8, batch_size=2, seconds=0.05, n_videos=2)
    result = roll_out(config, Steady(), resume=True)
    assert journal.read_text().startswith(kept)
    config.output_dir = tmp_path / "whole"
    assert outcomes(roll_out(config, Steady())) == outcomes(result)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for name in ("videos/episode_000.mp4", "videos/episode_001.mp4"):
        assert alike(killed / name, whole / name)
    assert (killed / "contact_sheet.png").read_bytes() == (whole / "contact_sheet.png").read_bytes()


def test_ctrl_c_is_no_error_of_an_environment_nor_is_its_output_ours(tmp_path):
    code = (
        "import signal, sys; from pathlib import Path; from evaluations import Steady, choices\n"
        "signal.signal(signal.SIGINT, lambda *_: None)  # as training does, to finish its step\n"
        "from depi.evaluation.evaluate import roll_out\n"
        "config = choices(Path(sys.argv[1]), 8, batch_size=2, seconds=0.05)\n"
        "roll_out(config, Steady(), resume=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    journal = tmp_path / "episodes.jsonl"
    end = time.monotonic() + 120
    while not (journal.exists() and journal.read_text()) and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed) == (0, "")
    assert read_json(tmp_path / "eval.json")["errors"] == {}


@pytest.mark.parametrize("task", ["touch"])
def test_the_scripted_expert_has_its_success_rate_through_the_same_path(tmp_path, task):
    config = choices(tmp_path, 50, "so101", n_videos=1, batch_size=2)
    config.policy.path, config.env.task = "expert", task
    config.env.observation_height, config.env.observation_width = 60, 80
    result = evaluate(config)
    assert (result["n_successes"], result["n_errors"]) == (50, 0)
    frames = pictures(tmp_path / "videos" / "episode_000.mp4")
    assert len(frames) == result["episodes"][0]["length"]
    assert abs(frames[0] - frames[-1]).max() > 50, "the robot does not move"
    assert (tmp_path / "contact_sheet.png").stat().st_size > 1000


def test_rigs_are_drawn_for_each_episode(tmp_path):
    seen = {}
    for split in ("seen", "unseen"):
        config = choices(tmp_path / split, 3, "so101", batch_size=1)
        config.policy.path, config.env.setups = "expert", split
        config.env.observation_height, config.env.observation_width = 60, 80
        kept = []
        result = roll_out(config, ExpertActor(), on_episode=kept.append)
        assert result["n_errors"] == 0
        seen[split] = {one.seed: {key: one.images[key][0] for key in one.images} for one in kept}
        assert {one.fps for one in kept} == {10}
    assert len({tuple(images) for images in seen["seen"].values()}) > 1  # number and kinds of cameras
    assert seen["seen"].keys() == seen["unseen"].keys() == {0, 1, 2}


def test_rigs_of_a_file_are_played_in_turn(tmp_path):
    rigs = [{"cameras": [{"name": name, "kind": "front"}], "fps": 30} for name in ("mine", "yours")]
    rigs[1]["convention"] = "radians"
    file = tmp_path / "rigs.json"
    file.write_text(json.dumps(rigs))
    config = choices(tmp_path / "eval", 3, "so101", batch_size=2)
    config.policy.path, config.env.setups, config.seed = "expert", str(file), 7
    config.env.observation_height, config.env.observation_width = 60, 80
    kept = []
    result = roll_out(config, ExpertActor(), on_episode=kept.append)
    assert (result["n_successes"], result["n_errors"]) == (3, 0)
    tables = {one.seed: one.table for one in kept}
    cameras = {seed: table.cameras["observation.images.yours"] for seed, table in tables.items() if seed % 2}
    assert cameras == {7: "images/yours", 9: "images/yours"}
    assert list(tables[8].cameras) == ["observation.images.mine"]
    assert [tables[seed].recorded_convention for seed in (7, 8)] == ["radians", "degrees"]
    assert {one.fps for one in kept} == {10}

    assert len(result["setups_file"]) == 16
    file.write_text(json.dumps(rigs[::-1]))
    with pytest.raises(UserError, match="another setups_file"):
        roll_out(config, ExpertActor(), resume=True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "neither standard, seen, unseen nor a file"),
        ("[]", "holds no list of simulation setups"),
        ("{", "is not valid JSON"),
        ("[{}, 3]", "setup 1: not a simulation setup: no JSON object"),
        ('[{"cameras": [{"name": "a", "kind": "ceiling"}]}]', "unknown kind 'ceiling'"),
        ('[{"cameras": []}]', "no camera"),
    ],
)
def test_files_without_rigs_are_named(tmp_path, content, says):
    file = tmp_path / "rigs.json"
    if content is not None:
        file.write_text(content)
    config = EvaluateConfig(env=EnvironmentConfig(setups=str(file)), output_dir=tmp_path / "eval")
    with pytest.raises(UserError, match=says):
        roll_out(config, Steady())


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"type": "libero"}, "lerobot\\[libero\\]"),
        ({"type": "odd_envs:Even-v0"}, "Even"),
        ({"type": "CartPole-v1"}, "actions must be a vector"),
        ({"type": "pusht", "task": "PushZ"}, "PushT-v0"),
        ({"type": "pusht", "setups": "seen"}, "so101"),
        ({"type": "pusht", "cameras": ["wrist"]}, "--env.cameras goes with --env.type=so101"),
        ({"setups": "seen", "cameras": ["wrist"]}, "--env.cameras goes with"),
        ({"options": {"gravity": 0}}, "--env.options goes with other environments"),
        ({"type": "pusht", "fps": 30}, "--env.fps=30: pusht has 10 steps per second"),
        ({"type": "odd_envs:Odd-v0", "fps": 30}, "--env.fps=30: odd_envs:Odd-v0 says that its rate is 10"),
        ({"type": "odd_envs:Odd-v0", "options": {"colour": 1}}, "colour"),
    ],
)
def test_an_environment_that_cannot_be_made_is_said(tmp_path, env, says):
    one = EpisodesConfig(batch_size=1)
    config = EvaluateConfig(env=EnvironmentConfig(**env), eval=one, output_dir=tmp_path / "eval")
    with pytest.raises(UserError, match=says):
        roll_out(config, Steady())
    assert not (tmp_path / "eval").exists()


def test_the_simulated_arm_has_the_limit_of_its_table():
    simulator = Simulator(resolve(EnvironmentConfig(cameras=["front"], episode_length=100)))
    assert simulator.open(0).max_steps == simulator.env.max_steps == 100
    simulator.close()


COUNTING = """
import gymnasium as gym
from odd_envs import OddEnv

class Counting(OddEnv):
    init_state_id = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=0)
        self._place = self._place * 0 + 0.1 * self.init_state_id
        self.init_state_id += 1
        return self._observe(), {"is_success": False}

gym.register(id="gym_gym_manipulator/Counting-v0", entry_point=Counting, max_episode_steps=5)
"""


@pytest.mark.slow
def test_lerobots_environments_begin_as_their_turn_says(tmp_path, monkeypatch):
    """A stand-in for LIBERO, whose environments take the next of their initial states at each reset."""
    (tmp_path / "gym_gym_manipulator.py").write_text(COUNTING)
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for size in (1, 2):
        kept = []
        config = choices(tmp_path / str(size), 4, "gym_manipulator", batch_size=size)
        config.env.task, config.env.instruction = "Counting-v0", "Count."
        roll_out(config, Steady(), on_episode=kept.append)
        found.append({one.index: float(one.states[0, 0]) for one in kept})
    assert found[0] == found[1] == pytest.approx({index: 0.1 * index for index in range(4)})


def test_aloha_is_what_gym_aloha_shows_from_above(tmp_path):
    import gymnasium as gym

    class Reaching:
        batch, expert_steps = 1, 0

        def fit(self, tables):
            pass

        def act(self, observations):
            return [
                np.linspace(0, 0.1 * seen.seed, 14 * 5, dtype=np.float32).reshape(5, 14)
                for seen in observations
            ]

    kept = []
    config = choices(tmp_path, 1, "aloha", batch_size=1, n_videos=1)
    config.env.episode_length, config.seed = 5, 3
    result = roll_out(config, Reaching(), on_episode=kept.append)
    assert (result["n_errors"], result["mean_length"]) == (0, 5)
    frames = pictures(tmp_path / "videos" / "episode_000.mp4")
    assert (len(frames), frames[0].shape) == (5, (480, 640, 3))
    assert np.abs(frames[-1] - frames[0]).max() > 20, "the robot does not move"
    __import__("gym_aloha")
    env = gym.make("gym_aloha/AlohaTransferCube-v0", obs_type="pixels_agent_pos", render_mode="rgb_array")
    observation, _ = env.reset(seed=3)
    for step in range(5):
        np.testing.assert_array_equal(
            kept[0].images["observation.images.top"][step], observation["pixels"]["top"]
        )
        np.testing.assert_array_equal(kept[0].states[step], observation["agent_pos"].astype(np.float32))
        observation, reward, *_ = env.step(kept[0].actions[step])
        assert kept[0].rewards[step] == reward
    env.close()
