"""The decentralised benchmark: what it compares, what it keeps, and that it runs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from depi.datasets.joints import from_degrees
from depi.errors import UserError
from depi.files import read_json, write_json

TINY = {
    "contributors": 2,
    "episodes": 1,
    "unseen": 1,
    "trials": 1,
    "steps": 2,
    "batch_size": 2,
    "processes": 1,  # imports are most of what it takes
    "fps_limit": 10,
    "alike": True,
    "slots": 2,
}


@pytest.fixture
def script(benchmarks):
    import decentralised

    return decentralised


@pytest.fixture
def rigs(benchmarks):
    import decentralised_rigs

    return decentralised_rigs


@pytest.fixture
def work(benchmarks):
    import decentralised_work

    return decentralised_work


@pytest.mark.parametrize("name", ["smoke", "cpu", "full"])
def test_arms_differ_in_one_thing_and_play_the_same(rigs, tmp_path, name):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES[name])
    people = experiment.contributors
    assert len({person.setup.convention for person in people}) == 4
    assert len({person.repo_id for person in people}) == len(people)
    union, *others = rigs.ARMS
    for arm in others:
        same = {name: getattr(union, name) for name in ("name", "meaning")}
        changed = (
            dataclasses.asdict(dataclasses.replace(arm, **same)).items() - dataclasses.asdict(union).items()
        )
        assert len(changed) == 1
        played = experiment.trials(arm)
        pairs = zip(played, experiment.trials(union), strict=True)
        assert all((mine.setup, mine.seeds) == (theirs.setup, theirs.seeds) for mine, theirs in pairs)


def test_seen_rigs_are_the_recorded_ones_with_new_episodes(rigs, tmp_path):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["full"])
    trials = experiment.trials(rigs.ARMS[0])
    recorded = {dataclasses.replace(person.setup, fps=rigs.RATE) for person in experiment.contributors}
    assert {each.setup for each in trials if each.seen} == recorded
    seeds = [seed for each in trials for seed in each.seeds]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) > max(person.seed + 1000 * person.episodes for person in experiment.contributors)
    unseen = [each.setup for each in trials if not each.seen]
    assert {setup.table for setup in unseen}.isdisjoint(setup.table for setup in recorded)
    assert all(1 <= len(setup.cameras) <= 3 for setup in [*unseen, *recorded])
    names = {camera.name for setup in [*unseen, *recorded] for camera in setup.cameras}
    assert names == {"camera1", "camera2", "camera3"}


@pytest.mark.parametrize("seed", [0, 1])
def test_rigs_of_the_cpu_scale_differ_little(rigs, tmp_path, seed):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["cpu"], seed)
    trials = experiment.trials(rigs.ARMS[0])
    assert len({each.setup for each in trials}) == 8
    poses = {True: [], False: []}
    for each in trials:
        assert {camera.kind for camera in each.setup.cameras} == {"front", "wrist"}
        assert [camera.name for camera in each.setup.cameras] == ["camera1", "camera2"]
        assert (each.setup.table, each.setup.robot_color) == ("gray", "yellow")
        assert (each.setup.width, each.setup.height, each.setup.fps) == (160, 120, rigs.RATE)
        for camera in each.setup.cameras:
            poses[each.seen].append([abs(camera.azimuth), abs(camera.elevation), abs(camera.distance - 1)])
    limits = np.array([3, 1.5, 0.03])
    assert (np.array(poses[True]) <= limits).all()
    assert (np.array(poses[False]) >= limits).all()
    for seen in (True, False):
        order = [each.setup.cameras[0].kind for each in trials if each.seen == seen]
        assert sorted(order) == ["front", "front", "wrist", "wrist"]


def test_single_is_trained_on_one(rigs, work, tmp_path):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["full"])
    for arm in rigs.ARMS:
        (flag,) = [flag for flag in work.train_flags(experiment, arm) if "--dataset.mixture=" in flag]
        sources = read_json(flag.partition("=")[2])
        assert len(sources) == (1 if arm.single else 16)
    assert len(experiment.contributors_of(rigs.ARMS[-1])[0].setup.cameras) == 3


class Recorder:
    """A policy that notes what it is told, and answers with one pose in its own units."""

    def __init__(self, answer):
        self.answer, self.states = answer, []

    def act(self, observations):
        from depi.datasets.joints import to_degrees
        from depi.evaluation.actors import units

        (observation,) = observations
        unit = units(observation.table, self.answer)
        self.states.append(from_degrees(observation.seen.state, unit))
        return [to_degrees(np.tile(self.states[-1], (8, 1)), unit)]


@pytest.mark.parametrize("convention", ["degrees_v1", "normalized", "radians"])
def test_raw_policies_speak_the_rigs_units(rigs, work, convention):
    from depi.sim.env import make_env
    from depi.sim.setup import Setup

    setup = Setup(cameras=(), fps=rigs.RATE, convention=convention)
    env = make_env(rigs.TASK, setup)
    raw, unified = Recorder("native"), Recorder("degrees")
    table = work.table_of(setup)
    for actor in (raw, unified):
        assert work.play_episode(env, actor, table, 1) is False  # it stays where it is
        assert len(actor.states) == table.max_steps // 8 == 5
    env.close()
    np.testing.assert_allclose(raw.states[0], from_degrees(unified.states[0], convention), rtol=1e-5)
    assert np.abs(raw.states[0] - unified.states[0]).max() > 1
    assert np.abs(unified.states[-1] - unified.states[0]).max() < 5


def test_who_does_not_look_succeeds_now_and_then(rigs, work):
    from depi.sim.env import make_env
    from depi.sim.setup import Setup

    env = make_env(rigs.TASK, Setup(cameras=(), fps=rigs.RATE, object_size=0.03))
    outcomes = [work.play_motion(env, work.mean_motion(0.03), seed) for seed in range(100, 130)]
    env.close()
    assert 0 < sum(outcomes) < 10


def test_outcomes_against_the_union(script):
    union = [True] * 10 + [False] * 10
    mine = [True] * 2 + [False] * 8 + [True] + [False] * 9
    outcome = script.Outcome.of(mine, union)
    assert (outcome.successes, outcome.episodes, outcome.gained, outcome.lost) == (3, 20, 1, 8)
    assert outcome.p == pytest.approx(2 * (1 + 9) / 2**9)  # both tails of a fair coin, 9 throws
    assert outcome.interval == pytest.approx((0.0524, 0.3604), abs=1e-4)
    assert script.Outcome.of(union, union).p == 1.0


def test_a_folder_of_another_experiment_is_refused(script, rigs, tmp_path):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["smoke"])
    script.check_settings(experiment)
    script.check_settings(dataclasses.replace(experiment, arms=rigs.ARMS[:2]))
    more = dataclasses.replace(experiment.scale, steps=21)
    with pytest.raises(UserError, match="other steps, 20 instead of 21"):
        script.check_settings(dataclasses.replace(experiment, scale=more))


def test_unknown_arms(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--arms=union,best"])
    assert "best is none of union, raw_joints" in capsys.readouterr().err
    assert [arm.name for arm in script.parse(["--arms=single"]).arms] == ["union", "single"]


@pytest.mark.slow
def test_small_run_is_complete_and_kept(script, rigs, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(rigs.SCALES, "smoke", rigs.Scale(**TINY))
    flags = ["--smoke", "--arms=raw_joints", f"--output_dir={tmp_path / 'out'}"]
    assert script.main(flags) == 0
    said = capsys.readouterr()
    result = json.loads(said.out.splitlines()[-1])
    assert result["conventions_misjudged"] == []
    assert {name: arm["seen"]["episodes"] for name, arm in result["arms"].items()} == {
        "union": 2,
        "raw_joints": 2,
        "blind": 2,
    }
    assert "train 2 of 2" in said.err
    means = {name: normalisation(tmp_path / "out", name) for name in ("union", "raw_joints")}
    assert np.abs(means["union"] - means["raw_joints"]).max() > 10  # the first one's degrees_v1 are others

    lost = tmp_path / "out" / "played" / "union" / "unseen00.json"
    before = read_json(lost)
    lost.unlink()
    assert script.main(flags) == 0
    again = capsys.readouterr()
    assert "train" not in again.err
    assert "play 1 of 1: union in unseen00" in again.err
    assert read_json(lost)["success"] == before["success"]
    assert json.loads(again.out.splitlines()[-1])["arms"] == result["arms"]


def normalisation(root, arm):
    """The mean of the state that a trained arm's pipeline subtracts."""
    from safetensors.numpy import load_file

    folder = root / "trained" / arm / "checkpoints" / "last" / "pretrained_model"
    (file,) = folder.glob("policy_preprocessor_*.safetensors")
    return load_file(file)["observation.state.mean"]


@pytest.mark.slow
def test_every_arm(script, rigs, tmp_path, capsys):
    flags = ["--smoke", f"--output_dir={tmp_path}"]
    assert script.main(flags) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result["arms"]) == [arm.name for arm in (*rigs.ARMS, rigs.BLIND)]
    first = rigs.SCALES["smoke"].contributors
    entries = read_json(tmp_path / "trained" / "single" / "data_report.json")["datasets"]
    assert (first, len(entries)) == (4, 1)
    # Half a training is done again, with what was played of it.
    checkpoints = tmp_path / "trained" / "one_statistics" / "checkpoints"
    mean = normalisation(tmp_path, "one_statistics")
    assert np.abs(mean - normalisation(tmp_path, "union")).max() > 0.1
    shutil.rmtree(checkpoints)
    write_json(tmp_path / "played" / "one_statistics" / "unseen00.json", {"success": [True] * 99})
    assert script.main(flags) == 0
    said = capsys.readouterr()
    assert "train 1 of 1: one_statistics" in said.err
    assert "play 6 of 6: one_statistics" in said.err
    np.testing.assert_array_equal(normalisation(tmp_path, "one_statistics"), mean)
