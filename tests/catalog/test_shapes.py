"""Metadata and values in the shapes that real datasets have, judged as an inspection would."""

import json

import numpy as np
import pytest
from catalog_facts import JOINTS, good_facts, info_json, later, meta_of, recorded, rejudge

from depi.catalog import rules
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.inspect import make_row
from depi.datasets.recording.formats import parse_info
from depi.datasets.recording.joints import JOINTS as BARE
from depi.errors import DatasetError

MAIN = [f"main_{joint}" for joint in BARE]
MISSING = object()


def judged(facts: Facts) -> set[str]:
    """The rules that refuse in the first tier that refuses."""
    for tier in rules.TIERS:
        if reasons := rules.judge(tier, facts, Thresholds()):
            return {reason.partition(":")[0] for reason in reasons}
    return set()


def with_info(info: dict) -> Facts:
    """Facts of a good recording with this meta/info.json, or with the error that it gives."""
    facts = good_facts()
    try:
        facts.info = parse_info(info)
    except DatasetError as error:
        facts.info_error = str(error)
        return facts
    if "action" in facts.info.features and facts.info.features["action"].shape == (6,):
        rejudge(facts)
    return facts


def vectors(names: object, shape: object = (6,), **changes) -> dict:
    """info.json whose action and state are declared so."""
    vector = {"dtype": "float32", "shape": shape, "names": names}
    if names is MISSING:
        del vector["names"]
    info = info_json(**changes)
    info["features"] = {**info["features"], "action": vector, "observation.state": dict(vector)}
    return info


def without(*names: str) -> dict:
    return {name: value for name, value in info_json().items() if name not in names}


NEW_NAMES = {
    "a list": JOINTS,
    "motors": {"motors": JOINTS},
    "nested": [JOINTS],
    "positions": {name: place for place, name in enumerate(JOINTS)},
    "plain": list(BARE),
    "axes": {"axes": list(BARE)},
    "null": None,
    "absent": MISSING,
    "numbered": [f"motor_{number}" for number in range(6)],
    "too few": JOINTS[:5],
}


@pytest.mark.parametrize("names", NEW_NAMES.values(), ids=NEW_NAMES)
def test_names_come_in_many_shapes(names):
    facts = with_info(vectors(names))
    assert judged(facts) == set()
    assert facts.detection.convention == "normalized"


@pytest.mark.parametrize("names", [MAIN, {"motors": MAIN}, [MAIN]])
def test_old_names_mean_old_degrees(names):
    facts = good_facts(vectors(names))
    old = facts.tables.columns["action"].copy()
    old[50:60, 2] = old[49, 2]
    action = old * np.float32([1, 1, 1, 1, 1, 0.5]) + np.float32([0, 110, 90, 0, 0, 0])
    facts.tables.columns.update({"action": action, "observation.state": later(action, 3)})
    rejudge(facts)
    assert judged(facts) == set()
    assert facts.detection.convention == "degrees_v1"


def test_old_names_with_values_of_neither_kind_are_not_guessed():
    facts = good_facts(vectors(MAIN))
    facts.tables.columns["action"][:, 1] += 900
    rejudge(facts)
    assert judged(facts) == {"joints_known"}


WHOLE = {
    "a list": vectors(JOINTS, [6]),
    "a tuple": vectors(JOINTS, (6,)),
    "a number": vectors(JOINTS, 6),
    "robot null": info_json(robot_type=None),
    "robot unknown": info_json(robot_type="unknown"),
    "robot empty": info_json(robot_type=""),
    "so100": info_json(robot_type="so100"),
    "so100_follower": info_json(robot_type="so100_follower"),
    "robot absent": without("robot_type"),
    "fps float": info_json(fps=30.0),
    "fps odd": info_json(fps=29.97),
    "v2.0": info_json(codebase_version="v2.0"),
    "v3.0": info_json(codebase_version="v3.0"),
    "splits": info_json(splits={"train": "0:2"}),
    "splits null": info_json(splits=None),
    "splits absent": without("splits"),
    "paths absent": without("data_path", "video_path", "chunks_size"),
    "more keys": info_json(total_chunks=1, total_videos=4, total_tasks=1, data_files_size_in_mb=100, x=[]),
}


@pytest.mark.parametrize("info", WHOLE.values(), ids=WHOLE)
def test_metadata_that_is_as_good_as_any(info):
    assert judged(with_info(info)) == set()


CAMERAS = {
    "channels first": {"dtype": "video", "shape": [3, 480, 640], "names": ["channels", "height", "width"]},
    "video_info": {"dtype": "video", "shape": [480, 640, 3], "names": None, "video_info": {"video.fps": 30}},
    "image": {"dtype": "image", "shape": (480, 640, 3), "names": ["height", "width", "channel"]},
}


