"""The rules about episodes, in the order in which they are asked."""

from collections.abc import Callable

from depi.datasets.judging.alike import not_a_copy
from depi.datasets.judging.calibration import (
    joint_signs_agree,
    joint_signs_even,
    joint_zeros_agree,
    joint_zeros_near,
    joints_move_together,
)
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
from depi.datasets.judging.following import (
    joints_not_reversed,
    joints_obey,
    lag_usual,
    offset_even,
    offset_usual,
    state_moves_along,
    state_not_early,
    state_not_late,
)
from depi.datasets.judging.jumps import (
    motion_smooth,
    no_frames_missing,
    no_jumps,
    no_spikes,
    no_teleports,
    not_shaken,
    rows_sound,
)
from depi.datasets.judging.numbers import (
    numbers_bounded,
    numbers_finite,
    time_increases,
    time_without_gaps,
)
from depi.datasets.judging.reading import files_there, table_readable
from depi.datasets.judging.stillness import (
    arm_moves,
    head_not_idle,
    idle_share_usual,
    mostly_moving,
    tail_not_idle,
)
from depi.datasets.judging.stuck import (
    gripper_moves,
    joints_alive,
    joints_follow,
    joints_not_frozen,
    joints_used,
    joints_within_range,
    state_not_frozen,
)
from depi.datasets.judging.timing import (
    clock_steady,
    length_usual,
    long_enough,
    no_frames_dropped,
    rate_as_declared,
    rate_near_declared,
)
from depi.datasets.judging.units import units_agree

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

UNITS = (EpisodeRule(units_agree),)
"""Asked when the joint convention has been looked for; such episodes too are left out in any case."""

MOTION = (
    EpisodeRule(long_enough),
    EpisodeRule(rate_as_declared),
    EpisodeRule(clock_steady),
    EpisodeRule(arm_moves),
    EpisodeRule(mostly_moving),
    EpisodeRule(state_not_frozen),
    EpisodeRule(joints_not_frozen),
    EpisodeRule(joints_follow),
    EpisodeRule(joints_alive),
    EpisodeRule(rows_sound),
    EpisodeRule(no_teleports),
    EpisodeRule(not_shaken),
    EpisodeRule(state_moves_along),
    EpisodeRule(state_not_early),
    EpisodeRule(state_not_late),
    EpisodeRule(joints_not_reversed),
    EpisodeRule(joints_obey),
    EpisodeRule(offset_usual),
    EpisodeRule(joint_signs_agree),
    EpisodeRule(joint_zeros_agree),
    EpisodeRule(not_a_copy),
    EpisodeRule(length_usual, leaves_out=False),
    EpisodeRule(rate_near_declared, leaves_out=False),
    EpisodeRule(no_frames_dropped, leaves_out=False),
    EpisodeRule(idle_share_usual, leaves_out=False),
    EpisodeRule(head_not_idle, leaves_out=False),
    EpisodeRule(tail_not_idle, leaves_out=False),
    EpisodeRule(no_spikes, leaves_out=False),
    EpisodeRule(no_jumps, leaves_out=False),
    EpisodeRule(no_frames_missing, leaves_out=False),
    EpisodeRule(motion_smooth, leaves_out=False),
    EpisodeRule(lag_usual, leaves_out=False),
    EpisodeRule(offset_even, leaves_out=False),
    EpisodeRule(joint_zeros_near, leaves_out=False),
    EpisodeRule(joint_signs_even, leaves_out=False),
    EpisodeRule(joints_move_together, leaves_out=False),
    EpisodeRule(joints_used, leaves_out=False),
    EpisodeRule(joints_within_range, leaves_out=False),
    EpisodeRule(gripper_moves, leaves_out=False),
)
"""Asked of SO-100 arms, whose joints are known in degrees."""

OPTIONAL = (*CONTENTS, *MOTION)
"""The rules that can be switched off."""

LEAVING_OUT = tuple(rule for rule in OPTIONAL if rule.leaves_out)
"""Those that find episodes bad: what training asks."""

ALWAYS: tuple[Callable[..., object], ...] = (*FILES, *(rule.check for rule in (*READABLE, *UNITS)))
"""What is asked in any case; none of it can be switched off."""
