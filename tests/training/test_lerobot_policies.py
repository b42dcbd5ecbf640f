"""LeRobot's own policies in DePi's loop: one dataset or many, saved, resumed, averaged, evaluated."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from PIL import Image
from recordings import Recording, write_v3
from runs import LAUNCH, SCRIPT, losses, metrics, weights
from safetensors.torch import load_file
from small_lerobot import small_policy, small_run

from depi import cli
from depi.files import read_json, write_json
from depi.hub.client.api import upload_folder
from depi.policies import load_policy
from depi.sim.gym_tasks import GYM_TASKS, record_gym_dataset
from depi.train import main as train

KINDS = ("act", "diffusion")
LAST = "checkpoints/last/pretrained_model"
ONE = ["--dataset.repo_id=alice/pick"]


@pytest.fixture
def two(data_ids) -> list[str]:
    """The flags of two datasets with two cameras and one."""
    return ["--num_datasets=2", f"--dataset.data_ids={data_ids}", "--dataset.image_size=48"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_resumes_bit_for_bit_whatever_its_workers_and_lerobot_loads_it(kind, data_ids, tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    flags = [*small_policy(kind), *ONE, "--ema.decay=0.5"]
    assert train([*flags, *small_run(whole)]) == 0
    begun = f"--config_path={whole / 'checkpoints/000004/pretrained_model'}"
    assert train(["--resume=true", begun, f"--output_dir={resumed}", "--num_workers=1"]) == 0
    assert losses(resumed) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert weights(resumed) == weights(whole)
    averages = [run / "checkpoints/last/training_state/ema.safetensors" for run in (whole, resumed)]
    assert averages[0].read_bytes() == averages[1].read_bytes() != weights(whole)

    config = PreTrainedConfig.from_pretrained(whole / LAST)
    assert config.image_features.keys() == {"observation.images.wrist", "observation.images.front"}
    policy = get_policy_class(kind).from_pretrained(whole / LAST, config=config, strict=True)
    pre, post = make_pre_post_processors(config, str(whole / LAST))
    torch.manual_seed(0)
    seen = {key: torch.rand(1, *feature.shape) for key, feature in config.input_features.items()}
    assert post(policy.select_action(pre({**seen, "task": ["Pick."]}))).shape == (1, 6)
    ours = load_policy(whole / LAST).model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in policy.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_many_datasets_are_slots_of_one_size_and_their_held_out_loss_is_by_dataset(kind, two, tmp_path):
    held_out = ["--dataset.eval_split=0.5", "--eval_freq=3", "--eval.n_samples=6"]
    run, again = tmp_path / "run", tmp_path / "again"
    flags = [*small_policy(kind), *two, *held_out]
    assert train([*flags, *small_run(run, steps=3)]) == 0
    assert train([*flags, *small_run(again, steps=3, num_workers=2)]) == 0
    assert (losses(run), weights(run)) == (losses(again), weights(again))
    config = read_json(run / LAST / "config.json")
    shapes = {key: feature["shape"] for key, feature in config["input_features"].items()}
    assert shapes == {
        **{f"observation.images.{slot}": [3, 48, 48] for slot in range(3)},
        "observation.state": [6],
    }
    (evaluated,) = (line for line in metrics(run) if "eval/loss" in line)
    by_dataset = [value for name, value in evaluated.items() if name.startswith("eval/loss/")]
    assert by_dataset
    assert all(np.isfinite(by_dataset))
    assert min(by_dataset) <= evaluated["eval/loss"] <= max(by_dataset)


def test_all_cameras_of_one_dataset_are_seen_in_the_order_of_the_checkpoint(tmp_path, capfd):
    """As LeRobot does; of many datasets, --dataset.max_cameras are."""
    cameras = [f"observation.images.{name}" for name in ("side", "top", "front", "wrist")]
    root = write_v3(tmp_path / "four", Recording(lengths=(7, 5), cameras=tuple(cameras)))
    data = ["--dataset.repo_id=alice/four", f"--dataset.root={root}"]
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    assert train([*small_policy("diffusion"), *data, *small_run(run, steps=1)]) == 0
    seen = read_json(run / LAST / "config.json")["input_features"]
    assert list(seen) == [*reversed(cameras), "observation.state"]
    report = read_json(run / "data_report.json")["datasets"][0]
    assert (len(report["cameras"]), report["cameras_not_used"]) == (4, [])

    theirs = {key: seen[key] for key in (*cameras, "observation.state")}  # LeRobot's order: the recording's
    write_json(run / LAST / "config.json", read_json(run / LAST / "config.json") | {"input_features": theirs})
    assert train([f"--policy.path={run / LAST}", *data, *small_run(tuned, steps=1)]) == 0
    assert list(read_json(tuned / LAST / "config.json")["input_features"]) == list(theirs)

    few = [*small_policy("diffusion"), *data, *small_run(tmp_path / "few"), "--dataset.max_cameras=2"]
    assert train(few) == 2
    assert "diffusion sees all cameras of one dataset" in capfd.readouterr().err.splitlines()[-1]


def test_samples_are_shown_with_all_their_observations(data_ids, tmp_path, capfd):
    run = tmp_path / "run"
    assert train([*small_policy("diffusion"), *ONE, *small_run(run, steps=1, batch_size=2)]) == 0
    capfd.readouterr()
    assert cli.main(["samples", str(run), "--step=1", "--json=true"]) == 0
    listed = json.loads(capfd.readouterr().out)["samples"]
    assert [sample["dataset"] for sample in listed] == ["alice/pick"] * 2
    first = ["--dataset=alice/pick", f"--episode={listed[0]['episode']}", "--frame=0"]
    assert cli.main(["samples", str(run), *first, "--json=true"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["samples"][0]["slots"] == ["observation.images.wrist", "observation.images.front"]
    before, now = found["state"]["recorded"]
    assert before == now, "before the first observation it repeats"
    assert len(found["first_action"]["normalised"]) == 6
    assert found["actions_outside_the_episode"] >= 1
    assert "prompt" not in found
    with Image.open(found["sheet"]) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (64, 4 * 64, 3), "two observations of two cameras, each in a square"
    wrist_before, wrist_now, front_before, front_now = np.split(pixels, 4, axis=1)
    assert np.array_equal(wrist_before, wrist_now)
    assert np.array_equal(front_before, front_now)
    assert not np.array_equal(wrist_now, front_now)


def test_a_bad_batch_is_skipped_and_all_its_samples_are_named(data_ids, tmp_path):
    """LeRobot's policies say the loss of a batch, not of each sample."""
    run = tmp_path / "run"
    flags = [*small_policy("act"), *ONE, *small_run(run, steps=2, batch_size=2)]
    assert train([*flags, "--loss_threshold=1e-6"]) == 0
    first, second = metrics(run)
    assert (first["skipped"], second["skipped"]) == (1, 2)
    assert len(first["skipped_frames"]) == 2
    other = tmp_path / "other"
    assert train([*small_policy("act"), *ONE, *small_run(other, steps=1, batch_size=2), "--save_freq=0"]) == 0
    assert weights(run) != weights(other), "bad steps were taken"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_are_one_that_accumulates(kind, two, tmp_path):
    """Each process draws by the seeds of its own samples, as micro-batches do."""
    normed = {"use_group_norm": "true"} if kind == "diffusion" else {}
    flags = [*small_policy(kind, **normed), *two]
    one, pair = tmp_path / "one", tmp_path / "two"
    size = {"steps": 4, "batch_size": 2, "save_freq": 0}
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    subprocess.run([*launch, str(SCRIPT), *flags, *small_run(pair, **size)], check=True)
    assert train([*flags, *small_run(one, **size, gradient_accumulation_steps=2)]) == 0
    assert losses(pair).keys() == losses(one).keys()
    np.testing.assert_allclose(list(losses(pair).values()), list(losses(one).values()), rtol=1e-4)
    ours, theirs = (load_file(run / LAST / "model.safetensors") for run in (one, pair))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.fixture(scope="module")
