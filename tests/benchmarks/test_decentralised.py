"""The decentralised benchmark: what it compares, what it keeps, and that it runs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

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
def bootstrap(benchmarks):
    import bootstrap

    return bootstrap


@pytest.fixture
def summary(benchmarks):
    import decentralised_summary

    return decentralised_summary


@pytest.fixture
def rigs(benchmarks):
    import decentralised_rigs

    return decentralised_rigs


@pytest.fixture
def work(benchmarks):
    import decentralised_work

    return decentralised_work


@pytest.mark.parametrize("name", ["smoke", "cpu", "evidence", "full"])
def test_arms_differ_in_one_thing(rigs, tmp_path, name):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES[name])
    people = experiment.contributors
    assert len({person.setup.convention for person in people}) == 4
    assert len({person.repo_id for person in people}) == len(people)
    union, *others = rigs.arms_of(rigs.SCALES[name])
    for arm in others:
        names = {field.name for field in dataclasses.fields(arm)} - {"name", "meaning", "of_steps"}
        assert len([name for name in names if getattr(arm, name) != getattr(union, name)]) == 1


def test_seen_rigs_are_the_recorded_ones_with_new_episodes(rigs, tmp_path):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["full"])
    recorded = [person.setup for person in experiment.contributors]
    assert [rig.setup for rig in experiment.rigs if rig.seen] == recorded
    last = max(person.seed + 1000 * person.episodes for person in experiment.contributors)
    assert last < rigs.FIRST_SEED
    unseen = [rig.setup for rig in experiment.rigs if not rig.seen]
    assert {setup.table for setup in unseen}.isdisjoint(setup.table for setup in recorded)
    assert all(1 <= len(setup.cameras) <= 3 for setup in [*unseen, *recorded])
    names = {camera.name for setup in [*unseen, *recorded] for camera in setup.cameras}
    assert names == {"camera1", "camera2", "camera3"}


def test_episodes_are_counted_in_the_rigs_that_depi_eval_plays_them_in(script, rigs, work, tmp_path):
    from depi.evaluation.config import EvaluateConfig
    from depi.evaluation.environments import find_table, resolve, so101_setup
    from depi.flags import parse_flags

    experiment = rigs.Experiment(tmp_path, rigs.SCALES["smoke"])
    script.check_settings(experiment)
    config = parse_flags(EvaluateConfig, work.play_flags(experiment, rigs.BLIND)[1:], "depi eval")
    env = resolve(config.env)
    counts = dict.fromkeys((rig.name for rig in experiment.rigs), 0)
    for seed in range(config.seed, config.seed + config.eval.n_episodes):
        rig = experiment.rig_of(seed)
        counts[rig.name] += 1
        assert so101_setup(env, seed) == dataclasses.replace(rig.setup, fps=rigs.RATE)
        assert find_table(env, seed).recorded_convention == rig.setup.convention
    assert set(counts.values()) == {experiment.scale.trials}


@pytest.mark.parametrize("seed", [0, 1])
def test_rigs_of_the_cpu_scale_differ_little(rigs, tmp_path, seed):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["cpu"], seed)
    assert len({rig.setup for rig in experiment.rigs}) == 8
    poses = {True: [], False: []}
    for rig in experiment.rigs:
        assert {camera.kind for camera in rig.setup.cameras} == {"front", "wrist"}
        assert [camera.name for camera in rig.setup.cameras] == ["camera1", "camera2"]
        assert (rig.setup.table, rig.setup.robot_color) == ("gray", "yellow")
        assert (rig.setup.width, rig.setup.height, rig.setup.fps) == (160, 120, rigs.RATE)
        for camera in rig.setup.cameras:
            poses[rig.seen].append([abs(camera.azimuth), abs(camera.elevation), abs(camera.distance - 1)])
    limits = np.array([3, 1.5, 0.03])
    assert (np.array(poses[True]) <= limits).all()
    assert (np.array(poses[False]) >= limits).all()
    for seen in (True, False):
        order = [rig.setup.cameras[0].kind for rig in experiment.rigs if rig.seen == seen]
        assert sorted(order) == ["front", "front", "wrist", "wrist"]


def test_single_is_trained_on_one(rigs, work, tmp_path):
    experiment = rigs.Experiment(tmp_path, rigs.SCALES["full"])
    for arm in rigs.ARMS:
        (flag,) = [flag for flag in work.train_flags(experiment, arm) if "--dataset.mixture=" in flag]
        sources = read_json(flag.partition("=")[2])
        assert len(sources) == (1 if arm.single else 16)
    assert len(experiment.contributors_of(rigs.ARMS[-1])[0].setup.cameras) == 3


def test_evidence_has_as_many_episodes_in_recorded_rigs_as_in_others(rigs, work, tmp_path):
    scale = rigs.SCALES["evidence"]
    experiment = rigs.Experiment(tmp_path, scale, arms=rigs.arms_of(scale))
    seeds = range(rigs.FIRST_SEED, rigs.FIRST_SEED + scale.trials * len(experiment.rigs))
    seen = [experiment.rig_of(seed).seen for seed in seeds]
    assert sum(seen) == len(seen) - sum(seen) >= 100
    assert len({rig.name for rig in experiment.rigs}) == 8 + 24
    people = {arm.label: experiment.contributors_of(arm) for arm in experiment.trainings}
    assert [len(people[label]) for label in ("union", "union.2", "alone7", "prolific.1")] == [8, 8, 1, 1]
    assert people["prolific"][0].episodes == sum(person.episodes for person in people["union"])
    assert people["prolific"][0].setup == people["alone0"][0].setup
    flags = {
        label: work.train_flags(experiment, arm) for arm in experiment.trainings for label in [arm.label]
    }
    assert "--seed=2000" in flags["no_verdicts.2"]
    assert "--dataset.use_bad_episodes=true" in flags["no_verdicts.2"]
    assert "--dataset.use_bad_episodes=true" not in flags["union.2"]


def test_other_policies_are_trained_on_the_union_in_as_much_time(rigs, work, tmp_path):
    from depi.training.command_line import parse_train_config

    scale = rigs.SCALES["evidence"]
    experiment = rigs.Experiment(tmp_path, scale, arms=rigs.arms_of(scale))
    configs = {
        arm.name: parse_train_config(work.train_flags(experiment, arm))
        for arm in (rigs.ARMS[0], *rigs.POLICIES)
    }
    union = configs["union"]
    for config in configs.values():
        assert config.dataset.mixture == union.dataset.mixture
        assert config.policy.n_action_steps == union.policy.n_action_steps == 4
        assert len(config.policy.action_delta_indices) == 16
    relative = {name for name, config in configs.items() if getattr(config.policy, "use_relative_actions", 0)}
    assert relative == {"pi0_relative", "pi05_relative"}
    assert {name for name, config in configs.items() if config.policy.type == "depi_pi05"} == {
        "pi05",
        "pi05_relative",
    }
    assert {name: config.steps for name, config in configs.items() if config.steps != union.steps} == {
        "act": 480,
        "diffusion": 234,
    }


@pytest.mark.slow
def test_who_does_not_look_succeeds_now_and_then(rigs, work, tmp_path):
    from depi.evaluation.evaluate import roll_out
    from depi.flags import parse_flags

    scale = dataclasses.replace(rigs.SCALES["cpu"], trials=3)
    experiment = rigs.Experiment(tmp_path, scale)
    write_json(experiment.rigs_file, [rig.setup.to_dict() for rig in experiment.rigs])
    flags = work.play_flags(experiment, rigs.BLIND)[1:]
    config = parse_flags(work.EvaluateConfig, flags, "depi eval")
    result = roll_out(config, work.BlindActor(scale.object_size))
    assert (result["n_episodes"], result["n_errors"]) == (24, 0)
    assert 0 < result["n_successes"] < 9


def test_arms_are_compared_with_the_union_by_split(summary, bootstrap, rigs, tmp_path):
    scale = dataclasses.replace(rigs.SCALES["smoke"], trainings=2)
    experiment = rigs.Experiment(tmp_path, scale, arms=rigs.ARMS[:2])
    seeds = range(rigs.FIRST_SEED, rigs.FIRST_SEED + 60)

    def played(arm, wins):
        rows = [
            {"index": index, "seed": seed, "success": wins(seed), "length": 1, "reward": 0.0, "error": None}
            for index, seed in enumerate(seeds)
        ]
        write_json(experiment.played_folder(arm) / "eval.json", {"env": {}, "episodes": rows})

    union, raw, union_again, raw_again = experiment.trainings
    assert [arm.label for arm in experiment.trainings] == ["union", "raw_joints", "union.1", "raw_joints.1"]
    played(union, lambda seed: experiment.rig_of(seed).seen)
    played(union_again, lambda seed: True)
    for arm in (raw, raw_again):
        played(arm, lambda seed: not experiment.rig_of(seed).seen)
    played(rigs.BLIND, lambda seed: False)
    kept = summary.outcomes(experiment)
    results = summary.summarise([json.loads(json.dumps(kept))])
    assert results["union"]["unseen"].trainings == (0.0, 1.0)
    assert results["union"]["unseen"].interval == (0.0, 1.0), "of two trainings, either may be drawn twice"
    assert results["raw_joints"]["seen"].difference_interval == (-1.0, -1.0)
    assert results["raw_joints"]["unseen"].difference == 0.5
    assert results["blind"]["seen"].rate == 0.0
    assert bootstrap.figures(results)["raw_joints"]["unseen"]["difference_interval_95"] == [0.0, 1.0]


def test_trainings_of_two_machines_are_one_table(script, rigs, summary, tmp_path):
    flags = ["--smoke", "--trainings=3", f"--output_dir={tmp_path}"]
    later = script.experiment_of(script.parse([*flags, "--first_training=2"]))
    assert [arm.label for arm in later.trainings] == [f"{arm.name}.2" for arm in rigs.ARMS]
    with pytest.raises(UserError, match="--first_training=3: each arm has 3 trainings"):
        script.experiment_of(script.parse([*flags, "--first_training=3"]))

    def of(number, union, blind="00"):
        rows = {"union": (union, number), "blind": (blind, 0)}
        trainings = [
            {"rows": [name], "training": number, "successes": wins} for name, (wins, number) in rows.items()
        ]
        return {"rigs": ["one", "two"], "seen": "10", "trainings": trainings}

    table = summary.summarise([of(0, "11"), of(1, "10"), of(2, "10")])
    assert table["union"]["seen"].trainings == (1.0, 1.0, 1.0)
    assert table["union"]["unseen"].trainings == (1.0, 0.0, 0.0)
    assert len(table["blind"]["seen"].trainings) == 1
    with pytest.raises(UserError, match="training 0 of union has other outcomes in two"):
        summary.summarise([of(0, "11"), of(0, "10")])
    with pytest.raises(UserError, match="of other rigs or episodes"):
        summary.summarise([of(0, "11"), {**of(1, "11"), "seen": "01"}])


def test_intervals_hold_what_they_should(bootstrap):
    """Of trainings with rates of their own, 95% intervals of a difference hold the true one most times."""
    rng = np.random.default_rng(1)
    rigs_of = np.repeat(np.arange(24), 5)
    held = 0
    for _ in range(60):
        rates = np.clip(np.array([0.5, 0.35])[:, None] + 0.05 * rng.standard_normal((2, 3)), 0, 1)
        wins = rng.random((2, 3, 120)) < rates[:, :, None]
        played = {name: bootstrap.Played(wins[arm], rigs_of) for arm, name in enumerate(("union", "other"))}
        low, high = bootstrap.compare_all(played, draws=300)["other"].difference_interval
        held += low <= -0.15 <= high
    assert held >= 48


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


def test_other_policies_on_a_gpu_have_as_many_steps(script, rigs):
    everything = script.experiment_of(script.parse([]))
    assert {arm.name for arm in everything.arms} == {arm.name for arm in rigs.ARMS}
    named = script.experiment_of(script.parse(["--arms=pi05_relative,act"]))
    assert [arm.name for arm in named.arms] == ["union", "pi05_relative", "act"]
    assert {named.steps_of(arm) for arm in named.trainings} == {3000}


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
    assert (tmp_path / "out" / "outcomes.png").stat().st_size > 1000
    means = {name: normalisation(tmp_path / "out", name) for name in ("union", "raw_joints")}
    assert np.abs(means["union"] - means["raw_joints"]).max() > 10  # the first one's degrees_v1 are others

    journal = tmp_path / "out" / "played" / "union" / "episodes.jsonl"
    first, *lost = journal.read_text().splitlines()
    journal.write_text(first + "\n")
    (journal.parent / "eval.json").unlink()  # as a kill leaves it
    assert script.main(flags) == 0
    again = capsys.readouterr()
    assert "train" not in again.err
    kept, *others = journal.read_text().splitlines()
    assert (kept, len(others)) == (first, len(lost))
    assert json.loads(again.out.splitlines()[-1])["arms"] == result["arms"]


def normalisation(root, arm):
    """The mean of the state that a trained arm's pipeline subtracts."""
    from safetensors.numpy import load_file

    folder = root / "trained" / arm / "checkpoints" / "last" / "pretrained_model"
    (file,) = folder.glob("policy_preprocessor_*_normalizer_processor.safetensors")
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
    journal = tmp_path / "played" / "one_statistics" / "episodes.jsonl"
    journal.write_text("of an earlier training")
    assert script.main(flags) == 0
    assert "train 1 of 1: one_statistics" in capsys.readouterr().err
    assert len(journal.read_text().splitlines()) == 6
    np.testing.assert_array_equal(normalisation(tmp_path, "one_statistics"), mean)
