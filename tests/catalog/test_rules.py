"""Each rule on both sides: facts that pass, and the least change that does not."""

import dataclasses

import numpy as np
import pytest

from depi.catalog import rules
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.inspect import gather_joints
from depi.datasets.formats import parse_info
from depi.errors import UserError

LIMITS = Thresholds()
JOINTS = [f"{joint}.pos" for joint in rules.JOINTS]


def info_json(**changes) -> dict:
    vector = {"dtype": "float32", "shape": [6], "names": JOINTS}
    index = {"dtype": "int64", "shape": [1], "names": None}
    camera = {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v2.1",
        "robot_type": "so101_follower",
        "total_episodes": 2,
        "total_frames": 200,
        "fps": 30,
        "features": {
            "action": vector,
            "observation.state": vector,
            "observation.images.front": camera,
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            "frame_index": index,
            "episode_index": index,
            "index": index,
            "task_index": index,
        },
    }
    return {**info, **changes}


def with_features(**changes) -> dict:
    """info.json with features changed, or removed where the value is None."""
    features = {**info_json()["features"], **changes}
    return info_json(features={name: value for name, value in features.items() if value is not None})


def good_facts(info: dict | None = None) -> Facts:
    """Facts of a dataset that passes every rule: 2 episodes of 100 frames, normalised joints."""
    data = tuple(f"data/chunk-000/episode_{number:06d}.parquet" for number in range(2))
    video = tuple(f"videos/chunk-000/observation.images.front/episode_{n:06d}.mp4" for n in range(2))
    files = dict.fromkeys(("meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", *data, *video), 1000)
    facts = Facts(repo_id="ann/pick_cube", revision="a" * 40, files=files, tags=("LeRobot", "so101"))
    facts.info = parse_info(info or info_json())
    facts.tasks = ("Pick up the red cube.",)
    facts.episode_length = np.array([100, 100])
    facts.data_files, facts.video_files = data, video
    wave = np.sin(np.linspace(0, 9, 200))[:, None] * np.array([30, 50, 40, 20, 10, 0])
    facts.action = (wave + np.array([0, -20, 10, 5, 0, 50])).astype(np.float32)
    facts.action[50:60, 2] = 100.0  # at its stop: only normalised values rest there
    facts.state = facts.action + np.float32(0.25)
    facts.state[50:60, 2] = 100.0
    facts.timestamp = np.tile(np.arange(100) / 30, 2).astype(np.float32)
    if "action" in facts.info.features:
        gather_joints(facts)
    return facts


def changed(**fields) -> Facts:
    facts = good_facts()
    for name, value in fields.items():
        setattr(facts, name, value)
    return facts


def without_file(path: str) -> Facts:
    facts = good_facts()
    del facts.files[path]
    return facts


def with_value(column: str, place, value: float) -> Facts:
    facts = good_facts()
    getattr(facts, column)[place] = value
    return facts


def with_size(path: str, size: int) -> Facts:
    facts = good_facts()
    facts.files[path] = size
    return facts


def frozen_state() -> Facts:
    return changed(state=np.tile(np.float32([1, 2, 3, 4, 5, 6]), (200, 1)))


def barely_moving() -> Facts:
    return changed(state_degrees=np.linspace(0, 0.4, 200)[:, None] * np.ones(6))


def contradictory() -> Facts:
    """Names of after the change, values of neither kind."""
    facts = good_facts()
    facts.action[0, 0] = 500.0
    gather_joints(facts)
    return facts


VECTOR_12 = {"dtype": "float32", "shape": [12], "names": None}
VECTOR_2 = {"dtype": "float32", "shape": [2], "names": None}
DEPTH = {"dtype": "video", "shape": [48, 64, 1], "names": None}

