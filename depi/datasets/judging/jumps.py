"""Rules about motion that no arm makes from one frame to the next: spikes, jumps, trembling, missing frames.

Real arms, at 20 and 30 fps: a reading that came back in the next frame was off by 1 degree at most (1.8 at
the gripper); the state moved by up to 10.5 degrees in a frame, never by more than 9 out of nothing and into
nothing; the action, from a leader arm, by 14.
"""

from collections.abc import Iterator

import numpy as np

from depi.datasets.judging.faults import Finding, Recording
from depi.datasets.judging.movement import Movement, Track

BODY = slice(0, 5)
ENOUGH = 5
"""An episode is compared with the rest of its recording where that has at least so many."""
FEWEST = 10
"""Frames: in fewer nobody can say what is usual around a jump."""
USUAL_FPS = 20.0
"""Limits that an arm's acceleration sets are for this rate and faster ones; they grow with the square of the
time between frames."""
SPIKE = 8.0
"""Degrees by which one reading is off, there and back."""
LARGE_SPIKE, MANY_SPIKES = 45.0, 0.02
"""An episode with a few wrong readings still shows the motion, and statistics and losses hardly notice one
frame in hundreds; so it is left out only where a wrong row is large and in the action too, which a policy
would learn to send to the motors, or where more than this share of the rows is wrong."""
SERVO = 600.0
"""Degrees per second that no servo of the arm reaches: 45 to 60 turns a minute are 270 to 360."""
JUMP = 20.0
"""Degrees that a joint's state does not move in a frame, at any rate."""
SMALL_JUMP = 15.0
"""Degrees, over all joints of the body, that an arm does not move in one frame when it hardly moves before
and after."""
ABRUPT = 0.4
"""The frames before and after a jump move by less than this share of it."""
COMMAND_JUMP = 30.0
"""Degrees: keys and other programs command jumps, so it takes more in the action to be told."""
ROUGH, VERY_ROUGH = 2.2, 3.0
"""How many times as rough an episode is as the usual one: up to 1.4 in real recordings, and 1.7 in simulated
ones of several tasks."""
TREMBLE, TREMBLING = 1.5, 0.25
"""An arm that goes back and forth by so many degrees, in this share of the frames, is shaken; in real
episodes fewer than one frame in a hundred did by one degree."""
DOUBLE = 1.5
"""Where one frame is missing, a step is twice as long as the one before and the one after."""
SAME_WAY = 0.9
"""Cosine between steps in the same direction."""
SLOW = 0.5
"""Degrees over all joints of the body: shorter steps show no direction."""
FEW_MISSING, MISSING = 4, 0.015
"""Such steps are told where there are so many, and this share of the steps that move; in real episodes of
leader and follower there were fewer than four."""


def no_spikes(recording: Recording) -> Iterator[Finding]:
    """No single reading is far off and back in the next frame."""
    yield from _found(recording, _spikes(recording), "a single reading is off by up to {:.0f} degrees")


def rows_sound(recording: Recording) -> Iterator[Finding]:
    """No reading is off by 45 degrees in action and state at once, nor is any in 2% of the frames."""
    movement, spikes = recording.movement, _spikes(recording)
    share = np.add.reduceat((spikes > 0).astype(np.int64), movement.start) / movement.length
    both = np.minimum(movement.commanded.excursion, movement.measured.excursion).max(axis=1)
    bad = (both > LARGE_SPIKE) | (share > MANY_SPIKES)[movement.episode]
    yield from _found(recording, spikes * bad, "single readings are off by up to {:.0f} degrees")


def no_teleports(recording: Recording) -> Iterator[Finding]:
    """The state never moves farther in one frame than a servo can."""
    yield from _found(recording, _teleports(recording), "a joint jumps by {:.0f} degrees in one frame")


def no_jumps(recording: Recording) -> Iterator[Finding]:
    """The arm does not move far in one frame where it hardly moves before and after."""
    movement = recording.movement
    possible = SERVO * _elapsed(recording)
    for name, track, least in (
        ("state", movement.measured, SMALL_JUMP),
        ("action", movement.commanded, COMMAND_JUMP),
    ):
        far = (track.speed > np.maximum(least, possible)) & _alone(recording, track)
        if name == "state":
            far &= _teleports(recording) == 0
        yield from _found(recording, track.speed * far, f"the {name} jumps by {{:.0f}} degrees in one frame")


def not_shaken(recording: Recording) -> Iterator[Finding]:
    """The arm does not tremble by degrees all the time, where it does not in the other episodes."""
    times, shaken = _roughness(recording)
    for position in np.flatnonzero(shaken & (times > VERY_ROUGH)):
        yield Finding(
            int(position), f"the arm trembles, {times[position]:.1f} times as rough as in other episodes"
        )


def motion_smooth(recording: Recording) -> Iterator[Finding]:
    """The arm moves about as smoothly as in the other episodes."""
    times, shaken = _roughness(recording)
    for position in np.flatnonzero((times > ROUGH) & ~(shaken & (times > VERY_ROUGH))):
        yield Finding(
            int(position), f"the motion is {times[position]:.1f} times as rough as in other episodes"
        )


