"""`depi samples`: it lists what a real run has trained on."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import LAUNCH, metrics, replaced

from depi import cli
from depi.train import main as train

RECORDING = Path(__file__).parents[1] / "helpers" / "recording_drawn.py"
ACCUMULATION = 2
DATASETS = ["alice/pick", "bob/place"]


def listed(capsys, *args: str) -> dict:
    capsys.readouterr()
    assert cli.main(["samples", *args, "--json=true"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_listed_is_what_was_trained_on(flags, tmp_path, capsys, processes):
    shape = {"steps": 3, "batch_size": 4 // processes, "gradient_accumulation_steps": ACCUMULATION}
    mixed = {"dataset.cameras": "shuffle", "dataset.augment_color": 1.0, "save_freq": 3}
    launch = [*LAUNCH, f"--num_processes={processes}", "--num_machines=1", "--main_process_port=0"]
    launch += ["--multi_gpu"] if processes > 1 else []
    command = [*launch, str(RECORDING), str(tmp_path), *replaced(flags, **shape, **mixed)]
    subprocess.run(command, check=True, timeout=240)
    trained = {
        process: [
            json.loads(line) for line in (tmp_path / f"process_{process}.jsonl").read_text().splitlines()
        ]
        for process in range(processes)
    }
    for step in (1, 3):
        found = listed(capsys, str(tmp_path / "run"), f"--step={step}")
        for process, batches in trained.items():
            for micro_batch in range(ACCUMULATION):
                expected = batches[(step - 1) * ACCUMULATION + micro_batch]
                mine = [
                    [DATASETS.index(one["dataset"]), one["episode"], one["frame"]]
                    for one in found["samples"]
                    if (one["process"], one["micro_batch"]) == (process, micro_batch)
                ]
                assert mine == expected
        assert len(found["samples"]) == 4 * ACCUMULATION
        assert sorted({one["position"] for one in found["samples"]}) == sorted(
            one["position"] for one in found["samples"]
        )


@pytest.fixture(scope="module")
def run(data_ids, module_hub, tmp_path_factory) -> Path:
    """A run of two steps, told its advantages."""
    folder = tmp_path_factory.mktemp("told") / "run"
    small = {"vision_width": 16, "vision_depth": 1, "vision_mlp_dim": 32, "width": 32, "mlp_dim": 32}
    small |= {"expert_width": 32, "expert_mlp_dim": 32, "depth": 2, "head_dim": 16, "chunk_size": 4}
    small |= {"n_action_steps": 4, "image_resolution": "[28,28]", "tokenizer_max_length": 48}
    flags = [f"--policy.{name}={value}" for name, value in small.items()]
    flags += ["--policy.type=depi_pi0", "--policy.device=cpu", "--num_datasets=2", "--steps=2", "--seed=3"]
    flags += [f"--dataset.data_ids={data_ids}", f"--output_dir={folder}", "--batch_size=8", "--num_workers=0"]
    assert train([*flags, "--dataset.cameras=view", "--advantage.mode=on", "--save_freq=1"]) == 0
    return folder


def test_slots_tasks_and_indicators_are_those_of_the_samples(run, capsys):
    found = listed(capsys, str(run), "--step=2")
    expected = {
        "alice/pick": ["observation.images.wrist", "observation.images.front", None],
        "bob/place": [None, None, "observation.images.top"],
    }
    assert {one["dataset"] for one in found["samples"]} == set(DATASETS)
    for one in found["samples"]:
        assert one["slots"] == expected[one["dataset"]]
        assert one["task"] == ("pick the cube", "drop the cube")[one["episode"] % 2]
        assert one["revision"]
    assert {one["indicator"] for one in found["samples"]} == {"positive", None}
    sheet = Image.open(run / "samples_step_000002.png")
    assert found["sheet"] == str(run / "samples_step_000002.png")
    assert sheet.width > 3 * 112
    assert np.asarray(sheet).std() > 10


def test_one_frame_as_the_network_sees_it(run, tmp_path, capsys):
    frame = ["--dataset=alice/pick", "--episode=1", "--frame=5"]
    found = listed(capsys, str(run), *frame, f"--output={tmp_path / 'one.png'}")
    (one,) = found["samples"]
    assert (one["dataset"], one["episode"], one["frame"]) == ("alice/pick", 1, 5)
    assert "drop the cube" in found["prompt"]
    assert found["prompt"].rstrip().endswith("Advantage: positive") == (one["indicator"] == "positive")
    assert found["actions_outside_the_episode"] == 2  # of 4, from the sixth of seven frames on
    assert len(found["state"]["recorded"]) == len(found["first_action"]["normalised"]) == 6
    assert np.abs(found["state"]["normalised"]).max() < 5 < np.abs(found["state"]["recorded"]).max()
    assert Image.open(tmp_path / "one.png").size == (3 * 28, 28)


def test_the_samples_of_a_step_can_be_narrowed_down(run, capsys):
    every = listed(capsys, str(run), "--step=1")["samples"]
    wanted = every[3]
    frame = [f"--{name}={wanted[name]}" for name in ("dataset", "episode", "frame")]
    assert wanted in listed(capsys, str(run), "--step=1", *frame)["samples"]
    assert cli.main(["samples", str(run), "--step=1", frame[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + [one["dataset"] for one in every].count(wanted["dataset"])
    assert any(f"{wanted['dataset']}@{wanted['revision'][:8]} episode" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--step=3"], "is beyond the run"),
        (["--step=0"], "numbered from 1"),
        ([], "name a step with --step, or a frame"),
        (["--dataset=eve/none", "--episode=0", "--frame=0"], "eve/none is none of the run's 2 datasets"),
        (["--step=1", "--dataset=eve/none"], "eve/none is none of the run's 2 datasets"),
        (["--dataset=alice/pick", "--episode=9", "--frame=0"], "has no episode 9 of alice/pick"),
        (["--dataset=alice/pick", "--episode=0", "--frame=9"], "has the frames 0 to 8, not 9"),
        (["--step=1", "--dataset=bob/place", "--frame=99"], "did not train on dataset bob/place, frame 99"),
    ],
)
def test_errors_are_one_sentence(run, capsys, args, said):
    assert cli.main(["samples", str(run), *args]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert said in line


def test_a_folder_without_checkpoints_and_data_that_changed_are_refused(run, tmp_path, capsys):
    assert cli.main(["samples", str(tmp_path / "nowhere"), "--step=1"]) == 2
    assert "there is no folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert cli.main(["samples", str(tmp_path / "empty"), "--step=1"]) == 2
    assert "has no complete checkpoint" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "copy", symlinks=True)
    for report in copy.glob("checkpoints/0*/pretrained_model/data_report.json"):
        report.write_text(report.read_text().replace('"frames": 16', '"frames": 17'))
    assert cli.main(["samples", str(copy), "--step=1"]) == 2
    assert "has 16 frames, the run began with 17 frames" in capsys.readouterr().err


def test_skipped_steps_name_frames_that_the_step_trained_on(flags, tmp_path, capsys):
    assert train(replaced(flags, steps=2, save_freq=0, grad_norm_threshold=1e-6)) == 0
    run = tmp_path / "run"
    for line in metrics(run):
        (frame,) = line["skipped_frames"]
        assert frame.pop("step") == line["step"]
        every = listed(capsys, str(run), f"--step={line['step']}")["samples"]
        assert frame in [{name: one[name] for name in frame} for one in every]
