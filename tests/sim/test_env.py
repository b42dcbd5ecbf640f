import dataclasses
import warnings

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from depi.errors import UserError
from depi.sim.env import make_env
from depi.sim.expert import Expert
from depi.sim.rollout import ExpertConfig, measure_expert, play
from depi.sim.setup import Camera, Setup, random_setup

BLIND = Setup(cameras=())


@pytest.mark.parametrize(
    ("task", "fps"), [("touch", 30), ("touch", 10), ("pick_lift", 30), ("pick_lift", 10)]
)
def test_expert_solves_its_task(task, fps):
    report = measure_expert(ExpertConfig(task=task, fps=fps, episodes=10, seed=100))
    assert report["successes"] >= 8, report["failed_seeds"]
    assert len(report["failed_seeds"]) == 10 - report["successes"]


def test_expert_copes_with_a_moved_base_and_another_cube():
    setup = dataclasses.replace(BLIND, base_offset=(0.01, -0.02, 5.0), object_size=0.03)
    env = make_env("pick_lift", setup)
    expert = Expert(env)
    assert sum(play(env, expert, seed).success for seed in range(10)) >= 8


@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_expert_copes_with_random_setups(split):
    solved = 0
    for seed in range(8):
        env = make_env("pick_lift", dataclasses.replace(random_setup(seed, split), cameras=()))
        solved += play(env, Expert(env), seed).success
    assert solved >= 7


@pytest.mark.parametrize(("task", "limit"), [("touch", None), ("pick_lift", None), ("touch", 45)])
def test_idle_arm_does_not_succeed(task, limit):
    env = make_env(task, dataclasses.replace(BLIND, fps=10), max_steps=limit)
    env.reset(seed=1)
    steps = 0
    truncated = False
    while not truncated:
        _, reward, terminated, truncated, info = env.step(env.home)
        steps += 1
        assert (reward, terminated, info["is_success"]) == (0.0, False, False)
    assert steps == env.max_steps == (limit or {"touch": 40, "pick_lift": 60}[task])


def test_units_are_canonical_degrees():
    env = make_env("touch", BLIND)
    observation, _ = env.reset(seed=0)
    assert observation["state"].dtype == np.float32
    assert observation["state"].shape == (6,)
    target = np.array([20.0, -40.0, 30.0, 45.0, -60.0, 50.0])
    for _ in range(45):
        observation, *_ = env.step(target)
    np.testing.assert_allclose(observation["state"], target, atol=1.5)
    # 50% of the gripper's -0.1745..1.7453 rad, and pan in the simulator's own sign
    assert env._scene.data.joint("gripper").qpos[0] == pytest.approx(0.7854, abs=0.03)
    assert env._scene.data.joint("shoulder_pan").qpos[0] == pytest.approx(np.radians(20), abs=0.03)


def test_gripper_ends_are_0_and_100():
    env = make_env("touch", BLIND)
    env.reset(seed=0)
    for gripper in (100.0, 0.0):
        for _ in range(30):
            observation, *_ = env.step(np.array([0, -60, 60, 30, 0, gripper]))
        assert observation["state"][5] == pytest.approx(gripper, abs=1)


def test_same_seed_same_trajectory_with_and_without_cameras():
    setup = Setup((Camera("wrist", "wrist", jitter=2.0),), 64, 48, fps=10)
    env = make_env("pick_lift", setup)
    expert = Expert(env)
    seen = play(env, expert, 7)
    other = play(env, expert, 8)
    again = play(env, expert, 7)
    fresh = make_env("pick_lift", dataclasses.replace(setup, cameras=()))
    blind = play(fresh, Expert(fresh), 7)
    for episode in (again, blind):
        np.testing.assert_array_equal(episode.states, seen.states)
        np.testing.assert_array_equal(episode.actions, seen.actions)
    np.testing.assert_array_equal(again.images["wrist"], seen.images["wrist"])
    assert blind.images == {}
    assert not np.array_equal(other.states[0], seen.states[0])
    env.close()


