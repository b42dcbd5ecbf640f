"""Which camera goes to which slot, as the data report of a checkpoint tells it."""

import pytest

from depi.evaluation.trained_slots import rename_map
from depi.files import write_json

SLOTS = ["observation.images.0", "observation.images.1", "observation.images.2"]
FRONT, WRIST, TOP = (f"observation.images.{name}" for name in ("front", "wrist", "top"))


def report(*cameras: list[str], order: str = "name", annotations: str | None = None) -> dict:
    stream = {"cameras": order, "annotations": annotations}
    return {"datasets": [{"cameras": names} for names in cameras], "stream": stream}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (report([FRONT, WRIST]), {WRIST: SLOTS[0], FRONT: SLOTS[1]}),
        (report([FRONT, WRIST], order="front,wrist"), {FRONT: SLOTS[0], WRIST: SLOTS[1]}),
        (report([FRONT, WRIST], order="view"), {WRIST: SLOTS[0], FRONT: SLOTS[1]}),
        (report([TOP, WRIST], order="view"), {WRIST: SLOTS[0], TOP: SLOTS[2]}),
        (report([FRONT, WRIST], [WRIST, FRONT]), {WRIST: SLOTS[0], FRONT: SLOTS[1]}),
        (report(["observation.image"]), {}),  # which is not here
        (report([FRONT, WRIST], [WRIST, TOP]), {}),  # slot 1 is for either
        (report([FRONT, WRIST], order="view", annotations="abc"), {}),
        (report([FRONT, WRIST], order="no such order"), {}),
        (report(), {}),
        ({"datasets": [{"cameras": 3}], "stream": {"cameras": "name", "annotations": None}}, {}),
        ([], {}),
    ],
)
def test_cameras_find_the_slots_of_training(tmp_path, content, expected):
    write_json(tmp_path / "config.json", {})
    write_json(tmp_path / "data_report.json", content)
    assert rename_map(tmp_path, None, SLOTS, [FRONT, WRIST, TOP]) == expected


def test_nothing_is_said_of_named_cameras_missing_ones_and_without_a_report(tmp_path):
    write_json(tmp_path / "config.json", {})
    assert rename_map(tmp_path, None, SLOTS, [FRONT, WRIST]) == {}
    write_json(tmp_path / "data_report.json", report([FRONT, WRIST]))
    assert rename_map(tmp_path, None, [FRONT, WRIST], [FRONT, WRIST]) == {}
    assert rename_map(tmp_path, None, SLOTS, [FRONT, "observation.images.phone"]) == {}
