"""The rules about episodes, in the order in which they are asked."""

from depi.datasets.judging.contents import (
    episode_numbered,
    frames_numbered,
    index_continues,
    rows_as_listed,
    statistics_match,
    task_instructive,
    task_listed,
    task_matches,
    task_shared,
)
from depi.datasets.judging.faults import EpisodeRule
from depi.datasets.judging.numbers import (
    numbers_bounded,
    numbers_finite,
    time_increases,
    time_without_gaps,
)
from depi.datasets.judging.reading import files_there, table_readable

FILES = (files_there, table_readable)
"""What is asked before an episode can be read; these are no rules of a `Recording`."""

READABLE = tuple(
    EpisodeRule(check)
    for check in (numbers_finite, numbers_bounded, time_increases, time_without_gaps, task_listed)
)
"""What no reader can use. Asked first, of every robot; such episodes are left out in any case."""

CONTENTS = (
    EpisodeRule(task_matches),
    *(
        EpisodeRule(check, leaves_out=False)
        for check in (
            *(task_instructive, task_shared, frames_numbered, index_continues, episode_numbered),
            *(rows_as_listed, statistics_match),
        )
    ),
)
"""What a dataset says of itself. Asked of every robot, before the joints are known."""

MOTION: tuple[EpisodeRule, ...] = ()
"""Asked of SO-100 arms, whose joints are known in degrees."""