def no_frames_missing(recording: Recording) -> Iterator[Finding]:
    """Steps twice as long as the ones before and after are rare, in action and state at once."""
    movement = recording.movement
    missing = _doubled(movement, movement.measured)
    if missing.sum() < FEW_MISSING:
        return
    missing &= _doubled(movement, movement.commanded) & (_elapsed(recording) < DOUBLE / movement.fps)
    # Where the action is a copy of the state there is one witness only.
    missing &= (movement.commanded.step != movement.measured.step).any(axis=1)
    count = np.add.reduceat(missing.astype(np.int64), movement.start)
    moving = np.add.reduceat((movement.measured.speed > SLOW).astype(np.int64), movement.start)
    many = (count >= FEW_MISSING) & (count > MISSING * moving)
    yield from _found(
        recording,
        movement.measured.speed * (missing & many[movement.episode]),
        "frames are missing though the timestamps are regular: steps of up to {:.0f} degrees",
    )


def _elapsed(recording: Recording) -> np.ndarray:
    """Seconds since the frame before, or the declared step where that is longer, [F]."""
    step = np.zeros(len(recording.time), np.float64)
    step[1:] = np.diff(recording.time)
    return np.maximum(step, 1 / recording.fps)


def _limit(fps: float, degrees: float) -> float:
    """A limit of degrees there and back, at a rate."""
    return degrees * max(1.0, USUAL_FPS / fps) ** 2


def _spikes(recording: Recording) -> np.ndarray:
    """By how much the worst reading of each frame is off, [F]; 0 where it may be motion, or all is noise."""
    movement = recording.movement
    worst = np.zeros(len(movement.episode))
    for track in (movement.commanded, movement.measured):
        off = track.wobble
        frames = np.flatnonzero(off > _limit(movement.fps, SPIKE))
        # How far all joints move into the frame before, into this one, out of it, and out of the next.
        steps = np.clip(frames[:, None] + np.arange(-1, 3), 0, len(off) - 1)
        pace = np.sqrt((track.step[steps] ** 2).sum(axis=2))
        alone = np.maximum(pace[:, 0], pace[:, 3]) < ABRUPT * np.minimum(pace[:, 1], pace[:, 2])
        worst[frames[alone]] = np.maximum(worst, off)[frames[alone]]
    return worst


def _teleports(recording: Recording) -> np.ndarray:
    """How far some joint's state moves in the frames in which it moves farther than a servo can, [F].

    Next to an episode's ends a jump may be a single wrong reading.
    """
    movement, track = recording.movement, recording.movement.measured
    jump = track.size[:, BODY].max(axis=1)
    far = (jump > np.maximum(JUMP, SERVO * _elapsed(recording))) & (movement.place > 1)
    far[movement.start + movement.length - 1] = False
    return jump * (far & _alone(recording, track)) if far.any() else jump * far


def _alone(recording: Recording, track: Track) -> np.ndarray:
    """Frames into which a track moves far more than into the ones before and after, bool [F].

    Those beside a spike are left to its rule.
    """
    around = np.zeros_like(track.speed)
    around[1:] = track.speed[:-1]
    np.maximum(around[:-1], track.speed[1:], out=around[:-1])
    spike = track.wobble > _limit(recording.fps, SPIKE)
    return (around < ABRUPT * track.speed) & ~spike & ~np.roll(spike, 1)


def _roughness(recording: Recording) -> tuple[np.ndarray, np.ndarray]:
    """How many times as rough as usual each episode is, and whether it trembles far too much; [E] each."""
    movement = recording.movement
    times: np.ndarray = np.ones(len(movement.length))
    shaken = np.zeros(len(movement.length), bool)
    if len(times) < ENOUGH:
        return times, shaken
    for track in (movement.commanded, movement.measured):
        times = np.maximum(times, track.roughness / max(float(np.median(track.roughness)), 1e-6))
        back = track.wobble > _limit(movement.fps, TREMBLE)
        shaken |= np.add.reduceat(back.astype(np.int64), movement.start) > TREMBLING * movement.length
    return times, shaken


def _doubled(movement: Movement, track: Track) -> np.ndarray:
    """Steps twice as long as those before and after, in the same direction; bool [F]."""
    speed, step = track.speed, track.step[:, BODY]
    inner = np.zeros(len(speed), bool)
    before, here, after = speed[:-2], speed[1:-1], speed[2:]
    inner[1:-1] = (here > DOUBLE * np.maximum(before, after)) & (np.minimum(before, after) > SLOW)
    frames = np.flatnonzero(inner)
    for other in (frames - 1, frames + 1):
        along = np.einsum("fj,fj->f", step[frames], step[other])
        inner[frames] &= along > SAME_WAY * speed[frames] * speed[other]
    return inner


def _found(recording: Recording, size: np.ndarray, text: str) -> Iterator[Finding]:
    """A finding for each episode with a size that is not 0, [F]; `{}` in the text is the largest of them."""
    frames = np.flatnonzero(size)
    for position, own in recording.movement.by_episode(frames):
        if recording.length[position] < FEWEST:
            continue
        here = frames[own]
        first = int(recording.start[position])
        often = "" if len(here) == 1 else f", {len(here)} times"
        yield Finding(
            position,
            text.format(size[here].max()) + often,
            int(here[0]) - first,
            int(here[-1]) + 1 - first,
        )
