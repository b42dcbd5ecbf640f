"""What a policy was trained on, for the environment in which it is evaluated.

A policy that saw square images fails on wide ones, and one that acted at 10 steps a second is too fast at 30:
where the environment can choose, it is as the training data were; where it is not, that is said.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from depi.catalog.text import clean
from depi.errors import UserError, one_line
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import DEFAULT_CAMERAS, TABLES, find_table, resolve
from depi.files import read_json
from depi.sim.setup import CAMERA_KINDS, Setup

# A checkpoint may choose among these alone: a gym id would import the module that it names.
CHOSEN = (*TABLES, "so101")


@dataclass(frozen=True)
class Trained:
    """What the training data were like.

    Attributes:
        sizes: (height, width) of the recorded images, in pixels.
        rates: actions per second. usual_rate: that of more than half of the datasets.
        cameras: names of the recorded cameras, without `observation.images.`.
        env: the type and the task of the run's own `--env`, where it was one of CHOSEN.
        instructions: all task texts; empty where they are too many for the report, or it has none.
    """

    sizes: frozenset[tuple[int, int]]
    rates: frozenset[float]
    cameras: frozenset[str]
    env: tuple[str, str | None] | None = None
    instructions: frozenset[str] = frozenset()
    usual_rate: float | None = None


def trained_on(
    report: Mapping[str, Any], action_freq: float | None, env: Mapping[str, Any] | None = None
) -> Trained:
    """From a data report, `--dataset.action_freq` and `--env` of the run.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, OverflowError: they are not what DePi writes.
    """
    entries = report["datasets"]
    rates = [action_freq] if action_freq else [entry["recorded_fps"] for entry in entries]
    sizes = [size for entry in entries for size in entry["camera_sizes"].values()]
    names = [str(name) for entry in entries for name in entry["cameras"]]
    if not all(0 < rate <= 1000 for rate in rates):
        raise ValueError(f"rates {one_line(rates, 100)} are none")
    (usual, count) = Counter(rates).most_common(1)[0] if rates else (None, 0)
    own = env and env["type"] in CHOSEN and isinstance(env.get("task"), str | None)
    return Trained(
        frozenset((int(height), int(width)) for height, width in sizes),
        frozenset(float(rate) for rate in rates),
        frozenset(name.removeprefix("observation.images.") for name in names),
        (env["type"], env.get("task")) if env and own else None,
        _instructions(report.get("stream", {}).get("instructions")),
        float(usual) if usual and 2 * count > len(rates) else None,
    )


def _instructions(reported: Mapping[str, Any] | None) -> frozenset[str]:
    """All task texts, where the report has them all; runs of earlier versions have none.

    To the character: a policy hears two blanks otherwise than one.
    """
    found = reported["of_most_frames"] if reported else []
    texts = [text if text.isprintable() else clean(text) for text in found]
    complete = reported is not None and len(texts) == reported["count"]
    return frozenset(filter(None, texts)) if complete else frozenset()


def read_trained(folder: Path) -> Trained | None:
    """What the reports beside a checkpoint say; None where DePi did not train it, or they are damaged."""
    try:
        config, report = (read_json(folder / name) for name in ("train_config.json", "data_report.json"))
        return trained_on(report, config["dataset"].get("action_freq"), config.get("env"))
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None


def as_trained(env: EnvironmentConfig, trained: Trained) -> EnvironmentConfig:
    """The environment with what no flag says taken from the training, where that is one thing."""
    known: dict[str, Any] = {}
    if not env.type and trained.env is not None:
        known = {"type": trained.env[0], "task": env.task or trained.env[1]}
        env = dataclasses.replace(env, **known)
    kind = env.type or "so101"
    if kind not in CHOSEN:
        return env
    rate = trained.usual_rate
    if kind == "so101" and env.fps is None and rate and rate.is_integer():
        known["fps"] = int(rate)  # of drawn setups too: the policy decides the rate
    if env.setups != "standard":  # others have images, cameras and words of their own
        return dataclasses.replace(env, **known)
    size = next(iter(trained.sizes)) if len(trained.sizes) == 1 else None
    if size and env.observation_height is None and env.observation_width is None and _can_render(size):
        known |= {"observation_height": size[0], "observation_width": size[1]}
    if kind == "so101" and env.cameras is None and trained.cameras and trained.cameras <= set(CAMERA_KINDS):
        known["cameras"] = sorted(trained.cameras)
    found = dataclasses.replace(env, **known)
    if found.instruction is None and len(trained.instructions) == 1:
        (instruction,) = trained.instructions
        if instruction != own_instruction(found):
            found = dataclasses.replace(found, instruction=instruction)
    return found


def differences(env: EnvironmentConfig, trained: Trained) -> list[str]:
    """In what an environment differs from the training data, each as `what here, what in training`."""
    env = resolve(env)
    found = []
    if env.type in CHOSEN and env.setups == "standard":
        size = (env.observation_height or Setup.height, env.observation_width or Setup.width)
        if trained.sizes and size not in trained.sizes:
            found.append(
                f"images of {_size(size)} pixels here, {_listed(map(_size, trained.sizes))} in training"
            )
    if env.fps and trained.rates and not any(abs(env.fps / rate - 1) < 0.05 for rate in trained.rates):
        rates = _listed(f"{rate:g}" for rate in trained.rates)
        found.append(f"{env.fps} actions a second here, {rates} in training")
    if env.type == "so101" and env.setups == "standard" and trained.cameras:
        cameras = set(env.cameras or DEFAULT_CAMERAS)
        if not cameras <= trained.cameras:
            found.append(f"cameras {_listed(cameras)} here, {_listed(trained.cameras)} in training")
    said = own_instruction(env)
    if said and trained.instructions and said not in trained.instructions:
        texts = _listed(f'"{one_line(text, 200)}"' for text in trained.instructions)
        found.append(f'the instruction "{said}" here, {texts} in training')
    return found


def own_instruction(env: EnvironmentConfig) -> str | None:
    """The instruction of an environment, where it is known before the environment is made."""
    table = find_table(resolve(env))
    return table.instruction if table else None


def _can_render(size: tuple[int, int]) -> bool:
    return all(
        number % 2 == 0 and 16 <= number <= most for number, most in zip(size, (480, 640), strict=True)
    )


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _listed(names: Any) -> str:
    listed = sorted(names)
    return one_line(", ".join(listed[:5]) + (" and others" if len(listed) > 5 else ""), 200)
