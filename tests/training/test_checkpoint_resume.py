"""What a resumed run does about damaged and earlier checkpoints."""

import os
import re
import shutil

from recordings import Recording, write_v2
from runs import losses, replaced, weights

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


def test_a_resumed_run_refuses_another_policy_than_the_checkpoints(flags, tmp_path, capfd):
    assert train(replaced(flags, steps=2)) == 0
    resume = ["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=3"]
    for wrong in ("--policy.optimizer_lr=1.0", "--policy.dtype=bfloat16", "--policy.depth=3"):
        capfd.readouterr()
        assert train([*resume, wrong]) == 2
        assert f"{wrong} cannot change on resume" in capfd.readouterr().err
    assert train([*resume, *(flag for flag in flags if flag.startswith("--policy."))]) == 0


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
