"""Checkpoints with one file changed a little: each is loaded and acts, or is refused with one sentence."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutate_file
from tiny_checkpoints import IMAGE, STATE, write_act, write_adapter, write_pi0, write_value

from depi.errors import UserError
from depi.evaluation.actors import Observation
from depi.evaluation.config import EnvironmentConfig, EvaluateConfig, PolicyConfig
from depi.evaluation.environments import find_table, resolve
from depi.evaluation.loading import load_actor
from depi.evaluation.messages import Seen
from depi.hub.client.api import go_offline
from depi.policies import load_processors, preprocess
from depi.policies.factory import load_value

MOST_BYTES, MOST_SECONDS = 1 << 30, 30
TABLE = find_table(resolve(EnvironmentConfig(type="pusht")))


@pytest.fixture(scope="module")
def checkpoints(module_hub, tmp_path_factory):
    """Tiny checkpoints, by kind; the tokenizer is in the cache, and nothing else can be fetched."""
    folder = tmp_path_factory.mktemp("tiny")
    write_pi0(folder / "policy")
    write_adapter(folder / "adapter", folder / "policy")
    write_value(folder / "value")
    write_act(folder / "act")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "0")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        go_offline()
        for kind in ("policy", "adapter", "value", "act"):
            use(folder / kind, kind)
        yield folder


def use(folder: Path, kind: str) -> None:
    """Load a checkpoint through the door of its kind, and let it act once."""
    seen = Seen(
        {name: np.zeros((96, 96, 3), np.uint8) for name in TABLE.cameras}, np.zeros(2, np.float32), "Push."
    )
    if kind == "value":
        policy = load_value(folder, device="cpu")
        pre, _ = load_processors(folder, device="cpu")
        batch = {
            IMAGE: torch.zeros(1, 3, 28, 28, dtype=torch.uint8),
            STATE: torch.zeros(1, 2),
            "task": ["Push."],
        }
        assert policy.predict_value(preprocess(batch, pre)).shape == (1,)
        return
    config = EvaluateConfig(policy=PolicyConfig(path=str(folder), device="cpu"))
    if kind in ("policy", "adapter"):
        config.rename_map = dict.fromkeys(TABLE.cameras, IMAGE)
    actor, _ = load_actor(config)
    actor.fit([TABLE])
    (actions,) = actor.act([Observation(0, 0, 0, seen, TABLE)])
    assert actions.ndim == 2
    assert actions.shape[1] == 2


def refusal(folder: Path, kind: str) -> str | None:
    """Why a checkpoint is refused; None where it acts."""
    try:
        use(folder, kind)
    except UserError as error:
        return str(error)
    return None


def peak() -> int:
    """The most memory that this process has held since `forget_peak`, in bytes."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def forget_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


@st.composite
def mutated(draw, folder: Path) -> tuple[str, Path]:
    """A copy of one of the checkpoints, in which one file differs."""
    kind = draw(st.sampled_from(["policy", "policy", "adapter", "adapter", "value", "value", "act"]))
    copy = Path(tempfile.mkdtemp(dir=folder, prefix="mutated-"))
    for path in (folder / kind).iterdir():
        os.link(path, copy / path.name)
    mutate_file(draw, draw(st.sampled_from(sorted(copy.iterdir()))))
    return kind, copy


@pytest.mark.parametrize(
    "count", [300, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])]
)
def test_a_changed_checkpoint_acts_or_is_refused_with_one_sentence(checkpoints, count):
    outcomes = {"acted": 0, "refused": 0}

    # The default run tries the same ones every time, the long one others.
    @settings(
        max_examples=count,
        derandomize=count == 300,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(checkpoints))
    def check(found):
        kind, folder = found
        before, begin = forget_peak(), time.monotonic()
        sentence = refusal(folder, kind)
        shutil.rmtree(folder)
        outcomes["acted" if sentence is None else "refused"] += 1
        assert sentence is None or (0 < len(sentence) < 1500 and "\n" not in sentence)
        assert time.monotonic() - begin < MOST_SECONDS
        assert peak() - before < MOST_BYTES

    check()
    assert min(outcomes.values()) > count / 10
