import pytest

from depi.sim.record import record_dataset
from depi.sim.setup import Camera, Setup

SMALL = {"width": 96, "height": 64, "fps": 10, "codec": "h264"}


@pytest.fixture(scope="session")
def recording_v21(tmp_path_factory):
    root = tmp_path_factory.mktemp("v21") / "ann" / "arm"
    setup = Setup(
        (Camera("laptop", "side"),),
        format="v2.1",
        convention="degrees_v1",
        robot_type="so100",
        task_text="test",
        **SMALL,
    )
    return record_dataset("touch", setup, "ann/arm", root, episodes=2), setup


@pytest.fixture(scope="session")
def recording_v30(tmp_path_factory):
    root = tmp_path_factory.mktemp("v30") / "bob" / "arm"
    setup = Setup((Camera("front", "front"),), convention="normalized", **SMALL)
    return record_dataset("touch", setup, "bob/arm", root, episodes=2), setup
