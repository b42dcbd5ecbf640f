import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard
from recordings import Recording, write_v2
from runs import LAUNCH, SCRIPT, losses, metrics, replaced, weights
from safetensors.torch import load_file, save_file

from depi import cli
from depi.files import read_json, write_json
from depi.train import main as train


@pytest.fixture(scope="module")
def reference(data_ids, tmp_path_factory):
    """Losses and weights of an uninterrupted run of six steps, by the flags of the `flags` fixture."""

    def run(flags: list[str]) -> tuple[dict[int, float], bytes]:
        if not done:
            folder = tmp_path_factory.mktemp("reference") / "run"
            assert train(replaced(flags, output_dir=folder)) == 0
            done.append((losses(folder), weights(folder)))
        return done[0]

    done: list = []
    return run


def test_a_run_writes_what_lerobot_writes(flags, tmp_path):
    assert train(flags) == 0
    run = tmp_path / "run"
    assert sorted(os.listdir(run / "checkpoints")) == ["000002", "000004", "000006", "last"]
    assert os.readlink(run / "checkpoints" / "last") == "000006"
    last = run / "checkpoints" / "last"
    names = {path.name for path in (last / "pretrained_model").iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "train_config.json",
        "policy_preprocessor.json",
        "policy_postprocessor.json",
        "README.md",
    }
    assert {path.suffix for path in last.rglob("*") if path.is_file()} == {".json", ".safetensors", ".md"}
    report = read_json(run / "data_report.json")
    assert [entry["repo_id"] for entry in report["datasets"]] == ["alice/pick", "bob/place"]
    assert all(len(entry["revision"]) == 40 for entry in report["datasets"])
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["samples"] for line in lines] == [4, 8, 12, 16, 20, 24]
    assert all(line["lr"] > 0 and line["grad_norm"] > 0 and line["samples_per_s"] > 0 for line in lines)


def test_the_loss_falls(flags, tmp_path):
    changes = {"steps": 60, "log_freq": 10, "save_freq": 0, "policy.scheduler_decay_steps": 60}
    assert train(replaced(flags, **changes)) == 0
    values = list(losses(tmp_path / "run").values())
    assert values[-1] < 0.8 * values[0]
    assert os.listdir(tmp_path / "run" / "checkpoints").count("last") == 1


def test_resume_goes_on_with_the_same_losses_and_ends_with_the_same_weights(flags, tmp_path, reference):
    assert train(replaced(flags, steps=4)) == 0
    config = tmp_path / "run" / "checkpoints" / "000004" / "pretrained_model" / "train_config.json"
    assert train(["--resume=true", f"--config_path={config}", "--steps=3"]) == 2
    assert train(["--resume=true", f"--output_dir={tmp_path / 'run'}", "--steps=6"]) == 0
    assert losses(tmp_path / "run") == reference(flags)[0]
    assert weights(tmp_path / "run") == reference(flags)[1]


def test_kill_9_at_any_moment_and_resume_loses_nothing(flags, tmp_path, reference):
    run = tmp_path / "run"
    process = subprocess.Popen([sys.executable, SCRIPT, *replaced(flags, save_freq=1)])
    wait_for(lambda: (run / "checkpoints" / "last").exists(), process)
    time.sleep(np.random.default_rng().uniform(0, 0.3))
    process.kill()
    process.wait()
    assert train(["--resume=true", f"--output_dir={run}"]) == 0
    assert losses(run) == reference(flags)[0]
    assert weights(run) == reference(flags)[1]


def test_accelerate_launch_sigterm_saves_and_resume_is_exact(flags, tmp_path, reference):
    run = tmp_path / "run"
    flags = replaced(flags, num_workers=1)
    command = [sys.executable, SCRIPT, *replaced(flags, steps=100_000, save_freq=0)]
    process = subprocess.Popen(command, start_new_session=True)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(metrics(run)) >= 2, process)
    os.killpg(process.pid, signal.SIGTERM)  # its data loader's workers too, as schedulers do
    assert process.wait(60) == 128 + signal.SIGTERM
    stopped = max(losses(run))
    assert int(os.readlink(run / "checkpoints" / "last")) == stopped
    launch = [*LAUNCH, "--cpu", "--num_processes=1", "--num_machines=1", str(SCRIPT)]
    steps = f"--steps={stopped + 2}"
    subprocess.run([*launch, "--resume=true", f"--output_dir={run}", steps], check=True)
    assert sorted(losses(run)) == list(range(1, stopped + 3))
    other = tmp_path / "uninterrupted"
    assert train(replaced(flags, steps=stopped + 2, save_freq=0, output_dir=other)) == 0
    assert losses(run) == losses(other)


