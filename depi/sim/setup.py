"""One contributor's rig: cameras, clock, joint convention, file format and looks of the scene."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from depi.datasets.recording.joints import JOINTS
from depi.errors import UserError
from depi.files import read_json

CAMERA_KINDS = ("wrist", "front", "side", "top")
CONVENTIONS = ("degrees_v1", "degrees", "normalized", "radians")
FORMATS = ("v2.1", "v3.0")
CODECS = ("av1", "h264")
FPS = (5, 10, 15, 20, 30, 60)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white", "gray")
TABLES = {
    "gray": (0.5, 0.5, 0.5),
    "white": (0.66, 0.66, 0.64),
    "wood": (0.62, 0.44, 0.28),
    "black": (0.12, 0.12, 0.13),
    "green": (0.18, 0.42, 0.27),
    "blue": (0.2, 0.3, 0.5),
}


@dataclass(frozen=True)
class Camera:
    """One camera: a wrist camera on the gripper, or one that stands around the table.

    Attributes:
        name: the end of the dataset's key, `observation.images.{name}`.
        kind: "wrist", "front", "side" or "top".
        azimuth, elevation: degrees added to the kind's standard pose (pan and tilt for the wrist).
        distance: factor on the kind's standard distance; ignored for the wrist.
        jitter: standard deviation, in degrees, by which azimuth and elevation differ between episodes.
    """

    name: str
    kind: str
    azimuth: float = 0.0
    elevation: float = 0.0
    distance: float = 1.0
    jitter: float = 0.0

    def __post_init__(self):
        if self.kind not in CAMERA_KINDS:
            raise UserError(
                f"camera {self.name!r} has unknown kind {self.kind!r}: one of {', '.join(CAMERA_KINDS)}"
            )
        if not self.name or not all(c.isalnum() or c in "_-" for c in self.name):
            raise UserError(f"camera name {self.name!r} may only hold letters, digits, '_' and '-'")


@dataclass(frozen=True)
class Setup:
    """All settings in which contributors' recordings differ.

    Attributes:
        cameras: in the order of the dataset's features; without cameras nothing is rendered.
        width, height: pixels of every camera; even numbers, as video needs.
        fps: control and recording rate, one that divides 60.
        convention: how joint values are written, one of CONVENTIONS.
        format: LeRobot dataset version, "v2.1" or "v3.0".
        codec: "av1" or "h264".
        robot_type: as written to the dataset's metadata.
        task_text: the instruction as recorded; None for the task's own.
        object_color, robot_color: one of COLORS. table: one of TABLES.
        object_size: side of the cube in metres.
        lighting: factors on the red, green and blue light.
        base_offset: robot base in the world, (x metres, y metres, yaw degrees).
    """

    cameras: tuple[Camera, ...] = field(default=(Camera("front", "front"), Camera("wrist", "wrist")))
    width: int = 320
    height: int = 240
    fps: int = 30
    convention: str = "degrees"
    format: str = "v3.0"
    codec: str = "av1"
    robot_type: str = "so101_follower"
    task_text: str | None = None
    object_color: str = "red"
    robot_color: str = "yellow"
    table: str = "gray"
    object_size: float = 0.025
    lighting: tuple[float, float, float] = (1.0, 1.0, 1.0)
    base_offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        for name, choices in (
            ("convention", CONVENTIONS),
            ("format", FORMATS),
            ("codec", CODECS),
            ("fps", FPS),
            ("object_color", COLORS),
            ("robot_color", COLORS),
            ("table", tuple(TABLES)),
        ):
            if getattr(self, name) not in choices:
                known = ", ".join(map(str, choices))
                raise UserError(f"setup: {name} is {getattr(self, name)!r}, must be one of {known}")
        if self.width % 2 or self.height % 2 or not (16 <= self.width <= 640 and 16 <= self.height <= 480):
            raise UserError(
                f"setup: {self.width}x{self.height} pixels; both must be even, at least 16, at most 640x480"
            )
        names = [camera.name for camera in self.cameras]
        if len(set(names)) < len(names):
            raise UserError(f"setup: two cameras have the same name in {', '.join(names)}")
        if not 0.015 <= self.object_size <= 0.04:
            raise UserError(f"setup: object_size is {self.object_size} m, the gripper takes 0.015 to 0.04")

    @property
    def joint_names(self) -> tuple[str, ...]:
        """The six names under which recordings of this convention list their joints."""
        if self.convention == "degrees_v1":
            return tuple(f"main_{joint}" for joint in JOINTS)
        return tuple(f"{joint}.pos" for joint in JOINTS)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able dict, the inverse of `from_dict`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Setup":
        """Build a setup from `to_dict`'s values as JSON gives them back.

        Raises:
            UserError: a field is unknown or has an impossible value.
        """
        if not isinstance(values, dict):
            raise UserError("not a simulation setup: no JSON object")
        try:
            vectors = {key: tuple(values[key]) for key in ("lighting", "base_offset") if key in values}
            if "cameras" in values:
                vectors["cameras"] = tuple(Camera(**camera) for camera in values["cameras"])
            return cls(**{**values, **vectors})
        except TypeError as error:
            raise UserError(f"not a simulation setup: {error}") from None


def read_setups(path: Path) -> tuple[Setup, ...]:
    """The setups in a JSON file: a list as `Setup.to_dict` gives; missing fields have their defaults.

    Raises:
        UserError: no such file, no setup in it, or an impossible one.
    """
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise UserError(f"{path} holds no list of simulation setups")
    setups = []
    for number, values in enumerate(found):
        try:
            setups.append(Setup.from_dict(values))
        except UserError as error:
            raise UserError(f"{path}, setup {number}: {error}") from None
    return tuple(setups)


def random_setup(seed: int, split: str = "seen") -> Setup:
    """Draw a random rig; the same seed and split give the same one.

    Cameras, looks, lights, base position, convention, format and rate vary. The two splits share no
    table, and their camera poses and base offsets come from disjoint ranges ("unseen" ones lie outside).

    Raises:
        UserError: `split` is neither "seen" nor "unseen".
    """
    if split not in ("seen", "unseen"):
        raise UserError(f"split must be seen or unseen, got {split!r}")
    rng = np.random.default_rng([seed, split == "unseen"])
    tables = ("gray", "white", "wood", "black") if split == "seen" else ("green", "blue")

    def away(limit: float) -> float:
        """Return a deviation within (-limit, limit) if seen, just outside it if unseen."""
        size = rng.uniform(0, limit) if split == "seen" else rng.uniform(limit, 1.5 * limit)
        return round(float(size * rng.choice([-1, 1])), 4)

    kinds = [str(kind) for kind in rng.permutation(CAMERA_KINDS)[: rng.integers(1, 4)]]
    cameras = tuple(Camera(kind, kind, away(12), away(6), 1 + away(0.12), jitter=0.5) for kind in kinds)
    width, height = ((320, 240), (240, 180), (160, 120))[rng.integers(3)]
    red, green, blue = np.round(rng.uniform(0.7, 1.2) * rng.uniform(0.9, 1.1, 3), 3).tolist()
    return Setup(
        cameras=cameras,
        width=width,
        height=height,
        fps=int(rng.choice([30, 15, 10])),
        convention=str(rng.choice(CONVENTIONS)),
        format=str(rng.choice(FORMATS)),
        codec=str(rng.choice(CODECS)),
        object_color=str(rng.choice(["red", "green", "blue", "orange", "purple"])),
        robot_color=str(rng.choice(["yellow", "white", "black", "orange"])),
        table=str(rng.choice(tables)),
        lighting=(red, green, blue),
        base_offset=(away(0.01), away(0.02), away(4)),
    )
