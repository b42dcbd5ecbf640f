"""What training and the catalogue say of a dataset in a local folder."""

from dataclasses import dataclass, field
from pathlib import Path

from depi.catalog.episodes import verdicts
from depi.catalog.facts import Facts, Thresholds
from depi.catalog.inspect import Inspector
from depi.catalog.rules import check_disabled
from depi.datasets.recording.sources import DatasetSource
from depi.datasets.recording.storages import open_source
from depi.datasets.union.dataset_index import Options, open_part
from depi.errors import DatasetError

LIMITS = Thresholds(min_episodes=1, min_frames=1, max_bad_episodes=1.0)
NEEDED_TO_READ = {
    *("info_readable", "metadata_readable", "files_present", "tables_readable", "enough_good_episodes"),
}
"""The rules of the catalogue that training cannot do without."""


@dataclass(frozen=True)
class Outcome:
    """What one door says.

    reasons: why the dataset is refused; none where it is taken
    left_out: recorded number -> why this episode is not used
    """

    reasons: tuple[str, ...] = ()
    left_out: dict[int, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """All that is said."""
        return "; ".join([*self.reasons, *self.left_out.values()]) or "taken"


def in_training(root: Path) -> Outcome:
    """Open a dataset for training."""
    try:
        part = open_part(_files(root), Options(max_cameras=3))
    except DatasetError as error:
        return Outcome((str(error),))
    entry = part.entry
    left_out = {**entry["episodes_left_out"], **entry["bad_episodes"]}
    return Outcome(left_out={int(number): reason for number, reason in left_out.items()})


def in_catalogue(root: Path, limits: Thresholds = LIMITS, disabled: tuple[str, ...] = ()) -> Outcome:
    """Inspect and judge a dataset, as after the listing of its files."""
    files = _files(root)
    facts = Facts("user/data", "a" * 40, files=dict(files.list_files()), tags=("LeRobot",))
    row = Inspector(limits, check_disabled(disabled))._judge(facts, files)
    left_out = {
        verdict.episode: str(next(fault for fault in verdict.faults if fault.leaves_out))
        for verdict in verdicts(row)
        if verdict.bad
    }
    return Outcome(tuple(row.reasons), left_out)


def _files(root: Path):
    return open_source(DatasetSource("user/data", root=root))
