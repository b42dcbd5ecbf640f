import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluations import Arm, alike, outcomes, pictures
from safetensors.torch import load_file, save_file

from depi import cli
from depi.errors import UserError
from depi.evaluation.actors import Observation, camera_keys, check_dimensions
from depi.evaluation.config import EnvironmentConfig
from depi.evaluation.environments import find_table, resolve
from depi.evaluation.loading import training_choices
from depi.evaluation.messages import Seen
from depi.evaluation.pi0_actor import Pi0Actor
from depi.evaluation.same_actions import action_chunk
from depi.files import read_json, write_json
from depi.hub.client.api import upload_folder
from depi.policies import (
    DepiPi0Config,
    load_policy,
    make_policy,
    make_processors,
    resolve_checkpoint,
    save_checkpoint,
)


@pytest.fixture(scope="module")
def checkpoint(module_hub, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    config = DepiPi0Config(
        device="cpu", image_resolution=(28, 28), vision_depth=1, depth=2, chunk_size=8, n_action_steps=8
    )
    policy = make_policy(config, Arm())
    values = {"mean": np.zeros(6, np.float32), "std": np.full(6, 20, np.float32)}
    folder = tmp_path_factory.mktemp("checkpoint")
    processors = make_processors(config, {"observation.state": values, "action": values})
    save_checkpoint(folder, policy, *processors)
    return folder


def evaluate(checkpoint: Path, output: Path, *more: str) -> dict:
    flags = [f"--policy.path={checkpoint}", "--policy.device=cpu", "--eval.n_episodes=2"]
    assert cli.main(["eval", *flags, "--eval.n_videos=1", f"--output_dir={output}", *more]) == 0
    return read_json(output / "eval.json")


def test_rollouts_are_counted_filmed_and_repeatable(checkpoint, tmp_path):
    first = evaluate(checkpoint, tmp_path / "first", "--seed=7")
    assert [episode["seed"] for episode in first["episodes"]] == [7, 8]
    assert all(1 <= episode["length"] <= 40 for episode in first["episodes"])
    assert first["success_rate"] == np.mean([episode["success"] for episode in first["episodes"]])
    low, high = first["success_interval_95"]
    assert 0 <= low <= first["success_rate"] <= high <= 1
    videos = list((tmp_path / "first" / "videos").iterdir())
    assert [video.name for video in videos] == ["episode_000.mp4"]
    frames = pictures(videos[0])
    assert len(frames) == first["episodes"][0]["length"]
    assert abs(frames[0] - frames[-1]).max() > 50, "the robot does not move"
    again = evaluate(checkpoint, tmp_path / "again", "--seed=7")
    assert outcomes(again) == outcomes(first)
    assert alike(tmp_path / "again" / "videos" / "episode_000.mp4", videos[0])


@pytest.mark.parametrize(
    "name", ["config.json", "policy_preprocessor.json", "*.safetensors", "adapter_model"]
)
def test_a_rerun_with_a_changed_checkpoint_is_refused(checkpoint, tmp_path, name, capfd):
    folder, short = tmp_path / "checkpoint", "--env.episode_length=3"
    shutil.copytree(checkpoint, folder)
    evaluate(folder, tmp_path / "eval", "--eval.n_episodes=1", short)
    if name == "config.json":
        write_json(folder / name, read_json(folder / name) | {"n_action_steps": 2})
    elif name == "policy_preprocessor.json":
        write_json(folder / name, read_json(folder / name) | {"note": "other"})
    else:
        before = next(path for path in folder.glob("*.safetensors") if path.name != "model.safetensors")
        path = before if name == "*.safetensors" else folder / "adapter_model.safetensors"
        tensors = load_file(before)
        save_file(
            {key: value + 1 if value.is_floating_point() else value for key, value in tensors.items()}, path
        )
    flags = [f"--policy.path={folder}", "--policy.device=cpu", "--eval.n_videos=1", short]
    assert cli.main(["eval", *flags, "--eval.n_episodes=2", f"--output_dir={tmp_path / 'eval'}"]) == 2
    assert "holds an evaluation with another checkpoint_digest" in capfd.readouterr().err


def slots(cameras: list[str], **settings) -> dict[str, str | None]:
    keys = [f"observation.images.{camera}" for camera in cameras]
    numbered = [f"observation.images.{slot}" for slot in range(3)]
    found = camera_keys(numbered, keys, **{"rename": {}, **settings})
    return {camera: found[key] and found[key][-1] for camera, key in zip(cameras, keys, strict=True)}


def shown(cameras: list[str], state: np.ndarray) -> Observation:
    table = find_table(resolve(EnvironmentConfig(cameras=cameras)))
    images = {key: np.full((4, 6, 3), number + 1, np.uint8) for number, key in enumerate(table.cameras)}
    return Observation(0, 7, 0, Seen(images, state, "pick"), table)


def test_cameras_go_to_the_slots_that_training_gives_them(checkpoint):
    assert slots(["front", "wrist"]) == {"front": "1", "wrist": "0"}
    assert slots(["phone", "side", "front", "wrist"]) == {
        "wrist": "0",
        "front": "1",
        "side": "2",
        "phone": None,
    }
    assert slots(["top"]) == {"top": "0"}
    assert slots(["top"], order="view") == {"top": "2"}
    assert slots(["wrist", "phone", "top"], order="front,wrist,top") == {
        "wrist": "1",
        "phone": None,
        "top": "2",
    }
    with pytest.raises(
        UserError, match=r"trained with --dataset.cameras=front,top, and none of these is among"
    ):
        slots(["wrist"], order="front,top")
    actor = Pi0Actor(load_policy(checkpoint), (None, None))
    batch = actor._batch([shown(["side", "wrist"], np.zeros(6, np.float32))])
    assert [int(batch[f"observation.images.{slot}"].max()) for slot in range(3)] == [2, 1, 0]
    assert [bool(batch[f"observation.images.{slot}_is_pad"]) for slot in range(3)] == [False, False, True]
    with pytest.raises(UserError, match="no camera"):
        slots([])


FRONT, WRIST = "observation.images.front", "observation.images.wrist"


@pytest.mark.parametrize(
    ("rename", "says"),
    [
        (
            {"observation.images.fromt": "observation.images.1"},
            "environment has no camera observation.images.fromt",
        ),
        (
            {FRONT: "observation.images.7"},
            "policy has no camera observation.images.7; it has observation.images.0",
        ),
        ({FRONT: "observation.images.1", WRIST: "observation.images.1"}, "two of the environment's cameras"),
    ],
)
def test_a_wrong_rename_map_is_named_at_the_start(checkpoint, rename, says):
    actor = Pi0Actor(load_policy(checkpoint), (None, None), rename=rename)
    with pytest.raises(UserError, match=says):
        actor.fit([find_table(resolve(EnvironmentConfig()))])


def test_what_the_policy_does_not_see_is_logged(checkpoint, caplog):
    tables = [
        find_table(resolve(EnvironmentConfig(cameras=cameras))) for cameras in (["front", "wrist"], ["wrist"])
    ]
    actor = Pi0Actor(load_policy(checkpoint), (None, None), rename={WRIST: "observation.images.1"})
    actor.fit(tables)
    assert actor._policy_keys(tables[0]) == {FRONT: None, WRIST: "observation.images.1"}
    assert caplog.messages == [f"the policy does not use these cameras: {FRONT}"]
    with pytest.raises(UserError, match=r"is none of the environment's \(observation.images.wrist\)"):
        Pi0Actor(load_policy(checkpoint), (None, None), rename={FRONT: "observation.images.1"}).fit(tables)
    with pytest.raises(UserError, match="are the policy's b"):
        camera_keys(["b"], ["a", "b"], rename={"a": "b"})


def test_a_table_that_does_not_fit_is_named(checkpoint):
    policy = load_policy(checkpoint)
    with pytest.raises(UserError, match="state has 2 values, the policy's 6"):
        check_dimensions(policy.config, find_table(resolve(EnvironmentConfig(type="pusht"))))


def test_a_policy_in_other_units_is_spoken_to_in_them(checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    assert training_choices(folder) == ("name", "degrees")
    write_json(
        folder / "train_config.json", {"dataset": {"joint_convention": "normalized", "cameras": "view"}}
    )
    assert training_choices(folder) == ("view", "normalized")
    state = np.array([110.8, 0, 0, 0, 0, 50], np.float32)
    actor = Pi0Actor(load_policy(checkpoint), (None, None), convention="normalized")
    batch = actor._batch([shown(["wrist"], state)])
    np.testing.assert_allclose(batch["observation.state"][0], [100, 0, 0, 0, 0, 50], rtol=1e-6)
    actor = Pi0Actor(load_policy(checkpoint), (None, None), convention="native")
    observation = shown(["wrist"], np.full(6, 90, np.float32))
    for convention, joint in (("degrees", 90), ("radians", np.pi / 2)):
        table = dataclasses.replace(observation.table, recorded_convention=convention)
        batch = actor._batch([dataclasses.replace(observation, table=table)])
        np.testing.assert_allclose(batch["observation.state"][0][:5], joint, rtol=1e-6)
    write_json(folder / "train_config.json", {"dataset": {"cameras": "by_magic"}})
    with pytest.raises(UserError, match=r"dataset\.cameras is 'by_magic', which is no order of cameras"):
        training_choices(folder)
    write_json(folder / "train_config.json", {"dataset": {"joint_convention": "native"}})
    write_json(folder / "data_report.json", {"datasets": [{"convention": "radians"}]})
    assert training_choices(folder) == ("name", "radians")
    degrees = evaluate(checkpoint, tmp_path / "degrees", "--eval.n_episodes=1")
    radians = evaluate(folder, tmp_path / "radians", "--eval.n_episodes=1")
    videos = [tmp_path / name / "videos" / "episode_000.mp4" for name in ("degrees", "radians")]
    assert degrees["env"] == radians["env"]
    assert videos[0].read_bytes() != videos[1].read_bytes()


def test_a_policy_from_the_hub_is_spoken_to_in_its_units_too(checkpoint, tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    write_json(folder / "train_config.json", {"dataset": {"joint_convention": "native", "cameras": "view"}})
    write_json(folder / "data_report.json", {"datasets": [{"convention": "radians"}]})
    upload_folder(folder, "alice/radians", repo_type="model", commit_message="Upload")
    assert training_choices(resolve_checkpoint("alice/radians")) == ("view", "radians")
    write_json(folder / "data_report.json", {"datasets": []})
    with pytest.raises(UserError, match="names none"):
        training_choices(folder)


def test_same_actions_compares_whole_checkpoints(checkpoint):
    assert torch.equal(action_chunk(checkpoint), action_chunk(checkpoint))
    assert not torch.equal(action_chunk(checkpoint), action_chunk(checkpoint, seed=1))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy.path=/nowhere"], "/nowhere"),
        ([], "--policy.path"),
        (["--policy.path={}", "--env.type=moon"], "moon"),
        (["--policy.path={}", "--env.task=fly"], "fly"),
        (["--policy.path={}", "--policy.device=tpu"], "tpu"),
        (["--policy.path={}", "--env.cameras=[]"], "camera"),
        (["--policy.path={}", "--env.fps=7"], "fps"),
        (["--policy.path={}", "--eval.n_episodes=0"], "n_episodes"),
        (["--policy.path={}", "--policy.n_action_steps=9"], "1 to 8"),
        (["--policy.path=expert", "--policy.n_action_steps=0"], "at least 1, not 0"),
        (["--policy.path=expert", "--policy.n_action_steps=-3"], "at least 1, not -3"),
        (["--policy.path=expert", "--record.root={}/config.json/x"], "config.json is a file, not a folder"),
    ],
)
def test_wrong_commands_are_one_sentence_and_write_nothing(checkpoint, tmp_path, capfd, flags, says):
    flags = [flag.format(checkpoint) for flag in flags]
    assert cli.main(["eval", *flags, f"--output_dir={tmp_path / 'eval'}"]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert says in errors[0]
    assert not (tmp_path / "eval").exists()
