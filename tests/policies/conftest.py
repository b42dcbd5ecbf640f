"""Tiny policies, batches, and the tokenizer under its published name without a network."""

from types import SimpleNamespace

import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS, OBS_STATE
from transformers import AutoTokenizer

from depi.hub.tokenizer import write_tokenizer
from depi.policies import DepiPi0Config, make_policy

CAMERAS = tuple(f"observation.images.{slot}" for slot in range(3))
SMALL = {
    "image_resolution": (28, 28),
    "vision_width": 32,
    "vision_mlp_dim": 48,
    "vision_heads": 2,
    "width": 48,
    "mlp_dim": 80,
    "expert_width": 40,
    "expert_mlp_dim": 56,
    "depth": 3,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 16,
    "chunk_size": 7,
    "n_action_steps": 5,
    "tokenizer_max_length": 16,
}


def small_config(**changes):
    return DepiPi0Config(device="cpu", **{**SMALL, **changes})


def raw_batch(batch_size=4, state_dim=6, action_dim=6, chunk_size=7, size=28):
    """What a data loader hands over: uint8 cameras, one of them absent in two samples."""
    absent = torch.zeros(batch_size, dtype=torch.bool)
    absent[::2] = True
    never = torch.zeros_like(absent)
    return {
        **{key: torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8) for key in CAMERAS},
        f"{CAMERAS[0]}_is_pad": never,
        f"{CAMERAS[1]}_is_pad": absent,
        f"{CAMERAS[2]}_is_pad": never,
        OBS_STATE: torch.randn(batch_size, state_dim) * 30 + 10,
        ACTION: torch.randn(batch_size, chunk_size, action_dim) * 30 + 10,
        "action_is_pad": torch.arange(chunk_size)[None] >= torch.randint(2, chunk_size + 1, (batch_size, 1)),
        "task": ["pick up the red cube"] * (batch_size - 1) + ["push"],
        "dataset_index": torch.arange(batch_size),
        "noise": torch.randn(batch_size, chunk_size, 32),
        "time": torch.rand(batch_size),
    }


def processed_batch(**sizes):
    """As `raw_batch`, normalised and tokenised by hand."""
    batch = raw_batch(**sizes)
    lengths = torch.randint(3, 17, (len(batch["time"]), 1))
    del batch["task"]
    batch[OBS_STATE] = (batch[OBS_STATE] - 10) / 30
    batch[ACTION] = (batch[ACTION] - 10) / 30
    batch[OBS_LANGUAGE_TOKENS] = torch.randint(4, 1024, (len(lengths), 16))
    batch[OBS_LANGUAGE_ATTENTION_MASK] = torch.arange(16)[None] < lengths
    return batch


STATS = {key: {"mean": torch.full((6,), 10.0), "std": torch.full((6,), 30.0)} for key in (OBS_STATE, ACTION)}


DATA = SimpleNamespace(state_dim=6, action_dim=6, max_cameras=3)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def policy():
    return make_policy(small_config(), DATA)


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
