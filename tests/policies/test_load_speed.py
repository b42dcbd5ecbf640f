"""Loading and saving cost what the file costs: measured in a process of its own, in memory and in time."""

import json
import subprocess
import sys

import pytest

from depi.models.pi0 import Pi0Dimensions
from depi.policies import convert, load_policy, make_processors, save_checkpoint

# Saves and loads a model of the given dimensions, then loads it from bfloat16; prints JSON. A process of its
# own, so that its anonymous memory is that of the one thing it does.
PROBE = """
import json, sys, threading, time
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from depi.models.pi0 import Pi0, Pi0Dimensions
from depi.policies.convert import lerobot_layout, load_weights, save_weights

def anonymous():
    fields = (line.split() for line in open("/proc/self/status"))
    return next(int(field[1]) * 1024 for field in fields if field[0] == "RssAnon:")

def measure(action):
    base = highest = anonymous()
    thread = threading.Thread(target=action)
    start = time.perf_counter()
    thread.start()
    while thread.is_alive():
        highest = max(highest, anonymous())
        time.sleep(0.005)
    return {"memory": highest - base, "seconds": time.perf_counter() - start}

def meta_model():
    with torch.device("meta"):
        return Pi0(dimensions)

def plain_read():
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - start

def load():
    plain_read()  # both find the file as far in memory as it fits
    model = meta_model()
    result = measure(lambda: load_weights(path, model, lerobot_layout(dimensions)))
    assert not any(parameter.is_meta for parameter in model.parameters())
    return result | {"plain_read": plain_read(), "file": path.stat().st_size}

path, dimensions = Path(sys.argv[1]), Pi0Dimensions(**json.loads(sys.argv[2]))
buffer = bytearray(1 << 24)
state = {name: torch.ones(value.shape) for name, value in meta_model().state_dict().items()}
report = {"parameters": sum(value.numel() for value in state.values()) * 4}
report["save"] = measure(lambda: save_weights(path, state, lerobot_layout(dimensions)))
del state
report["load"] = load()
if "bfloat16" in sys.argv:
    save_file({name: value.bfloat16() for name, value in load_file(path).items()}, path)
    report["load_bfloat16"] = load()
print(json.dumps(report))
"""


def probe(path, dimensions, *more):
    command = [sys.executable, "-c", PROBE, str(path), json.dumps(vars(dimensions)), *more]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.slow
def test_memory_stays_near_the_parameters(tmp_path):
    """About 100 M parameters, 400 MB: far more than what a process allocates by the way."""
    sizes = Pi0Dimensions.tiny(vocab_size=40_000, width=1024, mlp_dim=4096, depth=5, expert_width=256)
    report = probe(tmp_path / "model.safetensors", sizes, "bfloat16")
    parameters = report["parameters"]
    assert 350e6 < parameters < 450e6
    assert report["save"]["memory"] < 0.1 * parameters
    assert report["load"]["memory"] < 1.1 * parameters
    assert report["load_bfloat16"]["memory"] < 1.3 * parameters


def test_policies_are_built_without_memory(policy, stats, tokenizer, tmp_path, monkeypatch):
    """The network is made on the meta device; only the file's tensors become memory, whatever the flags."""
    save_checkpoint(tmp_path, policy, *make_processors(policy.config, stats))
    seen = []

    def watch(path, model, layout, **kwargs):
        seen.extend(parameter.device.type for parameter in model.parameters())
        return convert.load_weights(path, model, layout, **kwargs)

    monkeypatch.setattr("depi.policies.factory.load_weights", watch)
    for strict in (True, False):
        loaded = load_policy(tmp_path, strict=strict)
        assert all(parameter.device.type == "cpu" for parameter in loaded.parameters())
    assert set(seen) == {"meta"}


@pytest.mark.slow
def test_half_of_the_published_size(tmp_path, capsys):
    """Half the layers, all the width: little more than a read of the file."""
    sizes = Pi0Dimensions.full(depth=9, vision_depth=14)
    report = probe(tmp_path / "model.safetensors", sizes)
    loaded, parameters = report["load"], report["parameters"]
    with capsys.disabled():
        print(
            f"\n{parameters / 1e9:.1f} GB of parameters: loaded in {loaded['seconds']:.1f} s at a peak of "
            f"{loaded['memory'] / parameters:.2f} times that; reading the file of "
            f"{loaded['file'] / 1e9:.1f} GB takes {loaded['plain_read']:.1f} s; saved in "
            f"{report['save']['seconds']:.1f} s with {report['save']['memory'] / 1e9:.2f} GB more memory"
        )
    assert loaded["memory"] < 1.1 * parameters
    assert loaded["seconds"] < 3 * loaded["plain_read"] + 5
