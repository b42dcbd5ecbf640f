"""The rules about episodes, in the order in which they are asked."""

from depi.datasets.judging.faults import EpisodeRule
from depi.datasets.judging.numbers import (
    numbers_bounded,
    numbers_finite,
    time_increases,
    time_without_gaps,
)
from depi.datasets.judging.units import units_agree

READABLE = tuple(
    EpisodeRule(check) for check in (numbers_finite, numbers_bounded, time_increases, time_without_gaps)
)
"""What no reader can use. Asked first, of every robot; such episodes are left out in any case."""

UNITS = (EpisodeRule(units_agree),)
"""Asked when the joint convention has been looked for; such episodes too are left out in any case."""

MOTION: tuple[EpisodeRule, ...] = ()
"""Asked of SO-100 arms, whose joints are known in degrees."""
