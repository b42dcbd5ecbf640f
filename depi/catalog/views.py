"""Which views the cameras of a dataset show: compared by tiny copies of sampled frames, not by light."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from depi.catalog.videos import VideoFacts

_FEWEST_OTHERS = 3
Turn = Callable[[np.ndarray], np.ndarray]
_TURNS: dict[str, Turn] = {
    "upside down": lambda image: image[..., ::-1, ::-1],
    "mirrored left to right": lambda image: image[..., ::-1],
    "mirrored top to bottom": lambda image: image[..., ::-1, :],
}


class Views:
    """The views of all videos (each with samples), and how far each is from those of other episodes.

    The distance of two frames is 1 minus the correlation of their tiny copies, so that light and exposure
    do not count. Of two episodes, the two frames that are most alike count: an arm comes by the same poses.
    Of the other episodes, the nearest quarter counts: objects lie elsewhere, and other episodes may be bad.
    """

    def __init__(self, videos: Sequence[VideoFacts]) -> None:
        self._videos: dict[str, list[VideoFacts]] = {}
        for video in videos:
            self._videos.setdefault(video.camera, []).append(video)
        self._images = {camera: _images(each) for camera, each in self._videos.items()}

    def swapped(self) -> Iterator[tuple[VideoFacts, str]]:
        """Videos that show another camera's view, with that camera."""
        for camera, videos in self._compared():
            far = {other: self._to(camera, other) for other in self._videos if other != camera}
            yield from _better(videos, self._to(camera, camera), far)

    def turned(self) -> Iterator[tuple[VideoFacts, str]]:
        """Videos that show the own view turned, with how."""
        for camera, videos in self._compared():
            far = {how: self._to(camera, camera, turn) for how, turn in _TURNS.items()}
            yield from _better(videos, self._to(camera, camera), far)

    def strange(self) -> Iterator[tuple[VideoFacts, float, float, bool]]:
        """Videos that show a view like none of the others, with their distance, the usual, and certainty."""
        known = {id(video) for video, _ in (*self.swapped(), *self.turned())}
        for camera, videos in self._compared():
            own = self._to(camera, camera)
            for number, video in enumerate(videos):
                others = np.delete(own, number)
                usual, worst = float(np.median(others)), float(np.quantile(others, 0.9))
                far = float(own[number])
                if id(video) not in known and far > max(0.4, 4 * usual, 2.5 * worst):
                    yield video, far, usual, far > 0.5 and worst < 0.15

    def _compared(self) -> Iterator[tuple[str, list[VideoFacts]]]:
        """The cameras with enough episodes to compare."""
        return ((camera, each) for camera, each in self._videos.items() if len(each) > _FEWEST_OTHERS)

    def _to(self, camera: str, other: str, turn: Turn | None = None) -> np.ndarray:
        """Distance of each episode of a camera, `turn`ed, to the other episodes of another, or the same."""
        images = self._images[camera]
        far = _distances(images if turn is None else turn(images), self._images[other])
        if camera == other:
            far[np.diag_indices(len(far))] = np.nan
        return np.nanquantile(far, 0.25, axis=1)


def _better(
    videos: Sequence[VideoFacts], own: np.ndarray, far: Mapping[str, np.ndarray]
) -> Iterator[tuple[VideoFacts, str]]:
    """Videos that, unlike the others, fit another view far better than their own ([E] distances), with it."""
    for number, video in enumerate(videos):
        if not far:
            return
        name = min(far, key=lambda name: float(far[name][number]))
        usual = float(np.median(np.delete(own, number)))
        distinct = float(np.median(np.delete(far[name], number))) >= 2 * usual
        fits = float(far[name][number])
        if distinct and fits <= 0.5 * float(own[number]) and fits <= 3 * usual + 0.05:
            yield video, name


def _images(videos: Sequence[VideoFacts]) -> np.ndarray:
    """The tiny copies, float32 [E, S, side, side]; an episode of fewer samples has some twice."""
    most = max(len(video.samples) for video in videos)
    return np.stack(
        [
            np.stack([video.samples[min(number, len(video.samples) - 1)].image for number in range(most)])
            for video in videos
        ]
    )


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each episode of `a` to each of `b`: between the two frames that are most alike, float [E, E]."""
    correlation = _unit(a).reshape(-1, a.shape[-1] ** 2) @ _unit(b).reshape(-1, b.shape[-1] ** 2).T
    return 1 - correlation.reshape(len(a), a.shape[1], len(b), b.shape[1]).max(axis=(1, 3))


def _unit(images: np.ndarray) -> np.ndarray:
    flat = images.reshape(*images.shape[:2], -1)
    flat = flat - flat.mean(axis=-1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)