REFUSED = [
    ("reachable", changed(access_error="there is no ann/x"), "there is no ann/x"),
    ("has_info", without_file("meta/info.json"), "no meta/info.json among its 6 files"),
    (
        "has_info",
        changed(files={"a/one/meta/info.json": 5, "b/two/meta/info.json": 5}),
        "no meta/info.json at the top; a collection of 2 datasets in folders is not read",
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
        "single_arm",
        good_facts(with_features(action=VECTOR_12)),
        "action has shape [12], as of two arms; a single arm has [6]",
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
    ("counts_match", good_facts(info_json(total_frames=201)), "201 frames declared, 200 listed"),
    (
        "files_present",
        without_file("videos/chunk-000/observation.images.front/episode_000001.mp4"),
        "1 of 2 video files missing, as videos/chunk-000/observation.images.front/episode_000001.mp4",
    ),
    (
        "files_present",
        without_file("data/chunk-000/episode_000000.parquet"),
        "1 of 2 data files missing, as data/chunk-000/episode_000000.parquet",
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
        "finite_values",
        with_value("action", (7, 2), np.nan),
        "action is NaN or infinite in 1 of 200 frames, first in 7",
    ),
    (
        "finite_values",
        with_value("state", (9, 0), -np.inf),
        "observation.state is NaN or infinite in 1 of 200 frames, first in 9",
    ),
    (
        "finite_values",
        with_value("timestamp", 3, np.nan),
        "timestamp is NaN or infinite in 1 of 200 frames, first in 3",
    ),
    (
        "timestamps_monotonic",
        with_value("timestamp", 150, 0.0),
        "time stands still or runs back at 1 frames, first in episode 1",
    ),
    (
        "timestamps_in_step",
        changed(timestamp=np.tile(np.arange(100) / 10, 2)),
        "frames are 0.1 s apart, 30 fps means 0.03333 s",
    ),
    ("not_frozen", frozen_state(), "observation.state is the same in all 200 frames"),
    ("not_frozen", changed(action=np.zeros((200, 6), np.float32)), "action is the same in all 200 frames"),
    (
        "motion_present",
        barely_moving(),
        "no joint of observation.state moves more than 0.4 degrees (--min_motion)",
    ),
]

RULES = {rule.__name__: rule for tier in rules.TIERS for rule in (*tier.needs, *tier.rules)}


@pytest.mark.parametrize(("name", "facts", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_a_rule_refuses_with_its_reason(name, facts, reason):
    assert RULES[name](facts, LIMITS) == reason


@pytest.mark.parametrize("name", RULES)
def test_a_good_dataset_passes(name):
    assert RULES[name](good_facts(), LIMITS) is None


def test_the_reason_for_an_uncertain_convention_carries_the_evidence():
    reason = rules.joints_known(contradictory(), LIMITS)
    assert reason.startswith("joint convention not certain: ")
    assert "500" in reason


def test_without_camera_the_task_text_must_be_usable():
    facts = good_facts(with_features(**{"observation.images.front": None}))
    assert rules.task_known(facts, LIMITS) is None
    facts.tasks = ("test", "task desc")
    assert rules.task_known(facts, LIMITS) == (
        "no usable task text ('test', 'task desc') and no camera to annotate one from"
    )
    facts.tasks = ()
    assert "none at all" in rules.task_known(facts, LIMITS)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("not_evaluation", changed(repo_id="ann/medieval_evaluator_cube")),
        ("so100_arm", good_facts(info_json(robot_type=None))),
        ("so100_arm", good_facts(info_json(robot_type="unknown"))),
        ("so100_arm", good_facts(info_json(robot_type="SO-ARM101"))),
        ("so100_arm", good_facts(info_json(robot_type="my_own_arm"))),
        ("fps_in_range", good_facts(info_json(fps=5.0))),
        ("fps_in_range", good_facts(info_json(fps=120))),
        ("enough_frames", good_facts(info_json(total_frames=50))),
        ("enough_episodes", good_facts(info_json(total_episodes=1))),
        ("timestamps_in_step", good_facts(info_json(fps=25))),
    ],
)
def test_just_good_enough(name, facts):
    assert RULES[name](facts, LIMITS) is None


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
        (Thresholds(max_meta_mb=0.001), "metadata_bounded"),
        (Thresholds(max_table_mb=0.001), "tables_bounded"),
    ],
)
def test_every_threshold_counts(limits, name):
    assert RULES[name](good_facts(), LIMITS) is None
    assert RULES[name](good_facts(), limits) is not None


def test_both_sides_of_every_rule_are_shown_here():
    refused = {name for name, _, _ in REFUSED} | {"joints_known", "task_known"}
    assert refused == set(RULES)


def test_every_threshold_is_used_by_a_rule():
    source = dataclasses.fields(Thresholds)
    text = "".join(rules.__loader__.get_source(rules.__name__))
    assert [item.name for item in source if f"limits.{item.name}" not in text] == []


def test_remarks_do_not_refuse():
    facts = changed(tasks=("test", "Pick up the red cube."))
    assert rules.remarks(facts, LIMITS) == [
        "junk_task_text: task text 'test'",
        "approximate_joints: degrees right to about 2%",
    ]
    assert rules.remarks(changed(tasks=()), LIMITS)[0] == "junk_task_text: task text none at all"
    facts = good_facts()
    facts.detection = dataclasses.replace(facts.detection, convention="degrees")
    assert rules.remarks(facts, LIMITS) == []


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
    for name, rule in RULES.items():
        assert rule.__doc__
        assert name.islower()
        assert name.isidentifier()
