"""What a resumed run does about damaged and earlier checkpoints."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import HfApi
from recordings import Recording, write_v2
from runs import SCRIPT, losses, metrics, replaced, weights

from depi.train import main as train


def test_a_damaged_checkpoint_is_refused_and_the_one_before_goes_on_exactly(flags, tmp_path, capfd):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(replaced(flags, output_dir=whole)) == 0
    assert train(flags) == 0
    checkpoints = run / "checkpoints"
    optimizer = checkpoints / "000006" / "training_state" / "optimizer_state.safetensors"
    os.truncate(optimizer, optimizer.stat().st_size // 2)
    (checkpoints / ".000008.tmp" / "pretrained_model").mkdir(parents=True)
    capfd.readouterr()
    assert train(["--resume=true", f"--output_dir={run}", "--steps=8"]) == 2
    error = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error:"))
    assert "optimizer_state.safetensors has" in error
    offer = re.search(r"--resume=true --config_path=\S+", error)[0].split()
    assert offer[1].endswith("000004/pretrained_model")
    assert train(offer) == 0
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)
    assert sorted(os.listdir(checkpoints)) == ["000002", "000004", "000006", "last"]


def test_a_resumed_run_refuses_another_policy_than_the_checkpoints(flags, tmp_path, capfd, caplog):
    assert train(replaced(flags, steps=2)) == 0
    resume = ["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=3"]
    for wrong in ("--policy.optimizer_lr=1.0", "--policy.dtype=bfloat16", "--policy.depth=3"):
        capfd.readouterr()
        assert train([*resume, wrong]) == 2
        assert f"{wrong} cannot change on resume" in capfd.readouterr().err
    assert train([*resume, *(flag for flag in flags if flag.startswith("--policy."))]) == 0
    assert "--steps=3 changes the schedule: the learning rate goes on at" in caplog.text


def test_a_resumed_run_refuses_a_folder_that_has_grown(flags, tmp_path, capfd):
    root = write_v2(tmp_path / "data", Recording())
    named = [flag for flag in flags if not flag.startswith(("--num_datasets", "--dataset."))]
    assert train([*named, "--dataset.repo_id=user/data", f"--dataset.root={root}", "--steps=2"]) == 0
    shutil.rmtree(root)
    write_v2(root, Recording(lengths=(7, 5, 6)))
    before = sorted(tmp_path.joinpath("run").rglob("*"))
    capfd.readouterr()
    assert train(["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=4"]) == 2
    assert "dataset user/data has 3 episodes, the run began with 2" in capfd.readouterr().err
    assert sorted(tmp_path.joinpath("run").rglob("*")) == before


def test_a_broken_link_names_the_newest_checkpoint(flags, tmp_path, capfd):
    assert train(replaced(flags, steps=2)) == 0
    link = tmp_path / "run" / "checkpoints" / "last"
    link.unlink()
    link.symlink_to("000009")
    for way in (f"--output_dir={tmp_path / 'run'}", f"--config_path={link / 'pretrained_model'}"):
        capfd.readouterr()
        assert train(["--resume=true", way]) == 2
        assert "000002/pretrained_model" in capfd.readouterr().err


@pytest.mark.parametrize("keep_last", [1, 2])
def test_a_resumed_run_outlives_the_checkpoint_that_it_resumed_from(flags, tmp_path, keep_last, caplog):
    run, whole = tmp_path / "run", tmp_path / "whole"
    flags = replaced(flags, **{"policy.scheduler_decay_steps": 2})
    assert train(replaced(flags, output_dir=whole)) == 0
    assert train(replaced(flags, steps=2, save_freq=1, keep_last=keep_last)) == 0
    assert train(["--resume=true", f"--output_dir={run}", "--steps=6"]) == 0
    assert len(os.listdir(run / "checkpoints")) == keep_last + 1
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)
    assert "changes the schedule" not in caplog.text


def test_a_run_goes_on_elsewhere_and_needs_nothing_that_it_began_with(flags, tmp_path):
    """From a copy of a checkpoint with adapters: neither the copy nor the base is read after the start."""
    base, other, copied = tmp_path / "base", tmp_path / "other", tmp_path / "copied" / "000001"
    assert train(replaced(flags, steps=1, output_dir=base)) == 0
    tuned = [flag for flag in flags if not flag.startswith("--policy.")]
    tuned += [f"--policy.path={base}", "--policy.device=cpu", "--policy.dtype=bfloat16", "--peft.r=4"]
    assert train([*tuned, "--peft.method_type=LORA", "--steps=1"]) == 0
    shutil.copytree(tmp_path / "run" / "checkpoints" / "000001", copied)
    shutil.rmtree(tmp_path / "run")
    resume = ["--resume=true", f"--config_path={copied / 'pretrained_model'}", f"--output_dir={other}"]
    command = [sys.executable, SCRIPT, *resume, "--steps=9", "--save_freq=2", "--keep_last=1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = ""
    for line in process.stderr:
        log += line
        if "training depi_pi0" in line:
            shutil.rmtree(copied.parent)
            shutil.rmtree(base)
    assert process.wait(60) == 0, log
    process.stderr.close()
    assert list(losses(other)) == list(range(2, 10))
    assert os.readlink(other / "checkpoints" / "last") == "000009"
    assert not (tmp_path / "run").exists()


def test_a_run_that_died_after_its_last_save_makes_up_for_what_came_then(flags, module_hub, tmp_path):
    """The evaluation, and the upload: as where nothing died."""
    held_out = {"dataset.eval_split": 0.3, "eval_freq": 3, "steps": 3}
    publish = {"push_to_hub": "true", "policy.repo_id": "alice/late"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert train(replaced(flags, **held_out, output_dir=whole)) == 0
    script = (
        "import os, sys; from depi.training import loop; from depi.train import main\n"
        "def die(run, *_): print('dies', file=sys.stderr); loop.last.saver.wait(); os._exit(9)\n"
        "made = loop.Monitors.of\n"
        "def make(run): loop.last = made(run); return loop.last\n"
        "loop.Monitors.of, loop.measure = make, die\n"
        "main(sys.argv[1:])"
    )
    dying = [sys.executable, "-c", script, *replaced(flags, **held_out)]
    assert subprocess.run(dying, check=False).returncode == 9
    assert os.readlink(run / "checkpoints" / "last") == "000003"
    resume = ["--resume=true", f"--output_dir={run}"]
    for _ in range(2):
        assert train([*resume, *(f"--{name}={value}" for name, value in publish.items())]) == 0
        for name in ("eval/loss", "loss"):
            values, expected = (
                [line[name] for line in metrics(each) if name in line] for each in (run, whole)
            )
            assert values == expected
            assert values
    assert HfApi().repo_exists("alice/late")
    assert weights(run) == weights(whole)
