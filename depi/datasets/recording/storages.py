"""The door to a dataset's files, whichever storage has them."""

from depi.datasets.recording.addresses import is_address
from depi.datasets.recording.bucket_files import BucketFiles
from depi.datasets.recording.hub_files import HubFiles
from depi.datasets.recording.local_files import LocalFiles
from depi.datasets.recording.sources import DatasetFiles, DatasetSource


def open_source(source: DatasetSource, *, offline: bool = False) -> DatasetFiles:
    """The dataset's files at one state: a folder as it is now, a repository at a commit, a bucket's folder.

    Args:
        source: which dataset.
        offline: ask nobody; a revision that is no commit is the one it was when last asked for.

    Raises:
        DatasetError: the folder is missing.
        UserError: the Hub does not name the commit, or `offline` and it was never asked; the storage cannot
            be read.
    """
    if source.root is not None:
        return LocalFiles(source)
    return (BucketFiles if is_address(source.repo_id) else HubFiles)(source, offline=offline)
