"""Two small datasets of different users on an embedded Hub, accepted by a catalogue."""

from pathlib import Path

import pytest
from recordings import Recording, write_v2, write_v3

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


@pytest.fixture
def flags(data_ids, tmp_path) -> list[str]:
    """What trains the smallest pi0 for six steps; later flags win."""
    small = {
        "image_resolution": "[28,28]",
        "vision_width": 16,
        "vision_depth": 1,
        "vision_mlp_dim": 32,
        "width": 32,
        "mlp_dim": 32,
        "expert_width": 32,
        "expert_mlp_dim": 32,
        "depth": 2,
        "head_dim": 16,
        "chunk_size": 4,
        "n_action_steps": 4,
        "optimizer_lr": 3e-3,
        "scheduler_warmup_steps": 1,
        "scheduler_decay_steps": 3,
    }
    return [
        "--policy.type=depi_pi0",
        "--policy.device=cpu",
        *(f"--policy.{name}={value}" for name, value in small.items()),
        "--num_datasets=2",
        f"--dataset.data_ids={data_ids}",
        f"--output_dir={tmp_path / 'run'}",
        "--job_name=test",
        "--steps=6",
        "--batch_size=4",
        "--num_workers=0",
        "--log_freq=1",
        "--save_freq=2",
    ]
