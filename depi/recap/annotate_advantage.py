"""`depi advantage`: one pass of a value network over all frames, then advantages and indicators.

The work is shared by processes of this machine. They are independent of each other, so no process group is
needed, a killed process loses only its own part, and it works without GPUs, where `accelerate launch` starts
a single process.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from depi.errors import UserError
from depi.flags import check_flags, parse_flags
from depi.progress import progress_bar

if TYPE_CHECKING:
    from depi.recap.advantage_config import AdvantageFlags
    from depi.recap.frames import FrameReader
    from depi.recap.labels import Labels
    from depi.recap.values import Part

logger = logging.getLogger(__name__)

COMMAND = "depi advantage"


def main(args: Sequence[str]) -> int:
    """Compute advantages, print a summary, and return the exit status."""
    # Help and wrong flags are handled before slow imports.
    check_flags(Path(__file__).with_name("advantage_config.py"), "AdvantageFlags", args, COMMAND)
    from depi.recap.advantage_config import AdvantageFlags
    from depi.recap.judging import given_flags

    config = parse_flags(AdvantageFlags, args, COMMAND)
    _show(compute_advantages(config, given_flags(args)))
    return 0


def compute_advantages(config: "AdvantageFlags", given: Collection[str] = ()) -> dict[str, Any]:
    """Compute and write the advantages that the flags describe; see `depi.datasets.samples.advantages`.

    Args:
        config: of the command.
        given: the flags that were set; see `depi.recap.judging.as_trained`.

    Returns:
        What `advantages.json` says, and under `folder` where it is.

    Raises:
        UserError: the network or the data cannot be used; successes are not known; a return falls below -1;
            or too many episodes have frames that cannot be read.
    """
    from depi.datasets.samples.outcomes import check_normalizer, read_outcomes
    from depi.recap.judging import as_trained, load_value_config, open_frames
    from depi.recap.labels import Labels, Settings

    checkpoint, value = load_value_config(config.policy)
    data = as_trained(config.dataset, checkpoint, given)
    reader = open_frames(data, config.num_datasets, value.image_resolution[0], checkpoint)
    dataset = reader.dataset
    settings = Settings(
        look_ahead=config.look_ahead,
        share=config.share,
        per_task=config.per_task,
        force_interventions=config.force_interventions,
        c_fail=value.c_fail,
        reward_normalizer=value.reward_normalizer,
        clamp=config.clamp or value.clamp,
    )
    # Errors that the user can fix are raised before hours of computing.
    outcomes = read_outcomes(dataset, file=data.success, assume_success=data.assume_success)
    lengths, rewards = np.diff(dataset.episode_start), (settings.c_fail, settings.reward_normalizer)
    clamped = check_normalizer(lengths, outcomes.success, *rewards, clamp=settings.clamp)
    folder, parts, sha256 = _compute(config, reader, checkpoint)
    labels = Labels(reader, parts, outcomes, settings, clamped)
    _refuse_too_many(labels, data.max_bad_fraction)
    about = {"path": config.policy.path, "folder": str(checkpoint), "sha256": sha256}
    return {"folder": str(folder), **labels.write(folder, about)}


def _compute(
    config: "AdvantageFlags", reader: "FrameReader", checkpoint: Path
) -> tuple[Path, list[list["Part"]], str]:
    """The folder of the sidecars, the parts of the values, all computed, and the checkpoint's digest."""
    from depi.engine import make_runner
    from depi.recap.values import Network, checkpoint_digest, compute_values, default_workers, parts_of, plans

    sha256 = checkpoint_digest(checkpoint)
    network = Network(checkpoint, sha256, config.policy.device, config.batch_size)
    folder = config.output_dir or Path("outputs/advantages") / plans(reader, network)
    parts = parts_of(reader, network, folder, config.part_frames)
    workers = config.workers or default_workers(config.policy.device)
    workers = min(workers, sum(map(len, parts)))
    with progress_bar("Judging frames") as show:
        kept = compute_values(parts, run=make_runner("local", workers=workers), progress=show)
    if kept:
        logger.info("%s of %s parts had been computed before", kept, sum(map(len, parts)))
    return folder, parts, sha256


def _refuse_too_many(labels: "Labels", allowed: float) -> None:
    """Log the frames that are left out; UserError where too large a share of the episodes has any."""
    episodes = {(repo_id, one.episode) for repo_id, frames in labels.left_out.items() for one in frames}
    for repo_id, frames in labels.left_out.items():
        one = frames[0]
        logger.warning(
            "%s frames of %s cannot be read and are left out, the first is frame %s of episode %s: %s",
            len(frames),
            repo_id,
            one.frame,
            one.episode,
            one.reason,
        )
    total = labels.dataset.num_episodes
    if len(episodes) > allowed * total:
        raise UserError(
            f"{len(episodes)} of {total} episodes have frames that cannot be read, more than the share "
            f"{allowed:g}: leave out those datasets or raise --dataset.max_bad_fraction"
        )


def _show(summary: Mapping[str, Any]) -> None:
    table = Table("dataset", "episodes", "successes", "frames", "positive", "left out")
    for column in table.columns[1:]:
        column.justify = "right"
    for repo_id, one in summary["datasets"].items():
        positive = f"{one['positive']} ({one['positive'] / one['frames']:.0%})"
        numbers = (one["episodes"], one["successes"], one["frames"], positive, one["left_out"])
        table.add_row(repo_id, *map(str, numbers))
    Console().print(table)
    epsilon = summary["epsilon"]
    shown = f"{epsilon:.6g}" if isinstance(epsilon, float) else f"of {len(epsilon)} tasks"
    print(
        f"epsilon {shown}: {summary['frames_above_epsilon']} of {summary['frames']} frames are above, "
        f"{summary['frames_forced_positive']} are positive by intervention; in {summary['folder']}\n"
        f"train with --advantage.mode=use --advantage.path={summary['folder']}"
    )
