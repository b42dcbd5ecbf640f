"""A policy that is loaded to be used, and not to be trained, follows what is known of its GPU."""

import logging

import pytest
import torch
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from small_pi0 import SIZES, make_small

from depi.policies import factory, gpus
from depi.policies.choices import choices_of
from depi.policies.configuration_depi_pi0 import DepiPi0Config
from depi.policies.configuration_value import ValueConfig
from depi.policies.factory import load_any_policy, load_policy
from depi.policies.gpus import GROUPS, Check, Verdict, follow_verdict, save

CUDA = torch.device("cuda", 0)
OF = {"gpu": "NVIDIA H200", "driver": "580.1"}
UNCHECKED = "nothing has checked yet what NVIDIA H200 with this driver and PyTorch computes: "


@pytest.fixture(autouse=True)
def gpu(monkeypatch, tmp_path):
    """A GPU by name, of which nothing is known."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path))
    monkeypatch.setattr(gpus, "identity", lambda device: OF)
    gpus._say_unchecked.cache_clear()


def know(*failed, groups=tuple(GROUPS)):
    names = [name for group in groups for name in GROUPS[group][0]]
    save(Verdict(OF, tuple(Check(name, "fail" if name in failed else "ok", "off by 1") for name in names)))


@pytest.fixture
def followed(caplog):
    """Follows what is known; returns what was said."""

    def follow(config, device=CUDA):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            follow_verdict(config, device)
        return [record.getMessage() for record in caplog.records]

    return follow


def machine(config):
    choices = choices_of(config)
    return choices.attention_backends, choices.cuda_graphs, choices.compile_chunks


ALL = ("varlen,flash,efficient,math", True, True)


def test_nothing_is_said_of_a_gpu_that_is_right(followed):
    know()
    config = DepiPi0Config(device="cpu")
    assert followed(config) == []
    assert machine(config) == ALL


def test_what_failed_is_not_used(followed):
    know("attention varlen", "CUDA graph", "compile", "fused optimizer", "float8", "memory")
    for config in (DepiPi0Config(device="cpu"), PI0Config(device="cpu", compile_model=True)):
        said = followed(config)
        assert machine(config) == ("flash,efficient,math", False, False)
        assert not config.compile_model
        assert [line.partition("as by --policy.")[2].partition(";")[0] for line in said] == [
            "attention_backends=flash,efficient,math",
            "compile_chunks=false",
            "cuda_graphs=false",
        ]
    assert followed(config) == []


def test_it_is_said_once_that_nothing_is_known(followed, caplog):
    know(groups=("kernels", "compile"))  # as a training leaves it
    (said,) = followed(DepiPi0Config(device="cpu"))
    assert said.startswith(UNCHECKED)
    assert followed(DepiPi0Config(device="cpu")) == []


def test_a_value_function_has_no_chunks(followed):
    know("attention flash", "CUDA graph", "compile", groups=("kernels", "compile"))
    config = ValueConfig(device="cpu", size="tiny")
    (said,) = followed(config)
    assert "--policy.attention_backends=varlen,efficient,math" in said


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_other_devices_have_no_verdict(followed, device):
    assert followed(DepiPi0Config(device="cpu"), torch.device(device)) == []


def test_whoever_loads_a_policy_to_use_it_follows(tmp_path, monkeypatch):
    policy = make_small()
    policy.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(factory, "follow_verdict", lambda config, device: asked.append((config, device)))
    loaded = load_policy(tmp_path)
    assert asked == [(loaded.config, torch.device("cpu"))]
    type(policy).from_pretrained(tmp_path)
    assert len(asked) == 2
    load_any_policy(tmp_path)  # as a training does
    assert len(asked) == 2


def test_a_mark_tells_what_lerobots_command_was_asked_to_compile(tmp_path):
    """It has overwritten the policy's own field by then; a processor needs no getting ready."""
    policy = make_small()
    policy.save_pretrained(tmp_path)
    config = DepiPi0Config(device="cpu", compile_model=True, **SIZES)
    config.input_features = policy.config.input_features
    config.output_features = policy.config.output_features
    config.only_acts = False
    loaded = type(policy).from_pretrained(tmp_path, config=config)
    assert not config.compile_model
    assert not loaded._inference_only
