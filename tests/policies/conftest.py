"""Small policies, batches, and the tokenizer under its published name without a network."""

from types import SimpleNamespace

import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from small_pi0 import SIZES, liven
from transformers import AutoTokenizer

from depi.hub.server.tokenizer import write_tokenizer
from depi.policies import make_policy
from depi.policies.families import family

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))
SMALL = {**SIZES, "chunk_size": 7, "n_action_steps": 5, "tokenizer_max_length": 16}
# Tests on a GPU compile where they are about that alone: it takes a minute.
SMALL |= {"compile_chunks": False}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def data():
    """The shape of a dataset."""
    return SimpleNamespace(state_dim=6, action_dim=6, camera_slots=CAMERAS)


@pytest.fixture
def stats():
    """By which pi0 and pi0.5 normalise alike: quantiles that are one standard deviation from the mean."""
    values = {"mean": 10.0, "std": 30.0, "q01": -20.0, "q99": 40.0}
    return {
        key: {name: torch.full((6,), value) for name, value in values.items()} for key in (OBS_STATE, ACTION)
    }


@pytest.fixture
def kind():
    """The policy type; a test that is marked with `both_families` runs with two."""
    return "depi_pi0"


@pytest.fixture
def make_config(kind):
    def make(**changes):
        return family(kind).configs[kind](device="cpu", **{**SMALL, **changes})

    return make


@pytest.fixture
def policy(make_config, data):
    return liven(make_policy(make_config(), data))


@pytest.fixture
def raw_batch():
    """What a data loader hands over for four samples: uint8 cameras, one of them absent in two samples."""
    absent = torch.tensor([True, False, True, False])
    never = torch.zeros(4, dtype=torch.bool)
    return {
        **{key: torch.randint(0, 256, (4, 3, 28, 28), dtype=torch.uint8) for key in CAMERAS},
        f"{CAMERAS[0]}_is_pad": never,
        f"{CAMERAS[1]}_is_pad": absent,
        f"{CAMERAS[2]}_is_pad": never,
        OBS_STATE: torch.randn(4, 6) * 30 + 10,
        ACTION: torch.randn(4, 7, 6) * 30 + 10,
        "action_is_pad": torch.arange(7)[None] >= torch.tensor([[7], [1], [4], [6]]),
        "task": ["pick up the red cube", "push", "put the ball in the bin", "lift"],
        "dataset_index": torch.arange(4),
        "episode_index": torch.arange(4) + 10,
        "noise": torch.randn(4, 7, 32),
        "time": torch.rand(4),
    }


@pytest.fixture
def batch(raw_batch):
    """`raw_batch`, normalised and tokenised by hand."""
    del raw_batch["task"]
    raw_batch[OBS_STATE] = (raw_batch[OBS_STATE] - 10) / 30
    raw_batch[ACTION] = (raw_batch[ACTION] - 10) / 30
    raw_batch[OBS_LANGUAGE_TOKENS] = torch.randint(4, 700, (4, 16))
    raw_batch[OBS_LANGUAGE_ATTENTION_MASK] = torch.arange(16)[None] < torch.tensor([[3], [16], [9], [1]])
    return raw_batch


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture
def tokenizer(tokenizer_folder, monkeypatch):
    """Whoever asks for PaliGemma's tokenizer gets the project's own, from a folder."""
    real = AutoTokenizer.from_pretrained

    def from_folder(name, **kwargs):
        assert name == "google/paligemma-3b-pt-224"
        return real(tokenizer_folder, **kwargs)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", from_folder)
