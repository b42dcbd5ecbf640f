"""Rules about the videos of a dataset, episode by episode and camera by camera; see `VideoFacts`.

An episode is compared with the others of the same camera in the same dataset: what a wrist camera shows is
nothing like what a camera above the table shows, and every rig is lit in its own way. Where a camera has too
few episodes to compare with, the rules that compare say nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from depi.catalog.pace import Still
from depi.catalog.pictures import Sample
from depi.catalog.text import clean
from depi.catalog.videos import VideoFacts
from depi.catalog.views import Views
from depi.datasets.judging.faults import Fault


class Found(NamedTuple):
    """What is wrong with one video; `certain` if the episode must be left out, else it is a remark."""

    video: VideoFacts
    text: str
    certain: bool = True
    begin: int | None = None
    end: int | None = None


Rule = Callable[[Sequence[VideoFacts]], Iterable[Found]]

# Mean luma, and standard deviation of luma. A picture of one colour has none; the noise of a covered lens
# is up to 3, and so is all there is to see in a room that is nearly dark, with a mean above 10.
_FLAT = 2.0
_BLACK_LUMA, _BLACK_FLAT = 8.0, 3.0
_FEWEST_OTHERS = 3


def videos_decodable(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """The video of each camera and episode, or its part of a shared file, is there and can be decoded."""
    for video in videos:
        if video.error is not None:
            yield Found(video, video.error)


def videos_have_declared_size(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """The pictures are as wide and high as `meta/info.json` declares."""
    for video in _readable(videos):
        size, declared = (video.width, video.height), (video.declared_width, video.declared_height)
        if size != declared:
            yield Found(video, f"{size[0]}x{size[1]} pixels, declared {declared[0]}x{declared[1]}")


def videos_have_declared_fps(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """The frame rate is the declared one, within 2%."""
    for video in _readable(videos):
        if not _has_declared_fps(video):
            yield Found(video, f"{video.fps:g} fps, declared {video.declared_fps:g}")


def _has_declared_fps(video: VideoFacts) -> bool:
    return video.fps is None or abs(video.fps - video.declared_fps) <= 0.02 * video.declared_fps


def videos_have_declared_frames(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """Each video has as many frames as its episode; 1% or one frame fewer, 10% more are allowed."""
    for video in _readable(videos):
        frames, length = video.frames or 0, video.length
        text = f"{frames} frames, the episode has {length}"
        if frames < length - max(1, length // 100):
            yield Found(video, text, begin=frames, end=length)
        elif frames > length + max(1, length // 100):
            yield Found(video, text, certain=frames > 1.1 * length)


def videos_not_black(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """No video is black or of a single colour, for a tenth of the episode or more."""
    for video in _readable(videos):
        least, frames = video.least, video.least_frames
        if all(_is_flat(sample) for sample in video.samples):
            yield Found(video, f"the sampled frames are {_colour(video.samples[0])}")
        elif least is not None and frames is not None and _is_flat(least):
            begin, end, share = frames
            text = f"{100 * share:.0f}% of the frames are {_colour(least)}"
            yield Found(video, text, share >= 0.1, begin, end)


def videos_not_frozen(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """The picture changes while the joints move: a camera that hangs repeats one picture."""
    # A camera that does not see the arm, or not always, shows one picture too. So a part that is still counts
    # where the noise of the camera would show, or else if the camera sees the arm in the other episodes and
    # the picture jumps when it goes on, by far more than from one frame to the next. Up to the episode's end,
    # it must be rare and last for a second.
    for of_camera in _by_camera(videos):
        most = np.array([max((still.moved for still in video.still), default=0.0) for video in of_camera])
        sees, noisy = _sees_the_arm(of_camera), _is_noisy(of_camera)
        for number, video in enumerate(of_camera):
            usual = float(np.delete(most, number).max(initial=0.0))
            for run in video.still:
                # In an episode of one picture, an encoder may tell the first frames several times.
                whole = run.end - run.begin >= 0.85 * video.length
                hangs = noisy or (sees and (_jumps(run) or _hangs_to_the_end(video, run, usual)))
                if whole or (run.moved >= 0.2 and hangs):
                    text = (
                        f"the picture stands still from frame {run.begin} to {run.end} of {video.length}, "
                        f"while a joint moves by {100 * run.moved:.0f}% of its range"
                    )
                    yield Found(video, text, begin=run.begin, end=run.end)
                    break


def _is_noisy(of_camera: Sequence[VideoFacts]) -> bool:
    """Whether the camera's noise shows in its videos: no two pictures are equal where nothing moves."""
    told = [video.noise for video in of_camera if video.noise is not None]
    return len(told) > _FEWEST_OTHERS and float(np.median(told)) >= 0.7


def _jumps(run: Still) -> bool:
    if run.jump is None or run.step is None:
        return False
    return run.jump >= 0.01 and (run.jump >= 1.5 * run.step or run.jump >= 0.1)


def _hangs_to_the_end(video: VideoFacts, run: Still, usual: float) -> bool:
    lasts = run.end - run.begin >= video.declared_fps
    return lasts and run.end >= video.length - 2 and run.moved >= max(0.3, 4 * usual)


def _sees_the_arm(of_camera: Sequence[VideoFacts]) -> bool:
    """Whether a camera's pictures follow the joints, in most of its episodes and at the same delay."""
    curves = [video.follows.far for video in of_camera if video.follows is not None]
    return len(curves) > _FEWEST_OTHERS and float(np.median(curves, axis=0).max()) >= 0.3