def test_two_processes_see_the_same_samples_and_losses_as_one(flags, tmp_path):
    one = replaced(flags, steps=3, save_freq=0)
    two = replaced(one, batch_size=2, output_dir=tmp_path / "two")
    launch = [*LAUNCH, "--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0"]
    subprocess.run([*launch, str(SCRIPT), *two], check=True)
    accumulated = replaced(
        one, batch_size=1, gradient_accumulation_steps=4, output_dir=tmp_path / "accumulated"
    )
    assert train(one) == 0
    assert train(accumulated) == 0
    expected = losses(tmp_path / "run")
    for other in ("two", "accumulated"):
        assert losses(tmp_path / other).keys() == expected.keys()
        # Sums in another order: float32 rounding, which Adam's division makes larger in the later steps.
        np.testing.assert_allclose(
            list(losses(tmp_path / other).values()), list(expected.values()), rtol=1e-4
        )
    assert metrics(tmp_path / "two")[-1]["samples"] == 12


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(flags, tmp_path):
    """With accumulation, recomputed layers, and resumed."""
    assert train(replaced(flags, steps=3, save_freq=0)) == 0
    run = tmp_path / "compiled"
    changes = {"batch_size": 2, "gradient_accumulation_steps": 2, "recompute": 0.5, "compile": True}
    assert train(replaced(flags, steps=3, save_freq=2, output_dir=run, **changes)) == 0
    expected, compiled = losses(tmp_path / "run"), losses(run)
    np.testing.assert_allclose(list(compiled.values()), list(expected.values()), rtol=1e-4)
    assert train(["--resume=true", f"--config_path={run}/checkpoints/000002/pretrained_model"]) == 0
    assert losses(run) == compiled


def test_fine_tuning_starts_from_the_checkpoint_and_takes_overrides(flags, tmp_path):
    assert train(flags) == 0
    before = load_file(tmp_path / "run/checkpoints/last/pretrained_model/model.safetensors")
    tuned = [flag for flag in flags if not flag.startswith("--policy.")]
    tuned = replaced(tuned, steps=1, output_dir=tmp_path / "tuned")
    tuned += [f"--policy.path={tmp_path / 'run/checkpoints/last'}", "--policy.optimizer_lr=1e-12"]
    assert train(tuned) == 0
    after = load_file(tmp_path / "tuned/checkpoints/last/pretrained_model/model.safetensors")
    assert before.keys() == after.keys()
    assert all(np.allclose(before[key], after[key], atol=1e-6) for key in before)
    saved = read_json(tmp_path / "tuned/checkpoints/last/pretrained_model/config.json")
    assert saved["optimizer_lr"] == 1e-12


def test_wrong_commands_are_one_sentence_status_2_and_write_nothing(flags, tmp_path, capfd):
    write_json(tmp_path / "empty.json", [])
    write_json(tmp_path / "dict.json", {"a": 1})
    write_json(tmp_path / "unknown.json", ["nobody/nothing"])
    (tmp_path / "torn.json").write_text('["alice/pick"')
    (tmp_path / "torn.yaml").write_text("policy: {type: [")
    data = [flag for flag in flags if not flag.startswith("--num_datasets")]
    policy = [flag for flag in flags if not flag.startswith("--policy.")]
    ids = "--dataset.repo_ids="
    for wrong, says in [
        ([*data, f"{ids}{tmp_path / 'empty.json'}"], "lists no dataset"),
        ([*data, f"{ids}{tmp_path / 'torn.json'}"], "not valid JSON"),
        ([*data, f"{ids}{tmp_path / 'dict.json'}"], "JSON list"),
        ([*data, f"{ids}{tmp_path / 'absent.json'}"], "does not exist"),
        ([*data, f"{ids}{tmp_path / 'unknown.json'}"], "nobody/nothing"),
        ([*data, "--dataset.repo_id=nobody/nothing"], "nobody/nothing"),
        (data, "name the data"),
        ([*flags, "--dataset.repo_id=alice/pick"], "together"),
        ([*flags, "--num_datasets=3"], "accepts 2"),
        ([*flags, "--steps=0"], "--steps must be at least 1"),
        ([*flags, "--seed=-1"], "--seed must not be negative"),
        ([*flags, "--policy.optimizer_lr=-1"], "optimizer_lr must be positive"),
        ([*flags, "--policy.optimizer_grad_clip_norm=-1"], "or 0 for no limit, not -1"),
        ([*flags, "--policy.device=cuda:1"], "CUDA_VISIBLE_DEVICES"),
        ([*flags, f"--config_path={tmp_path / 'torn.yaml'}"], "is no YAML"),
        (["--resume=true"], "--output_dir=RUN"),
        ([*flags, "--no_such_flag=1"], "no_such_flag"),
        ([*flags, "--policy.type=pi7"], "pi7"),
        (policy, "no policy"),
        ([*policy, "--policy.path=nobody/nothing"], "nobody/nothing"),
        ([*policy, f"--policy.path={tmp_path}"], "no checkpoint"),
        (["--resume=true", *flags], "no complete checkpoint"),
        ([*flags, "--policy.vocab_size=16"], "vocab_size"),
    ]:
        assert train(wrong) == 2, says
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(error) == 1
        assert says in error[0]
        assert not (tmp_path / "run").exists(), says


