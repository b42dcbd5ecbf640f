"""An order of cameras that the user gives: `--dataset.cameras=front,wrist,top`."""

import numpy as np
import pytest
from recordings import Recording, number_in, write_v2

from depi.datasets.recording.cameras import ORDERS, camera_order
from depi.datasets.samples.mixture import make_mixture
from depi.datasets.samples.stream import TrainingStream
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.datasets.union.prepare import Settings, prepare
from depi.engine import make_runner
from depi.errors import UserError
from depi.recap.frames import FrameReader

# The first has the names of the list; the second's tell views, and its phone is nobody's.
NAMES = {"named": ("wrist", "front"), "told": ("phone", "cam_wrist_left", "realsense_top", "front_cam")}
LISTED = "front,wrist,top"
# The slots' cameras, by their places in NAMES.
EXPECTED = {"user/named": [1, 0, None], "user/told": [3, 1, 2]}


def keys(*names: str) -> tuple[str, ...]:
    return tuple(f"observation.images.{name}" for name in names)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[DatasetSource]:
    folder = tmp_path_factory.mktemp("orders")
    for name, cameras in NAMES.items():
        write_v2(folder / name, Recording(lengths=(4, 3), cameras=keys(*cameras)))
    return [DatasetSource(f"user/{name}", root=folder / name) for name in NAMES]


def opened(sources, cameras: str = LISTED, **options) -> MultiLeRobotDataset:
    return MultiLeRobotDataset(sources, chunk_size=2, image_size=64, cameras=cameras, **options)


def shown(sample) -> list[int | None]:
    """The camera that each slot shows, as its place in NAMES; None for an absent one."""
    slots = keys("0", "1", "2")
    return [
        None if sample[f"{slot}_is_pad"] else number_in(np.asarray(sample[slot])[:, 8:56]) // 1000
        for slot in slots
    ]


def test_slots_hold_the_listed_cameras_of_datasets_that_name_them_differently(sources):
    dataset = opened(sources)
    stream = TrainingStream(dataset, make_mixture(dataset, seed=0), seed=0, cameras=LISTED)
    for position in range(len(dataset)):
        sample = stream[position]
        assert shown(sample) == EXPECTED[dataset.repo_ids[int(sample["dataset_index"])]]
    entries = dataset.report()["datasets"]
    assert [entry["cameras"] for entry in entries] == [
        [*keys("front", "wrist")],
        [*keys("front_cam", "cam_wrist_left", "realsense_top")],
    ]
    assert [entry["cameras_not_used"] for entry in entries] == [[], [*keys("phone")]]
    assert stream.report()["cameras"] == LISTED
    assert [stream.images_at(position) for position in range(3)] == [
        len(dataset.entries[int(stream[position]["dataset_index"])]["cameras"]) for position in range(3)
    ]


def test_an_empty_slot_stays_empty_between_others(sources):
    dataset = opened(sources[:1], "top,wrist,front")
    stream = TrainingStream(dataset, make_mixture(dataset, seed=0), seed=0, cameras="top,wrist,front")
    assert shown(stream[0]) == [None, 0, 1]


def test_the_frames_of_a_value_network_and_prepared_images_have_the_same_slots(sources, tmp_path):
    direct = opened(sources)
    frames = FrameReader(direct, LISTED).read(0, len(direct))
    prepare(direct, Settings(tmp_path / "out", image_size=64), run=make_runner("local", workers=1))
    dataset = opened(sources, prepared=tmp_path / "out")
    stream = TrainingStream(dataset, make_mixture(dataset, seed=0), seed=0, cameras=LISTED)
    by_index = {int(sample["index"]): sample for sample in map(stream.__getitem__, range(len(dataset)))}
    for index, frame in enumerate(frames):
        number = int(by_index[index]["dataset_index"])
        assert shown(frame) == shown(by_index[index]) == EXPECTED[dataset.repo_ids[number]]
    with pytest.raises(UserError, match=r"prepared in .* with the cameras .*: run `depi prepare` again"):
        opened(sources, "name", prepared=tmp_path / "out")


def test_a_dataset_without_any_of_them_is_left_out_with_the_reason(sources):
    dataset = opened(sources, "phone,", max_bad_datasets=0.5)
    assert dataset.repo_ids == ("user/told",)
    reason = dataset.quarantined["user/named"]
    assert "none of its cameras (observation.images.wrist, observation.images.front) is listed in" in reason


def test_names_win_over_views_and_keys_over_nothing():
    by_slot = camera_order("front,wrist").by_slot
    assert by_slot(keys("a_front", "front", "hand_wrist"), 3) == (*keys("front", "hand_wrist"), None)
    assert camera_order("front,front_2").by_slot(keys("front_2"), 2) == (None, *keys("front_2"))
    assert camera_order("observation.image,").by_slot(["observation.image"], 1) == ("observation.image",)
    assert camera_order("Phone, observation.images.Top").by_slot(keys("top", "phone"), 2) == keys(
        "phone", "top"
    )
    assert camera_order("left,right").by_slot(keys("front"), 2) == (None, None)


@pytest.mark.parametrize("text", [*ORDERS, "front,wrist,top"])
def test_every_order_has_what_the_rest_of_depi_asks_for(text):
    order = camera_order(text)
    assert order.card.endswith(".")
    chosen = order.choose(keys("top", "wrist"))
    assert set(chosen) == set(keys("top", "wrist"))
    assert len(order.place(chosen, {}, 3)) == 3
    assert set(order.by_slot(keys("top", "wrist"), 3)) == {*chosen, None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pose", f"none of {', '.join(ORDERS)}, and no list such as front,wrist"),
        (",", "at least one camera"),
        ("front,,top", "at least one camera"),
        ("front,FRONT", "each once"),
        ("front,\x1b[31mred", r"'front,\\x1b\[31mred' must list"),
    ],
)
def test_a_wrong_order_is_one_sentence(sources, text, says):
    with pytest.raises(UserError, match=says) as raised:
        opened(sources, text)
    assert "\n" not in str(raised.value)


def test_more_cameras_than_slots_are_refused(sources):
    with pytest.raises(UserError, match=r"lists 3 cameras: give each a slot with --dataset.max_cameras=3"):
        opened(sources, max_cameras=2)
