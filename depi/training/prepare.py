"""`depi prepare`: decode the videos once, and train on small JPEG images from then on."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from depi.engine import make_runner
from depi.errors import UserError
from depi.files import write_json
from depi.flags import check_flags, parse_flags
from depi.progress import progress_bar

if TYPE_CHECKING:
    from depi.datasets.union.prepare import Prepared

COMMAND = "depi prepare"
REPORT_NAME = "report.json"


def main(args: Sequence[str]) -> int:
    """Prepare, print what became of each dataset, and return the exit status."""
    # Help and wrong flags are handled before slow imports.
    args = check_flags(Path(__file__).with_name("prepare_config.py"), "PrepareConfig", args, COMMAND)
    from depi.datasets.union.prepare import Settings, prepare
    from depi.training.command_line import check_data_source
    from depi.training.config import TrainConfig
    from depi.training.data import dataset_sources, open_sources
    from depi.training.prepare_config import PrepareConfig

    config = parse_flags(PrepareConfig, args, COMMAND)
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


def _show(results: "Sequence[Prepared]") -> None:
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