def simulated(module_hub, tmp_path_factory) -> Path:
    """Two simulated datasets of PushT on the Hub, as a list."""
    folder = tmp_path_factory.mktemp("simulated")
    ids = ["ann/push", "ben/push"]
    for seed, repo_id in enumerate(ids):
        root = folder / repo_id
        record_gym_dataset(GYM_TASKS["pusht"], repo_id, root, episodes=2, seed=10 * seed, codec="h264")
        upload_folder(root, repo_id, repo_type="dataset", commit_message="Upload")
    write_json(folder / "ids.json", ids)
    return folder / "ids.json"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_thirty_steps_killed_evaluated_uploaded_and_loaded_by_lerobots_commands(kind, simulated, tmp_path):
    data = [f"--dataset.repo_ids={simulated}", "--dataset.max_cameras=1", "--dataset.image_size=96"]
    data += ["--dataset.joint_convention=native", "--env.type=pusht", "--env.episode_length=5"]
    data += ["--eval.n_episodes=2", "--eval.n_videos=0", f"--policy.repo_id=me/{kind}"]
    flags = [*small_policy(kind), *data]
    size = {"steps": 30, "save_freq": 10, "num_workers": 1, "eval_freq": 15}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train([*flags, *small_run(whole, **size), "--push_to_hub=true"]) == 0

    process = subprocess.Popen([sys.executable, SCRIPT, *flags, *small_run(killed, **size)])
    while not (killed / "checkpoints" / "last").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert train(["--resume=true", f"--output_dir={killed}"]) == 0
    assert losses(killed) == losses(whole)
    assert weights(killed) == weights(whole)
    rates = [{line["step"]: line["eval/mean_reward"] for line in metrics(run) if "eval/mean_reward" in line}
             for run in (whole, killed)]  # fmt: skip
    assert rates[0] == rates[1]
    assert sorted(rates[0]) == [15, 30]

    evaluate = ["--env.type=pusht", "--env.episode_length=5", "--eval.n_episodes=2", "--eval.n_videos=0"]
    output = tmp_path / "eval"
    assert cli.main(["eval", f"--policy.path=me/{kind}", *evaluate, f"--output_dir={output}"]) == 0
    result = read_json(output / "eval.json")
    assert result["errors"] == {}
    assert result["mean_reward"] == pytest.approx(rates[0][30])

    stock = ["--policy.device=cpu", "--env.type=pusht", "--env.episode_length=5", "--eval.n_episodes=2"]
    stock += ["--eval.batch_size=1", "--eval.use_async_envs=false", f"--output_dir={tmp_path / 'stock'}"]
    rename = f"--rename_map={json.dumps({'observation.image': 'observation.images.0'})}"
    command = Path(sys.executable).with_name("lerobot-eval")
    subprocess.run([command, f"--policy.path=me/{kind}", *stock, rename], check=True)
    assert read_json(tmp_path / "stock" / "eval_info.json")["overall"]["n_episodes"] == 2
