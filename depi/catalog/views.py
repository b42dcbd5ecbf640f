"""Which views the cameras of a dataset show: compared by tiny copies of sampled frames, not by light."""

from collections.abc import Callable, Iterator, Sequence

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
        self._known: dict[tuple[str, str, Turn | None], np.ndarray] = {}

    def swapped(self) -> Iterator[tuple[VideoFacts, str]]:
        """Videos that show another camera's view, with that camera."""
        for camera, videos in self._compared():
            for other, _ in self._compared():
                if other != camera:
                    usual = float(np.median(self._to(other, other)))
                    better = _better(self._to(camera, camera), self._to(camera, other), usual)
                    yield from ((videos[number], other) for number in better)

    def turned(self) -> Iterator[tuple[VideoFacts, str]]:
        """Videos that show the own view turned, with how."""
        for camera, videos in self._compared():
            own = self._to(camera, camera)
            far = {how: self._to(camera, camera, turn) for how, turn in _TURNS.items()}
            for how, each in far.items():
                nearest = each <= np.min(list(far.values()), axis=0)
                better = _better(own, each, float(np.median(own)))
                yield from ((videos[number], how) for number in better if nearest[number])

    def strange(self) -> Iterator[tuple[VideoFacts, float, float, bool]]:
        """Videos that show a view like none of the others, with their distance, the usual, and certainty."""
        known = {id(video) for video, _ in (*self.swapped(), *self.turned())}
        for camera, videos in self._compared():
            own = self._to(camera, camera)
            for number, video in enumerate(videos):
                others = np.delete(own, number)
                # A quarter of the episodes may have been recorded with another camera.
                usual, worst = float(np.median(others)), float(np.quantile(others, 0.75))
                far = float(own[number])
                if id(video) not in known and far > max(0.4, 4 * usual, 2.5 * worst):
                    yield video, far, usual, far > 0.5 and worst < 0.15

    def _compared(self) -> Iterator[tuple[str, list[VideoFacts]]]:
        """The cameras with enough episodes to compare."""
        return ((camera, each) for camera, each in self._videos.items() if len(each) > _FEWEST_OTHERS)

    def _to(self, camera: str, other: str, turn: Turn | None = None) -> np.ndarray:
        """Distance of each episode of a camera, `turn`ed, to the other episodes of another, or the same."""
        key = camera, other, turn
        if key not in self._known:
            images = self._images[camera]
            far = _distances(images if turn is None else turn(images), self._images[other])
            if camera == other:
                far[np.diag_indices(len(far))] = np.inf
            # The nearest quarter, which the episode itself is never in.
            self._known[key] = np.sort(far, axis=1)[:, (far.shape[1] - 1) // 4]
        return self._known[key]


def _better(own: np.ndarray, far: np.ndarray, usual: float) -> list[int]:
    """Which episodes, unlike the others, fit another view much better than their own view.

    own, far: distance to the own and to the other view, [E]
    usual: distance between episodes that show the other view
    """
    distinct = np.array(
        [np.median(np.delete(far, n)) >= 2 * np.median(np.delete(own, n)) for n in range(len(own))]
    )
    return np.flatnonzero(distinct & (far <= 0.5 * own) & (far <= 2 * usual + 0.05)).tolist()


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
