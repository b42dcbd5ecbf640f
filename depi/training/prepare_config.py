"""The flags of `depi prepare`."""

from dataclasses import dataclass, field
from pathlib import Path

from depi.engine import ENGINES, RayConfig
from depi.flags import check_ranges
from depi.training.config import DatasetConfig


@dataclass
class PrepareConfig:
    """Write training-ready images: depi prepare --output_dir=DIR, then train with --dataset.prepared=DIR.

    Data:    --num_datasets=N (the best N of data_ids/), --dataset.repo_ids=FILE.json
             or --dataset.repo_id=USER/NAME, as for training; also --dataset.max_cameras and the like
    An interrupted run goes on where it stopped when it is started again.
    """

    output_dir: Path
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    num_datasets: int | None = None
    # Side of the square images, in pixels: the policy's image resolution.
    image_size: int = 224
    # JPEG quality.
    quality: int = 95
    # Scale down with antialiasing: the policy's image_antialias.
    antialias: bool = False
    # Shards at a time; 0 for one per core, of this machine or of the cluster.
    workers: int = 0
    # What runs the work: local, the processes of this machine; or ray, a cluster with shared folders.
    engine: str = "local"
    ray: RayConfig = field(default_factory=RayConfig)
    # Check also the images that an earlier run wrote.
    verify: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"--engine={self.engine} is none of {', '.join(ENGINES)}")
        check_ranges(self, image_size=(16, 4096), quality=(50, 100), workers=(0, 1024))