def videos_not_blurred(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """No episode's sharpest sampled frame is blurred far beyond those of the camera's other episodes."""
    for of_camera in _by_camera(videos):
        sharp = np.array([max(sample.sharpness for sample in video.samples) for video in of_camera])
        for number, video in enumerate(of_camera):
            others = np.delete(sharp, number)
            if len(others) < _FEWEST_OTHERS:
                continue
            usual, least = float(np.median(others)), float(np.quantile(others, 0.25))
            if sharp[number] < 0.75 * usual and sharp[number] < 0.8 * least:
                text = (
                    f"the sharpest sampled frame has {100 * sharp[number] / usual:.0f}% of the sharpness "
                    "that the camera has in the other episodes"
                )
                yield Found(video, text, sharp[number] < 0.6 * usual)


def cameras_not_swapped(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """Each video shows what its camera shows in the other episodes, not what another camera does there."""
    views = Views(_comparable(videos))
    for video, other in views.swapped():
        yield Found(video, f"it shows what {clean(other, 100)} shows in the other episodes")


def cameras_keep_their_view(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """Each video shows the same view as the camera's other episodes, neither turned nor mirrored."""
    views = Views(_comparable(videos))
    for video, how in views.turned():
        yield Found(video, f"the picture is {how}, compared with the other episodes")
    for video, far, usual, certain in views.strange():
        text = (
            f"another view than in the other episodes: the pictures differ by {far:.2f}, "
            f"usually by {usual:.2f} (0 is alike, 1 is unrelated)"
        )
        yield Found(video, text, certain)


def videos_in_step_with_joints(videos: Sequence[VideoFacts]) -> Iterator[Found]:
    """The picture changes when the joints move, not some frames later or earlier."""
    for of_camera in _by_camera(videos):
        told = [video for video in of_camera if video.follows is not None]
        if len(told) <= _FEWEST_OTHERS:
            continue
        close = np.array([video.follows.close for video in told if video.follows])
        far = np.array([video.follows.far for video in told if video.follows])
        for number, video in enumerate(told):
            shifts = (_shift(close, number, _CLOSE), _shift(far, number, _FAR))
            found = max(filter(None, shifts), key=lambda each: each.gain, default=None)
            if found is not None:
                when = f"{abs(found.frames)} frames {'later' if found.frames > 0 else 'earlier'}"
                text = (
                    f"the picture follows the joints {when} than in the other episodes (correlation "
                    f"{found.there:.2f} there, {found.usual:.2f} where they have it)"
                )
                yield Found(video, text, found.certain)


class _Limits(NamedTuple):
    """What a shift takes. None of 228 clean simulated and drawn videos was ever taken for shifted by these.

    alike: frames by which the other episodes may differ among each other
    remark, certain: what the correlation must gain by the shift, as a share of its usual height
    """

    alike: int
    remark: float
    certain: float


_CLOSE, _FAR = _Limits(3, 0.45, 0.65), _Limits(5, 0.4, 0.55)


class _Shift(NamedTuple):
    frames: int
    there: float
    usual: float
    gain: float
    certain: bool


def _shift(curves: np.ndarray, number: int, limits: _Limits) -> _Shift | None:
    """By how many frames the video of a curve is shifted against those of the other curves [V, shifts]."""
    own, others = curves[number], np.delete(curves, number, axis=0)
    common = np.median(others, axis=0)
    usual, best = int(common.argmax()), int(own.argmax())
    height = float(common[usual])
    alike = (np.abs(others.argmax(axis=1) - usual) <= limits.alike).mean() >= 0.7
    if height < 0.25 or not alike or abs(best - usual) < 4 or own[best] < 0.5 * height:
        return None
    gain = float(own[best] - own[usual]) / height
    if gain < limits.remark:
        return None
    certain = gain >= limits.certain and abs(best - usual) >= 5 and own[best] >= 0.6 * height
    return _Shift(best - usual, float(own[best]), float(own[usual]), gain, bool(certain))


NEEDS: tuple[Rule, ...] = (videos_decodable,)
RULES: tuple[Rule, ...] = (
    videos_have_declared_size,
    videos_have_declared_fps,
    videos_have_declared_frames,
    videos_not_black,
    videos_not_frozen,
    videos_not_blurred,
    cameras_not_swapped,
    cameras_keep_their_view,
    videos_in_step_with_joints,
)


def episode_faults(videos: Sequence[VideoFacts], disabled: frozenset[str] = frozenset()) -> list[Fault]:
    """The faults of the episodes' videos, rule by rule; the text names the camera.

    Args:
        videos: of one dataset.
        disabled: names of rules that are not asked.
    """
    rules = [*NEEDS, *(rule for rule in RULES if rule.__name__ not in disabled)]
    return [
        Fault(
            rule.__name__,
            found.video.episode,
            clean(f"{found.video.camera}: {found.text}", 400),
            bool(found.certain),  # numpy's own cannot be stored
            found.begin,
            found.end,
        )
        for rule in rules
        for found in rule(videos)
    ]


def _readable(videos: Iterable[VideoFacts]) -> list[VideoFacts]:
    return [video for video in videos if video.error is None]


def _comparable(videos: Iterable[VideoFacts]) -> list[VideoFacts]:
    """Those that show something in every sampled frame."""
    return [
        video
        for video in _readable(videos)
        if video.samples and not any(_is_flat(sample) for sample in video.samples)
    ]


def _by_camera(videos: Iterable[VideoFacts]) -> list[list[VideoFacts]]:
    groups: dict[str, list[VideoFacts]] = {}
    for video in _comparable(videos):
        groups.setdefault(video.camera, []).append(video)
    return list(groups.values())


def _is_flat(sample: Sample) -> bool:
    return sample.contrast < (_BLACK_FLAT if sample.brightness < _BLACK_LUMA else _FLAT)


def _colour(sample: Sample) -> str:
    what = "black" if sample.brightness < _BLACK_LUMA else "of one colour"
    return f"{what} (luma {sample.brightness:.0f} +- {sample.contrast:.1f})"