def test_environment_keeps_gymnasiums_contract():
    env = make_env("touch", Setup((Camera("top", "top"),), 64, 48, fps=10))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its advice on spaces does not suit joint degrees
        check_env(env, skip_render_check=True)
    assert env.render().shape == (48, 64, 3)
    env.close()


def test_wrong_actions_are_refused():
    env = make_env("touch", BLIND)
    env.reset(seed=0)
    for action in (np.zeros(5), np.full(6, np.nan)):
        with pytest.raises(ValueError, match="six finite numbers"):
            env.step(action)


def test_every_camera_kind_sees_robot_and_cube():
    setup = Setup(tuple(Camera(kind, kind) for kind in ("front", "side", "top")), 160, 120, fps=10)
    env = make_env("touch", setup)
    images = env.reset(seed=0)[0]["images"]
    for kind, image in images.items():
        red, green, blue = image.astype(int).transpose(2, 0, 1)
        yellow = (red > 90) & (green > 90) & (blue < 60)
        cube = (red > 90) & (green < 60) & (blue < 60)
        assert yellow.mean() > 0.01, kind
        assert cube.sum() > 5, kind
    env.close()


def test_wrist_camera_sees_the_cube_come_closer():
    env = make_env("pick_lift", Setup((Camera("wrist", "wrist"),), 96, 72, fps=10))
    frames = play(env, Expert(env), 0).images["wrist"].astype(int)
    red = (frames[..., 0] > 90) & (frames[..., 1:].max(axis=-1) < 60)
    assert red[-1].sum() > 2 * red[10].sum() > 0
    env.close()


def test_small_images_have_fewer_triangles_and_look_the_same(monkeypatch):
    setup = Setup(cameras=(Camera("front", "front"), Camera("wrist", "wrist")), width=96, height=96)
    env = make_env("touch", setup)
    drawn = env.reset(seed=5)[0]["images"]
    finer = make_env("touch", dataclasses.replace(setup, width=240, height=240))
    finer.reset(seed=5)
    assert env.model.mesh_facenum.sum() < 0.8 * finer.model.mesh_facenum.sum()
    monkeypatch.setattr("depi.sim.simulation.coarsen_visual_meshes", lambda model, height: None)
    exact = make_env("touch", setup)
    for name, image in exact.reset(seed=5)[0]["images"].items():
        differs = np.abs(image.astype(int) - drawn[name]).max(axis=-1) > 30
        assert differs.mean() < 0.04, name
    assert exact.model.mesh_facenum.sum() > 5 * env.model.mesh_facenum.sum()


def test_setups_change_the_picture():
    def first_frame(**changes):
        env = make_env("touch", dataclasses.replace(base, **changes))
        image = env.reset(seed=0)[0]["images"]["front"].astype(float)
        env.close()
        return image

    base = Setup((Camera("front", "front"),), 64, 48, fps=10)
    plain = first_frame()
    assert np.array_equal(plain, first_frame())
    assert first_frame(lighting=(0.5, 0.5, 0.5)).mean() < 0.8 * plain.mean()
    for changes in (
        {"table": "green"},
        {"object_color": "blue"},
        {"robot_color": "white"},
        {"base_offset": (0.0, 0.05, 0.0)},
        {"cameras": (Camera("front", "front", azimuth=20),)},
    ):
        assert np.abs(first_frame(**changes) - plain).max() > 50, changes


def test_two_rendering_environments_do_not_disturb_each_other():
    setup = Setup((Camera("front", "front"),), 64, 48, fps=10)
    first, second = make_env("touch", setup), make_env("touch", dataclasses.replace(setup, table="wood"))
    before = first.reset(seed=3)[0]["images"]["front"]
    second.reset(seed=3)
    second.close()
    np.testing.assert_array_equal(first.reset(seed=3)[0]["images"]["front"], before)
    first.close()


def test_unknown_task_is_a_users_error():
    with pytest.raises(UserError, match="unknown simulated task 'fly'"):
        make_env("fly")
