"""`depi prepare`: decode the videos once, and train on small JPEG images from then on."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from depi.datasets.union.prepare import Prepared, Settings, prepare
from depi.engine import ENGINES, RayConfig, make_runner
from depi.errors import UserError
from depi.files import write_json
from depi.flags import check_ranges, parse_flags
from depi.progress import progress_bar
from depi.training.command_line import check_data_source
from depi.training.config import DatasetConfig, TrainConfig
from depi.training.data import dataset_sources, open_sources

REPORT_NAME = "report.json"


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


def main(args: Sequence[str]) -> int:
    """Prepare, print what became of each dataset, and return the exit status."""
    config = parse_flags(PrepareConfig, args, "depi prepare")
    training = TrainConfig(dataset=config.dataset, num_datasets=config.num_datasets)
    check_data_source(training)
    dataset = open_sources(training, dataset_sources(training))
    settings = Settings(config.output_dir, config.image_size, config.quality, config.antialias)
    run = make_runner(config.engine, workers=config.workers, address=config.ray.address)
    with progress_bar("Preparing shards") as show:
        results = prepare(dataset, settings, run=run, verify=config.verify, progress=show)
    report = {
        "datasets": [asdict(result) for result in results],
        "quarantined": dataset.quarantined,
        "episodes_left_out": {entry["repo_id"]: entry["episodes_left_out"] for entry in dataset.entries},
    }
    write_json(config.output_dir / REPORT_NAME, report)
    _show(results)
    broken = [result for result in results if result.error]
    if broken:
        raise UserError(
            f"{len(broken)} of {len(results)} datasets are not complete, run the same command again: "
            + json.dumps({result.repo_id: result.error for result in broken}, ensure_ascii=False)
        )
    return 0


def _show(results: Sequence[Prepared]) -> None:
    table = Table("dataset", "episodes", "images", "MB", "not decodable", "state")
    for column in table.columns[1:5]:
        column.justify = "right"
    for result in results:
        state = result.error or (
            "complete" if not result.reused else f"complete, {result.reused} shards kept"
        )
        numbers = (result.episodes, result.images, round(result.bytes / 1e6), len(result.failed))
        table.add_row(result.repo_id, *map(str, numbers), state)
    Console().print(table)