@pytest.mark.parametrize("camera", CAMERAS.values(), ids=CAMERAS)
@pytest.mark.parametrize("key", ["observation.images.laptop", "observation.image", "camera1"])
def test_cameras_of_every_spelling_count(camera, key):
    info = info_json()
    info["features"] = {**info["features"], key: camera}
    del info["features"]["observation.images.front"]
    facts = with_info(info)
    assert judged(facts) == set()
    row = make_row(facts, [], Thresholds())
    assert (row.cameras, row.camera_sizes) == ([key], ["640x480"])


BROKEN = {
    "v1.6": (info_json(codebase_version="v1.6"), "info_readable"),
    "version absent": (without("codebase_version"), "info_readable"),
    "fps as text": (info_json(fps="30"), "info_readable"),
    "fps zero": (info_json(fps=0), "info_readable"),
    "fps true": (info_json(fps=True), "info_readable"),
    "no features": (without("features"), "info_readable"),
    "features a list": (info_json(features=[]), "info_readable"),
    "negative episodes": (info_json(total_episodes=-1), "info_readable"),
    "a list": ([], "info_readable"),
    "two arms": (vectors(None, [12], robot_type="bi_so100_follower"), "not_bimanual"),
    "two arms unsaid": (vectors(None, [12], robot_type=None), "not_bimanual"),
    "aloha": (vectors(None, [14], robot_type="aloha"), "not_bimanual"),
    "pusht": (vectors(None, [2], robot_type="unknown"), "single_arm"),
    "matrix": (vectors(None, [6, 1]), "single_arm"),
    "koch": (info_json(robot_type="koch_follower"), "so100_arm"),
    "declared too many": (info_json(total_episodes=50), "counts_match"),
}


@pytest.mark.parametrize(("info", "rule"), BROKEN.values(), ids=BROKEN)
def test_metadata_that_is_refused(info, rule):
    assert judged(with_info(info)) == {rule}


def test_a_bimanual_dataset_is_marked_in_its_row():
    facts = with_info(vectors(None, [12], robot_type="bi_so100_follower"))
    row = make_row(facts, ["not_bimanual: two arms"], Thresholds())
    assert (row.bimanual, row.verdict) == (True, "rejected")
    assert make_row(good_facts(), [], Thresholds()).bimanual is False


def test_an_evaluation_run_is_marked_in_its_row_by_name_or_task():
    facts = good_facts()
    assert make_row(facts, [], Thresholds()).evaluation is False
    facts.tasks = ("eval 3",)
    assert make_row(facts, [], Thresholds()).evaluation is True
    facts = good_facts()
    facts.repo_id = "ann/eval_act"
    assert make_row(facts, [], Thresholds()).evaluation is True


def moving_between(low: list[float], high: list[float]) -> Facts:
    """Joints that go from one end of their range to the other and rest there, as recorded."""
    middle, half = (np.array(high) + low) / 2, (np.array(high) - low) / 2
    phase = np.linspace(0, 9, 200)[:, None] + np.arange(6)
    action = (middle + half * np.clip(1.2 * np.sin(phase), -1, 1)).astype(np.float32)
    return recorded(action, later(action, 3))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        # action minima and maxima of real SO-101 recordings
        ((-35, -99, 3, 31, -76, 0.2), (0.5, 10, 100, 83, -43, 40)),
        ((-66, -100, -100, 2, -37, 0), (57, 70, 100, 100, 42, 88)),
        ((-23, -100, -97, 17, -46, 0), (24, 54, 100, 100, 5, 50)),
    ],
)
def test_ranges_of_real_recordings_are_accepted_as_normalized(low, high):
    facts = moving_between(low, high)
    assert judged(facts) == set()
    assert facts.detection.convention == "normalized"
    row = make_row(facts, [], Thresholds())
    assert row.action_max[5] == pytest.approx(high[5], abs=0.1)
    assert row.action_min[1] == pytest.approx(low[1] * 1.035, abs=0.1)


def test_published_metadata_without_its_files_says_which_are_missing():
    """As one real repository: 50 episodes in v3.0 time, two cameras, and only meta/ uploaded."""
    facts = good_facts(info_json(codebase_version="v3.0", total_episodes=50, total_frames=22_449))
    facts.files = dict.fromkeys(
        (
            "meta/info.json",
            "meta/stats.json",
            "meta/tasks.parquet",
            "meta/episodes/chunk-000/file-000.parquet",
        )
    )
    facts.episode_length = np.full(50, 449)
    facts.episode_length[-1] = 448
    facts.data_files = ("data/chunk-000/file-000.parquet",)
    facts.video_files = ("videos/observation.images.top/chunk-000/file-000.mp4",)
    facts.meta = meta_of(facts, facts.data_files, {"observation.images.top": facts.video_files})
    assert judged(facts) == {"files_present"}


def test_info_survives_json_as_it_is():
    for info in (*WHOLE.values(), *(vectors(names) for names in NEW_NAMES.values())):
        assert judged(with_info(json.loads(json.dumps(info)))) == set()
