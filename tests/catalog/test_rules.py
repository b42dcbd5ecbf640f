"""Each rule on both sides: facts that pass, and the least change that does not."""

import dataclasses
import importlib

import numpy as np
import pytest
from catalog_facts import (
    barely_moving,
    calibrated,
    changed,
    commands_off_by,
    contradictory,
    episodes_bad,
    frozen_state,
    good_facts,
    gripper_moving,
    in_degrees,
    info_json,
    late_state,
    recorded,
    some_joints_moving,
    unrelated_state,
    with_features,
    with_size,
    with_tasks_alone,
    with_value,
    without_file,
)

from depi.catalog import rules
from depi.catalog.duplicates import Overlap
from depi.catalog.facts import Facts, Thresholds
from depi.errors import UserError

LIMITS = Thresholds()

VECTOR_12 = {"dtype": "float32", "shape": [12], "names": None}
VECTOR_2 = {"dtype": "float32", "shape": [2], "names": None}
DEPTH = {"dtype": "video", "shape": [48, 64, 1], "names": None}

REFUSED = [
    ("reachable", changed(access_error="there is no ann/x"), "there is no ann/x"),
    ("has_info", without_file("meta/info.json"), "no meta/info.json among its 6 files"),
    (
        "has_info",
        changed(files={"a/one/meta/info.json": 5, "b/two/meta/info.json": 5}),
        "no meta/info.json at the top, and the 2 folders with one have names that no id can hold",
    ),
    (
        "metadata_bounded",
        with_size("meta/info.json", 9_000_000),
        "meta/info.json is 9 MB, at most 8 MB are read",
    ),
    (
        "metadata_bounded",
        with_size("meta/episodes.jsonl", 201_000_000),
        "meta/ is 201 MB, at most 200 MB are read (--max_meta_mb)",
    ),
    ("not_disabled", changed(disabled=True), "the Hub has disabled this repository"),
    ("not_gated", changed(gated=True), "gated: its author grants access on request"),
    (
        "not_evaluation",
        changed(repo_id="ann/eval_act_cube"),
        "the name eval_act_cube is that of an evaluation run",
    ),
    (
        "not_evaluation",
        changed(repo_id="ann/rollout_cube"),
        "the name rollout_cube is that of an evaluation run",
    ),
    (
        "not_evaluation",
        changed(repo_id="ann/So100-Eval.2"),
        "the name so100-eval.2 is that of an evaluation run",
    ),
    ("not_evaluation", changed(tags=("LeRobot", "Evaluation")), "tagged Evaluation: an evaluation run"),
    ("info_readable", changed(info_error="fps is 'x', expected a number"), "fps is 'x', expected a number"),
    (
        "required_columns",
        good_facts(with_features(timestamp=None, action=None)),
        "no column action, timestamp",
    ),
    (
        "not_evaluation",
        changed(repo_id="ann/all:sets/eval_1"),
        "the name eval_1 is that of an evaluation run",
    ),
    (
        "not_evaluation_task",
        changed(tasks=("Pick up the cube.", "Eval run 3")),
        "task text 'Eval run 3' is that of an evaluation run",
    ),
    (
        "not_evaluation_task",
        changed(tasks=("act policy rollout, cube",)),
        "task text 'act policy rollout, cube' is that of an evaluation run",
    ),
    (
        "not_bimanual",
        good_facts(with_features(action=VECTOR_12)),
        "two arms: action has shape [12], state [6], robot type 'so101_follower'",
    ),
    (
        "not_bimanual",
        good_facts(info_json(robot_type="bi_so100_follower")),
        "two arms: action has shape [6], state [6], robot type 'bi_so100_follower'",
    ),
    *(
        ("not_bimanual", good_facts(info_json(robot_type=robot)), None)
        for robot in ("bi_so101_follower", "so101_follower_dual", "so101_bimanual", "bi_so_follower")
    ),
    (
        "single_arm",
        good_facts(with_features(action=VECTOR_2)),
        "action has shape [2]; a single arm has [6]",
    ),
    (
        "single_arm",
        good_facts(with_features(**{"observation.state": VECTOR_2})),
        "observation.state has shape [2]; a single arm has [6]",
    ),
    (
        "so100_arm",
        good_facts(info_json(robot_type="koch_follower")),
        "robot type is 'koch_follower', not an SO-100 or SO-101",
    ),
    (
        "enough_cameras",
        good_facts(with_features(**{"observation.images.front": None})),
        "0 cameras, at least 1 are needed (--min_cameras)",
    ),
    (
        "enough_cameras",
        good_facts(with_features(**{"observation.images.front": DEPTH})),
        "0 cameras, at least 1 are needed (--min_cameras)",
    ),
    ("fps_in_range", good_facts(info_json(fps=4.9)), "4.9 fps, expected 5 to 120"),
    ("fps_in_range", good_facts(info_json(fps=121)), "121 fps, expected 5 to 120"),
    (
        "enough_episodes",
        good_facts(info_json(total_episodes=0)),
        "0 episodes, at least 1 are needed (--min_episodes)",
    ),
    (
        "enough_frames",
        good_facts(info_json(total_frames=49)),
        "49 frames, expected 50 to 5000000 (--min_frames, --max_frames)",
    ),
    (
        "enough_frames",
        good_facts(info_json(total_frames=5_000_001)),
        "5000001 frames, expected 50 to 5000000 (--min_frames, --max_frames)",
    ),
    ("metadata_readable", changed(meta_error="no episodes are listed"), "no episodes are listed"),
    ("counts_match", good_facts(info_json(total_episodes=3)), "3 episodes declared, 2 listed"),
    (
        "counts_match",
        good_facts(info_json(total_frames=201)),
        "201 frames declared, 200 listed, 200 in the tables",
    ),
    (
        "files_present",
        changed(files={"meta/info.json": 1}),
        "2 of 2 data files missing, as data/chunk-000/episode_000000.parquet; 2 of 2 video files missing, as "
        "videos/chunk-000/observation.images.front/episode_000000.mp4",
    ),
    (
        "tables_bounded",
        with_size("data/chunk-000/episode_000000.parquet", 2_001_000_000),
        "tables of 2001 MB, at most 2000 MB are read (--max_table_mb)",
    ),
    ("tables_readable", changed(tables_error="x.parquet lacks the column"), "x.parquet lacks the column"),
    (
        "timestamps_in_step",
        recorded(timestamp=np.tile(np.arange(100) / 10, 2)),
        "frames are 0.1 s apart, 30 fps means 0.03333 s",
    ),
    ("not_frozen", frozen_state(), "observation.state is the same in all 200 frames"),
    ("not_frozen", recorded(np.zeros((200, 6), np.float32)), "action is the same in all 200 frames"),
    (
        "motion_present",
        barely_moving(),
        "no joint of observation.state moves more than 0.4 degrees (--min_motion)",
    ),
    (
        "enough_good_episodes",
        episodes_bad(2, of=3),
        "2 of 3 episodes are bad (numbers_finite: in episodes 0, 1: the action is not a finite number in "
        "1 of 50 frames), at most 50% may be (--max_bad_episodes)",
    ),
    (
        "state_follows",
        unrelated_state(),
        "the motion of state and action correlates by no more than 0.02, 0.3 is expected (--min_follow)",
    ),
    (
        "lag_plausible",
        late_state(-6),
        "the state moves 0.20 s before the action that should cause it",
    ),
    ("lag_plausible", late_state(30), "the state follows the action only after 1.00 s (--max_lag)"),
    ("gripper_used", gripper_moving(2.0), "the gripper moves by 2 of 100 (--min_gripper)"),
    (
        "task_known",
        with_tasks_alone("test", "task desc"),
        "no usable task text ('test', 'task desc') and no camera to annotate one from",
    ),
    (
        "task_known",
        with_tasks_alone(),
        "no usable task text (none at all) and no camera to annotate one from",
    ),
    ("joints_known", contradictory(), None),
    (
        "license_allowed",
        changed(license="cc-by-nc-4.0"),
        "licence cc-by-nc-4.0, wanted apache-2.0 (--licenses)",
    ),
    ("license_allowed", changed(license=None), "no licence given, wanted apache-2.0 (--licenses)"),
]
UNNAMED = {"dtype": "float32", "shape": [6], "names": None}
# A dataset that only just passes; together with REFUSED it shows where each rule's limit is.
PASSED = [
    ("reachable", changed(access_error=None)),
    ("has_info", changed(files={"meta/info.json": None})),
    ("metadata_bounded", with_size("meta/info.json", 8_000_000)),
    ("metadata_bounded", with_size("meta/episodes.jsonl", 199_000_000)),
    ("not_disabled", changed(disabled=False)),
    ("not_gated", changed(gated=False)),
    ("license_allowed", changed(license="Apache-2.0")),
    ("license_allowed", changed(license="mit, apache-2.0")),
    ("not_evaluation", changed(repo_id="ann/medieval_evaluator_cube")),
    ("not_evaluation", changed(repo_id="eval/pick_cube", tags=("evaluate",))),
    ("info_readable", changed(info_error=None)),
    ("required_columns", good_facts(with_features(index=None))),
    ("not_bimanual", good_facts(info_json(robot_type="bicolor_so101"))),
    ("single_arm", good_facts(with_features(other=VECTOR_12))),
    ("so100_arm", good_facts(info_json(robot_type=None))),
    ("so100_arm", good_facts(info_json(robot_type="unknown"))),
    ("so100_arm", good_facts(info_json(robot_type="SO-ARM101"))),
    ("so100_arm", good_facts(info_json(robot_type="my_own_arm"))),
    *(
        ("so100_arm", good_facts({**with_features(action=UNNAMED), "robot_type": robot}))
        for robot in ("so_follower", "so_arm101", "so100_isaaclab", "so-100", "so_arm", "SO-ARM", "soarm")
    ),
    ("enough_cameras", good_facts()),
    ("fps_in_range", good_facts(info_json(fps=5.0))),
    ("fps_in_range", good_facts(info_json(fps=120))),
    ("enough_episodes", good_facts(info_json(total_episodes=1))),
    ("enough_frames", good_facts(info_json(total_frames=50))),
    ("enough_frames", good_facts(info_json(total_frames=5_000_000))),
    ("metadata_readable", changed(meta_error=None)),
    ("files_present", with_size("data/chunk-000/episode_000000.parquet", 0)),
    ("files_present", without_file("videos/chunk-000/observation.images.front/episode_000001.mp4")),
    ("files_present", without_file("data/chunk-000/episode_000000.parquet")),
    ("tables_bounded", with_size("data/chunk-000/episode_000000.parquet", 1_999_000_000)),
    ("counts_match", good_facts()),
    ("counts_match", changed(info=dataclasses.replace(good_facts().info, total_frames=190), table_rows=190)),
    (
        "not_evaluation_task",
        changed(tasks=("Evaluate the fruit and drop the bad one", "retrieval of a model")),
    ),
    ("task_known", with_tasks_alone("test", "Pick up the cube")),
    ("task_known", changed(tasks=())),
    ("tables_readable", changed(tables_error=None)),
    ("timestamps_in_step", good_facts(info_json(fps=25))),
    ("not_frozen", with_value("action", (0, 0), 0.5)),
    ("joints_known", good_facts()),
    ("motion_present", some_joints_moving()),
    ("enough_good_episodes", episodes_bad(1, of=2)),
    ("state_follows", late_state(0)),
    ("lag_plausible", late_state(0)),
    ("lag_plausible", late_state(-1)),
    ("lag_plausible", late_state(20)),
    ("lag_plausible", unrelated_state()),  # nothing to say without a correlation
    ("gripper_used", gripper_moving(3.1)),
]
ONLY_APACHE = Thresholds(licenses=["apache-2.0"])
LIMITS_OF = {"license_allowed": ONLY_APACHE, "task_known": Thresholds(min_cameras=0)}
RULES = {rule.__name__: rule for tier in rules.TIERS for rule in (*tier.needs, *tier.rules)}


