"""Checkpoints of type `pi0` and `pi05` need no plugin: stock LeRobot's factory runs them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import full_size_pi0
import numpy as np
import psutil
import pytest
import reduced_lerobot
import torch
from reduced_lerobot import FAMILIES, REDUCED, make_config, reduced_sizes

from depi.policies.configuration import dimensions_of
from depi.policies.convert import lerobot_name, unused_shapes
from depi.policies.families import family

both = pytest.mark.parametrize("name", ["pi0", "pi05"])

SCRIPT = Path(full_size_pi0.__file__)
MEMORY, DISK = 19e9, 18e9  # bytes for LeRobot's policy in float32, and for the checkpoint


@both
def test_full_size_has_every_name_and_shape_of_stock_lerobot(name):
    """Nothing patched: the published size, without its memory."""
    config = family(name).configs[name](device="cpu")
    config.device = "meta"
    with torch.device("meta"):
        theirs = FAMILIES[name].policy(config).state_dict()
        ours = family(name).network(dimensions_of(config))
    shapes = {lerobot_name(key, 18): tuple(value.shape) for key, value in ours.state_dict().items()}
    written = {f"model.{key}": shape for key, shape in (shapes | unused_shapes(ours.dimensions)).items()}
    assert written == {key: tuple(value.shape) for key, value in theirs.items()}


@both
def test_stock_factory_gives_the_same_actions(module_hub, tmp_path, monkeypatch, capsys, name):
    """Both sides are patched to a reduced size, which these configurations cannot express."""
    roomy = dataclasses.replace(REDUCED[name], vocab_size=1024)  # for the tokenizer
    monkeypatch.setitem(reduced_lerobot.REDUCED, name, roomy)
    with reduced_sizes(name):
        full_size_pi0.write(tmp_path, make_config(name))
        full_size_pi0.stock(tmp_path)
    same_actions(tmp_path, capsys.readouterr().out)


def same_actions(folder, printed):
    """LeRobot's loader prints failures and goes on with random weights."""
    assert "All keys loaded successfully!" in printed
    ours, stock = np.load(folder / "ours.npy"), np.load(folder / "stock.npy")
    assert ours.shape[-1] == 6
    assert ours.std() > 5
    np.testing.assert_allclose(stock, ours, rtol=1e-3, atol=5e-3)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_stock_lerobot_runs_the_published_size(module_hub, tmp_path):
    """Nothing patched: 4 billion parameters, written by one process and run by another."""
    memory, disk = psutil.virtual_memory().available, psutil.disk_usage(str(tmp_path)).free
    if memory < MEMORY or disk < DISK:
        pytest.skip(
            f"needs {MEMORY / 1e9:.0f} GB of memory and {DISK / 1e9:.0f} GB of disk, "
            f"there are {memory / 1e9:.0f} and {disk / 1e9:.0f}"
        )
    printed = ""
    try:
        for step in ("write", "stock"):
            done = subprocess.run([sys.executable, SCRIPT, step, tmp_path], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            printed += done.stdout
        same_actions(tmp_path, printed)
    finally:
        (tmp_path / "model.safetensors").unlink(missing_ok=True)
