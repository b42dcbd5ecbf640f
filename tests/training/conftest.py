"""Two small datasets of different users on an embedded Hub, accepted by a catalogue."""

import dataclasses
from pathlib import Path

import pytest
from recordings import Recording, write_v2, write_v3
from runs import small_training

from depi.files import write_json
from depi.hub.client.api import upload_folder


@pytest.fixture(scope="module")
def data_ids(module_hub, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    one_camera = ("observation.images.top",)
    write_v3(folder / "v30", Recording(lengths=(9, 7)))
    write_v2(folder / "v21", Recording(lengths=(8, 6), cameras=one_camera, fps=20, seed=1))
    ids = ["alice/pick", "bob/place"]
    for repo_id, name in zip(ids, ("v30", "v21"), strict=True):
        upload_folder(folder / name, repo_id, repo_type="dataset", commit_message="Upload")
    write_json(folder / "data_ids" / "dataset_list_valid.json", ids)
    return folder / "data_ids"


@pytest.fixture(scope="module")
def gym_data(module_hub, tmp_path_factory) -> None:
    """What `lerobot/pusht` and `lerobot/aloha_sim_insertion_human` look like, very short; another aloha."""
    pusht = Recording(
        lengths=(8, 6),
        cameras=("observation.image",),
        names=["motor_0", "motor_1"],
        tasks=("Push the T-shaped block onto the T-shaped target.",),
        dim=2,
        size=(96, 96),
    )
    joints = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
    aloha = Recording(
        lengths=(7, 6),
        fps=50,
        cameras=("observation.images.top",),
        names=[f"{side}_{joint}" for side in ("left", "right") for joint in joints],
        tasks=("Insert the peg into the socket.",),
        dim=14,
    )
    cube = dataclasses.replace(aloha, cameras=("observation.images.high", "observation.images.low"), seed=1)
    folder = tmp_path_factory.mktemp("gym")
    write_v3(folder / "pusht", pusht)
    write_v2(folder / "aloha", aloha)
    write_v3(folder / "cube", cube)
    published = {"pusht": "lerobot/pusht", "aloha": "lerobot/aloha_sim_insertion_human", "cube": "alice/cube"}
    for name, repo_id in published.items():
        upload_folder(folder / name, repo_id, repo_type="dataset", commit_message="Upload")


@pytest.fixture
def flags(data_ids, tmp_path) -> list[str]:
    """What trains the smallest pi0 for six steps; later flags win."""
    return small_training(data_ids, tmp_path / "run")