def limits_for(name: str) -> Thresholds:
    return LIMITS_OF.get(name, LIMITS)


def verdict(facts: Facts, limits: Thresholds = LIMITS) -> set[str]:
    """The rules that refuse, as an inspection would ask them."""
    for tier in rules.TIERS:
        if reasons := rules.judge(tier, facts, limits):
            return {reason.partition(":")[0] for reason in reasons}
    return set()


@pytest.mark.parametrize(("name", "facts", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_rule_refuses_with_its_reason(name, facts, reason):
    found = RULES[name](facts, limits_for(name))
    assert found is not None
    assert reason in (None, found)


@pytest.mark.parametrize(("name", "facts", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_an_inspection_refuses_by_that_rule(name, facts, reason):
    assert name in verdict(facts, limits_for(name))


@pytest.mark.parametrize(("name", "facts"), PASSED, ids=[case[0] for case in PASSED])
def test_just_good_enough(name, facts):
    assert RULES[name](facts, limits_for(name)) is None


def test_a_good_dataset_passes_everything():
    assert verdict(good_facts()) == set()


def test_the_reason_for_an_uncertain_convention_carries_the_evidence():
    reason = rules.joints_known(contradictory(), LIMITS)
    assert reason.startswith("joint convention not certain: ")
    assert "500" in reason


@pytest.mark.parametrize(
    ("limits", "name"),
    [
        (Thresholds(min_cameras=2), "enough_cameras"),
        (Thresholds(min_fps=31), "fps_in_range"),
        (Thresholds(max_fps=29), "fps_in_range"),
        (Thresholds(min_episodes=3), "enough_episodes"),
        (Thresholds(min_frames=201), "enough_frames"),
        (Thresholds(max_frames=199), "enough_frames"),
        (Thresholds(min_motion=500), "motion_present"),
        (Thresholds(min_follow=1.1), "state_follows"),
        (Thresholds(max_lag=0.05), "lag_plausible"),
        (Thresholds(min_gripper=101), "gripper_used"),
        (ONLY_APACHE, "license_allowed"),
        (Thresholds(max_meta_mb=0.001), "metadata_bounded"),
        (Thresholds(max_table_mb=0.001), "tables_bounded"),
    ],
)
def test_every_threshold_counts(limits, name):
    assert RULES[name](good_facts(), LIMITS) is None
    assert RULES[name](good_facts(), limits) is not None


def test_both_sides_of_every_rule_are_shown_here():
    assert {name for name, _, _ in REFUSED} == set(RULES)
    assert {name for name, _ in PASSED} == set(RULES)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Thresholds(max_bad_episodes=0.4), "at most 40% may be (--max_bad_episodes)"),
        (Thresholds(min_episodes=2), "at least 2 good ones are needed (--min_episodes)"),
        (Thresholds(min_frames=60), "the others have 50 frames, 60 are needed (--min_frames)"),
    ],
)
def test_good_episodes_have_to_be_enough(limits, reason):
    assert reason in rules.enough_good_episodes(episodes_bad(1, of=2), limits)


OVERLAP = Overlap(None, {}, 10, 0.0, {}, 0.0)
OVER_ALL = [
    ("not_duplicate", {}, None),
    ("not_duplicate", {"episodes": {"a/a": 5}, "episode_share": 0.5}, None),
    (
        "not_duplicate",
        {"episodes": {"a/a": 6}, "episode_share": 0.6},
        "6 of 10 episodes are in a/a, published earlier",
    ),
    (
        "not_duplicate",
        {"episodes": {"a/a": 5, "b/b": 3}, "episode_share": 0.8},
        "8 of 10 episodes are in a/a (5), b/b (3), published earlier",
    ),
    ("not_duplicate", {"equal": "a/a"}, "same actions as a/a, published earlier"),
    ("not_near_duplicate", {}, None),
    ("not_near_duplicate", {"runs": {"a/a": 90}, "run_share": 0.2}, None),
    ("not_near_duplicate", {"runs": {"a/a": 6}, "run_share": 1.0}, None),
    (
        "not_near_duplicate",
        {"runs": {"a/a": 90}, "run_share": 0.21},
        "same motion as a/a, published earlier (21% of it found again)",
    ),
    ("shared_episodes", {}, None),
    (
        "shared_episodes",
        {"episodes": {f"a/{n}": 1 for n in range(5)}, "episode_share": 0.5},
        "5 of 10 episodes are in a/0 (1), a/1 (1), a/2 (1), a/3 (1) and 1 more, published earlier",
    ),
]
OVERALL_RULES = {rule.__name__: rule for rule in (*rules.CATALOGUE_RULES, *rules.CATALOGUE_FLAGS)}


@pytest.mark.parametrize(("name", "changes", "reason"), OVER_ALL)
def test_a_rule_over_the_whole_catalogue(name, changes, reason):
    assert OVERALL_RULES[name](dataclasses.replace(OVERLAP, **changes), LIMITS) == reason


def test_both_sides_of_every_rule_over_the_catalogue_are_shown_here():
    for refused in (True, False):
        shown = {name for name, _, reason in OVER_ALL if (reason is not None) == refused}
        assert shown == set(OVERALL_RULES)


def test_every_threshold_is_used_by_a_rule():
    modules = [
        importlib.import_module(f"depi.catalog.{name}")
        for name in ("repository_rules", "recording_rules", "episodes", "order")
    ]
    text = "".join(module.__loader__.get_source(module.__name__) for module in modules)
    names = [item.name for item in dataclasses.fields(Thresholds)]
    assert [name for name in names if f"limits.{name}" not in text] == []


FLAGGED = [
    ("constant_offset", good_facts(), None),
    (
        "constant_offset",
        commands_off_by(6.0),
        "commands are off by shoulder_pan +6.0 degrees; --dataset.correct_offsets=true takes that out",
    ),
    ("junk_task_text", changed(tasks=("test", "Pick up the red cube.")), "task text 'test'"),
    ("junk_task_text", changed(tasks=()), "task text none at all"),
    ("junk_task_text", good_facts(), None),
    ("approximate_joints", good_facts(), "degrees right to about 2%"),
    ("approximate_joints", in_degrees(), None),
    ("approximate_joints", calibrated(), None),
]


@pytest.mark.parametrize(("name", "facts", "remark"), FLAGGED)
def test_a_remark_and_its_absence(name, facts, remark):
    flags = {flag.__name__: flag for flag in rules.FLAGS}
    assert flags[name](facts, LIMITS) == remark


def test_both_sides_of_every_remark_are_shown_here():
    for present in (True, False):
        assert {name for name, _, remark in FLAGGED if (remark is not None) == present} == {
            flag.__name__ for flag in rules.FLAGS
        }


def test_an_accepted_dataset_says_which_episodes_are_left_out():
    assert rules.remarks(episodes_bad(1, of=4), LIMITS)[-1] == (
        "bad_episodes: numbers_finite: in episode 0: the action is not a finite number in 1 of 50 frames"
    )


def test_remarks_do_not_refuse():
    facts = changed(tasks=("test", "Pick up the red cube."))
    assert verdict(facts) == set()
    assert rules.remarks(facts, LIMITS) == [
        "junk_task_text: task text 'test'",
        "approximate_joints: degrees right to about 2%",
    ]


def test_needs_come_first_and_alone_other_rules_all_speak():
    tier = rules.TIERS[1]
    facts = good_facts(info_json(fps=1, total_episodes=0, robot_type="koch"))
    assert [reason.partition(":")[0] for reason in rules.judge(tier, facts, LIMITS)] == [
        "so100_arm",
        "fps_in_range",
        "enough_episodes",
    ]
    facts.info_error = "broken"
    assert rules.judge(tier, facts, LIMITS) == ["info_readable: broken"]


def test_a_disabled_rule_is_not_asked():
    tier = rules.TIERS[0]
    facts = changed(gated=True, disabled=True)
    assert len(rules.judge(tier, facts, LIMITS)) == 2
    disabled = rules.check_disabled(["not_gated"])
    assert rules.judge(tier, facts, LIMITS, disabled) == [
        "not_disabled: the Hub has disabled this repository"
    ]


def test_only_known_and_optional_rules_can_be_disabled():
    assert rules.check_disabled(["not_duplicate"]) == {"not_duplicate"}
    with pytest.raises(UserError, match="no rule not_gatet"):
        rules.check_disabled(["not_gatet"])
    with pytest.raises(UserError, match="single_arm cannot be switched off"):
        rules.check_disabled(["single_arm"])


def test_every_rule_is_documented_and_in_snake_case():
    for name, rule in {**RULES, **OVERALL_RULES}.items():
        assert rule.__doc__
        assert name.islower()
        assert name.isidentifier()
