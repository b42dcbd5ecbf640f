import json

import pytest

from depi.errors import UserError
from depi.sim.record import parse_cameras
from depi.sim.setup import Camera, Setup, random_setup


def test_setup_survives_json():
    setup = random_setup(5)
    assert Setup.from_dict(json.loads(json.dumps(setup.to_dict()))) == setup


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"fps": 7}, "fps is 7"),
        ({"convention": "furlongs"}, "convention is 'furlongs'"),
        ({"width": 101}, "101x240"),
        ({"cameras": [{"name": "a", "kind": "top"}] * 2}, "same name"),
        ({"cameras": [{"name": "a/b", "kind": "top"}]}, "a/b"),
        ({"cameras": [{"name": "a", "kind": "drone"}]}, "drone"),
        ({"colour": "red"}, "colour"),
        ({"object_size": 0.1}, "0.015 to 0.04"),
    ],
)
def test_impossible_setups_are_named(values, complaint):
    with pytest.raises(UserError, match=complaint):
        Setup.from_dict(values)


def test_joint_names_follow_the_convention():
    assert Setup(convention="degrees_v1").joint_names[0] == "main_shoulder_pan"
    assert Setup(convention="radians").joint_names[5] == "gripper.pos"


def test_random_setups_are_repeatable_varied_and_split():
    seen = [random_setup(seed) for seed in range(40)]
    unseen = [random_setup(seed, "unseen") for seed in range(40)]
    assert seen[3] == random_setup(3)
    assert {setup.convention for setup in seen} == {"degrees_v1", "degrees", "normalized", "radians"}
    assert {len(setup.cameras) for setup in seen} == {1, 2, 3}
    assert not {setup.table for setup in seen} & {setup.table for setup in unseen}
    assert max(abs(setup.base_offset[2]) for setup in seen) <= 4
    assert min(abs(setup.base_offset[2]) for setup in unseen) >= 4
    with pytest.raises(UserError, match="seen or unseen"):
        random_setup(0, "train")


def test_camera_flags():
    assert parse_cameras("laptop:front, wrist") == (Camera("laptop", "front"), Camera("wrist", "wrist"))
    with pytest.raises(UserError, match="camera 'phone' needs a kind"):
        parse_cameras("phone")
