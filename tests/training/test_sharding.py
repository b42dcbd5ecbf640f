"""FSDP2 over processes: the numbers of one process, and checkpoints that know nothing of it."""

import subprocess

import numpy as np
import pytest
from runs import LAUNCH, SCRIPT, losses, metrics, replaced, weights
from safetensors.torch import load

from depi.train import main as train


def launch(flags, processes=2):
    command = [*LAUNCH, "--multi_gpu", f"--num_processes={processes}", "--num_machines=1"]
    subprocess.run([*command, "--main_process_port=0", str(SCRIPT), *flags], check=True)


def close(run, other):
    assert losses(run).keys() == losses(other).keys()
    # Sums in another order: float32 rounding, which Adam's division makes larger in the later steps.
    np.testing.assert_allclose(list(losses(run).values()), list(losses(other).values()), rtol=1e-4)


@pytest.mark.slow
def test_sharded_training_is_that_of_one_process_and_either_resumes_the_other(flags, tmp_path):
    assert train(replaced(flags, steps=5, save_freq=3)) == 0
    changes = {"batch_size": 1, "gradient_accumulation_steps": 2, "sharding": "full", "recompute": 0.5}
    launch(replaced(flags, steps=3, output_dir=tmp_path / "sharded", **changes))
    half, whole = metrics(tmp_path / "sharded"), metrics(tmp_path / "run")
    np.testing.assert_allclose(
        [line["grad_norm"] for line in half], [line["grad_norm"] for line in whole[:3]], rtol=1e-4
    )
    resume = ["--resume=true", f"--output_dir={tmp_path / 'sharded'}", "--steps=5"]
    assert train([*resume, "--batch_size=4", "--gradient_accumulation_steps=1", "--sharding=none"]) == 0
    close(tmp_path / "sharded", tmp_path / "run")
    resume = ["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=6", "--save_freq=0"]
    launch([*resume, "--batch_size=2", "--sharding=hybrid"])
    assert train(["--resume=true", f"--output_dir={tmp_path / 'sharded'}", "--steps=6"]) == 0
    close(tmp_path / "sharded", tmp_path / "run")
    written, expected = (load(weights(tmp_path / run)) for run in ("run", "sharded"))
    assert written.keys() == expected.keys()
    for name, value in expected.items():
        # Adam moves where the true gradient is zero too, by rounding errors: compare whole tensors.
        assert (written[name] - value).norm() <= 1e-3 * (1 + value.norm()), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_layers_are_sharded_too(flags, tmp_path):
    assert train(replaced(flags, steps=3, save_freq=0)) == 0
    changes = {"batch_size": 2, "sharding": "full", "compile": True, "recompute": 0.5, "save_freq": 0}
    launch(replaced(flags, steps=3, output_dir=tmp_path / "sharded", **changes))
    close(tmp_path / "sharded", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [0.0, 0.5])
def test_rounded_weights_are_gathered(flags, tmp_path, recompute):
    """Those of norms, too: losses agree as far as bfloat16 goes. What is trained and saved stays precise."""
    changes = {"policy.dtype": "bfloat16", "steps": 4, "save_freq": 2, "recompute": recompute}
    changes |= {"dataset.eval_split": 0.5, "eval_freq": 2, "ema.decay": 0.9}
    assert train(replaced(flags, **changes)) == 0
    changes |= {"batch_size": 2, "sharding": "full"}
    launch(replaced(flags, output_dir=tmp_path / "sharded", **changes))
    one, both = losses(tmp_path / "run"), losses(tmp_path / "sharded")
    np.testing.assert_allclose(list(both.values()), list(one.values()), rtol=0.02)
    held_out = [
        [line["eval/loss"] for line in metrics(tmp_path / run) if "eval/loss" in line]
        for run in ("run", "sharded")
    ]
    assert len(held_out[0]) == 2
    np.testing.assert_allclose(held_out[1], held_out[0], rtol=0.02)
    written, expected = (load(weights(tmp_path / run)) for run in ("sharded", "run"))
    assert {name: value.dtype for name, value in written.items()} == {
        name: value.dtype for name, value in expected.items()
    }
    off = [(written[name] - value).norm() for name, value in expected.items()]
    assert np.linalg.norm(off) < 0.01 * np.linalg.norm([value.norm() for value in expected.values()])
    launch(["--resume=true", f"--output_dir={tmp_path / 'sharded'}", "--steps=5", "--save_freq=0"])
    assert len(losses(tmp_path / "sharded")) == 5


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "full"])
def test_gradients_are_added_up_in_bfloat16_where_asked_for(flags, tmp_path, sharding):
    changes = {"batch_size": 2, "sharding": sharding, "steps": 4, "save_freq": 0}
    for dtype in ("float32", "bfloat16"):
        launch(replaced(flags, output_dir=tmp_path / dtype, reduce_dtype=dtype, **changes))
    precise, rounded = losses(tmp_path / "float32"), losses(tmp_path / "bfloat16")
    assert precise[1] == pytest.approx(rounded[1], rel=1e-6)
    assert precise[4] == pytest.approx(rounded[4], rel=0.02)
    assert precise[4] != rounded[4]


def test_one_process_cannot_share(flags, tmp_path, capfd):
    assert train(replaced(flags, sharding="full")) == 2
    assert "needs several processes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("wrong", ["--sharding=zero3", "--recompute=2", "--reduce_dtype=float16"])
def test_wrong_values(flags, capfd, wrong):
    assert train([*flags, wrong]) == 2
    assert wrong.partition("=")[0] in capfd.readouterr().err