def test_an_existing_output_directory_is_refused_and_kept(flags, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    assert train(flags) == 2
    assert "already exists" in capfd.readouterr().err
    assert os.listdir(tmp_path / "run") == ["precious"]


def test_a_checkpoint_with_missing_keys_is_refused(flags, tmp_path, capfd):
    assert train(replaced(flags, steps=1)) == 0
    file = tmp_path / "run/checkpoints/last/pretrained_model/model.safetensors"
    tensors = load_file(file)
    removed = next(key for key in tensors if key.endswith("action_in_proj.weight"))
    save_file({key: value for key, value in tensors.items() if key != removed}, file)
    tuned = [flag for flag in flags if not flag.startswith("--policy.")]
    tuned = [*tuned, f"--policy.path={file.parent}", f"--output_dir={tmp_path / 'tuned'}"]
    capfd.readouterr()
    assert train(tuned) == 2
    assert "action_in_proj.weight" in capfd.readouterr().err
    assert not (tmp_path / "tuned").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_episodes_stop_the_run_with_their_names(flags, tmp_path, capfd, workers):
    root = write_v2(tmp_path / "data", Recording(lengths=(9, 7)))
    for video in (root / "videos").rglob("*.mp4"):
        video.write_bytes(b"\0" * 100)
    data = [flag for flag in flags if not flag.startswith(("--num_datasets", "--dataset."))]
    data += ["--dataset.repo_id=carol/torn", f"--dataset.root={root}", f"--num_workers={workers}"]
    assert train(data) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "carol/torn" in errors[0]
    assert "Traceback" not in errors[0]


def test_upload_publishes_the_checkpoint_with_its_card(flags, tmp_path, module_hub, monkeypatch, capsys):
    assert train(replaced(flags, steps=1)) == 0
    run = tmp_path / "run"
    monkeypatch.setenv("HF_TOKEN", module_hub.read_token)
    assert cli.main(["upload", str(run), "alice/pi0-test"]) == 2
    assert "token" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", module_hub.write_token)
    assert cli.main(["upload", str(run / "checkpoints"), "alice/pi0-test"]) == 2
    assert cli.main(["upload", str(run), "alice/pi0-test", "--tag=step-1"]) == 0
    revision = capsys.readouterr().out.strip().removeprefix("alice/pi0-test@")
    api = HfApi(endpoint=module_hub.endpoint, token=module_hub.read_token)
    assert api.model_info("alice/pi0-test").sha == revision
    assert api.model_info("alice/pi0-test", revision="step-1").sha == revision
    card = ModelCard.load(api.hf_hub_download("alice/pi0-test", "README.md", cache_dir=tmp_path / "cache"))
    assert card.data.datasets == ["alice/pick", "bob/place"]
    for entry in read_json(run / "data_report.json")["datasets"]:
        assert entry["revision"] in card.text


def test_the_tiny_configuration_trains_and_flags_win_over_the_file(data_ids, tmp_path):
    config = Path(__file__).parents[2] / "configs" / "train" / "tiny.yaml"
    run = tmp_path / "run"
    flags = [f"--config_path={config}", "--num_datasets=1", f"--dataset.data_ids={data_ids}"]
    assert train([*flags, f"--output_dir={run}", "--steps=2", "--log_freq=1", "--num_workers=0"]) == 0
    assert list(losses(run)) == [1, 2]
    saved = read_json(run / "checkpoints/last/pretrained_model/train_config.json")
    assert (saved["steps"], saved["batch_size"], saved["policy"]["chunk_size"]) == (2, 8, 16)


def test_metrics_go_to_weights_and_biases_offline(flags, tmp_path):
    wandb = {"wandb.enable": True, "wandb.mode": "offline", "wandb.project": "depi-test"}
    assert train(replaced(flags, steps=2, save_freq=0, **wandb)) == 0
    logs = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 1
    deadline = time.monotonic() + 30  # W&B's own process writes the file a little later
    while b"train/loss" not in logs[0].read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_offline_trains_from_what_an_earlier_run_has_fetched(flags, tmp_path):
    assert train(replaced(flags, steps=1)) == 0
    offline = replaced(flags, steps=1, output_dir=tmp_path / "offline", **{"dataset.offline": True})
    nowhere = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    subprocess.run([sys.executable, SCRIPT, *offline], check=True, env=nowhere, timeout=120)
    assert losses(tmp_path / "offline") == {1: losses(tmp_path / "run")[1]}
    empty = {**nowhere, "HF_HOME": str(tmp_path / "empty"), "DEPI_CACHE": str(tmp_path / "empty")}
    flags = replaced(offline, output_dir=tmp_path / "never")
    result = subprocess.run(
        [sys.executable, SCRIPT, *flags], check=False, env=empty, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2
    assert "alice/pick" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "never").exists()
