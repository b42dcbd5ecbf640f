"""Checkpoints of strangers: no code of theirs runs, none is asked about, no repository of theirs is read."""

import contextlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import lerobot
import pytest
import strangers
import tiny_checkpoints
import torch
from huggingface_hub import HfApi
from lerobot.configs import PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.processor.pipeline import ProcessorStepRegistry
from runs import SCRIPT
from safetensors.torch import load_file, save_file
from strangers import (
    ACT,
    GAUSSIAN,
    STRANGER,
    TO_ACTIONS,
    TOKENIZE,
    hostile_fields,
    write_checkpoint,
    write_repository,
)

from depi.errors import UserError
from depi.evaluation.lerobot_policies import load_lerobot_policy
from depi.policies.families import TYPES
from depi.policies.trust import LEROBOT_TYPES, POSTPROCESSOR, PREPROCESSOR, allowed_of, check_checkpoint

HELPERS = Path(strangers.__file__).parent

# What becomes of LeRobot's policy types in a stranger's checkpoint. One that is not here was not looked at.
REFUSED_TYPES = {
    *("eo1", "evo1", "fastwam", "gaussian_actor", "groot", "lingbot_va", "molmoact2", "pi0_fast"),
    *("vla_jepa", "wall_x", "xvla"),
}
# And of its processor steps: built for every policy, for some, or for none.
STEPS_OF_ALL = {
    *("rename_observations_processor", "to_batch_processor", "device_processor", "normalizer_processor"),
    *("unnormalizer_processor", "tokenizer_processor", "relative_actions_processor"),
    "absolute_actions_processor",
}
STEPS_OF_SOME = {
    "pi0_new_line_processor": {"pi0", "depi_pi0", "value"},
    "pi05_prepare_state_tokenizer_processor_step": {"pi05", "depi_pi05"},
    "smolvla_new_line_processor": {"smolvla"},
}
REFUSED_STEPS = {
    *("action_tokenizer_processor", "add_teleop_action_as_complementary_data", "add_teleop_action_as_info"),
    *("current_processor", "ee_bounds_and_safety", "ee_reference_and_delta", "eo1_qwen_processor"),
    *("eo1_conversation_template_processor", "evo1_action_processor", "evo1_pad_action_processor"),
    *("evo1_pad_state_processor", "fastwam_action_toggle_processor", "forward_kinematics_joints_to_ee"),
    *("forward_kinematics_joints_to_ee_action", "forward_kinematics_joints_to_ee_observation"),
    *("gripper_penalty_processor", "gripper_velocity_to_joint", "groot_action_unpack_unnormalize_v2"),
    *("groot_n1_7_action_decode_v1", "groot_n1_7_pack_inputs_v1", "groot_n1_7_vlm_encode_v1"),
    *("gym_hil_adapter_processor", "image_crop_resize_processor", "intervention_action_processor"),
    *("inverse_kinematics_ee_to_joints", "inverse_kinematics_rl_step", "isaaclab_arena_processor"),
    *("joint_velocity_processor", "libero_processor", "map_delta_action_to_robot_action"),
    *("map_phone_action_to_robot_action", "map_tensor_to_delta_action_dict", "molmoact2_clamp_action"),
    *("molmoact2_action_frame_transform", "molmoact2_clamp_normalized", "molmoact2_masked_normalizer"),
    *("molmoact2_masked_unnormalizer", "molmoact2_pack_inputs", "molmoact2_state_frame_transform"),
    *("numpy2torch_action_processor", "observation_processor", "policy_action_to_robot_action_processor"),
    *("pi0_fast_prepare_state_tokenizer_processor_step", "render_messages_processor", "robometer_encoder"),
    *("reward_classifier_processor", "robot_action_to_policy_action_processor", "time_limit_processor"),
    *("to_batch_processor_action", "to_batch_processor_complementary_data", "to_batch_processor_observation"),
    *("topreward_encoder", "torch2numpy_action_processor", "vla_jepa_binarize_gripper"),
    *("vla_jepa_clip_actions", "vla_jepa_pre_snap_gripper", "wall_x_task_processor", "xvla_add_domain_id"),
    *("xvla_image_scale", "xvla_image_to_float", "xvla_imagenet_normalize", "xvla_rotation_6d_to_axis_angle"),
}
# Small where LeRobot's defaults are large; their weights do not fit, but they are built.
SMALL = {
    "act": tiny_checkpoints.ACT_SIZES,
    "diffusion": {"down_dims": [16, 32], "horizon": 8, "n_action_steps": 4, "crop_shape": [84, 84]},
    "tdmpc": {"latent_dim": 8, "mlp_dim": 16, "state_encoder_hidden_dim": 16, "image_encoder_hidden_dim": 8},
}


def registered(decorator: str) -> set[str]:
    """The names that LeRobot's source registers with a decorator, also where a package is missing."""
    pattern = re.compile(rf'^@{re.escape(decorator)}\(\s*(?:name=)?"([^"]+)"', re.MULTILINE)
    return {
        name
        for path in Path(lerobot.__file__).parent.rglob("*.py")
        for name in pattern.findall(path.read_text())
    }


def known_types() -> set[str]:
    choices = PreTrainedConfig.get_known_choices().items()
    ours = {name for name, cls in choices if cls.__module__.startswith(("lerobot.", "depi."))}
    return registered("PreTrainedConfig.register_subclass") | ours


def known_steps() -> set[str]:
    for module in pkgutil.walk_packages(lerobot.__path__, "lerobot."):
        if "processor" in module.name.rpartition(".")[2]:
            with contextlib.suppress(ImportError):
                import_module(module.name)
    steps = {name: ProcessorStepRegistry.get(name) for name in ProcessorStepRegistry.list()}
    ours = {name for name, cls in steps.items() if cls.__module__.startswith(("lerobot.", "depi."))}
    return registered("ProcessorStepRegistry.register") | ours


def test_every_type_and_step_of_lerobot_was_looked_at():
    allowed = {*TYPES, *LEROBOT_TYPES}
    assert known_types() == allowed | REFUSED_TYPES
    assert not allowed & REFUSED_TYPES
    assert known_steps() == STEPS_OF_ALL | STEPS_OF_SOME.keys() | REFUSED_STEPS
    for step, kinds in STEPS_OF_SOME.items():
        assert {kind for kind in allowed if step in allowed_of(kind).steps} == kinds


@pytest.fixture(scope="module")
def stranger(module_hub, tmp_path_factory):
    """A repository with code and, as `stranger/NAME`, checkpoints and a run that name it."""
    folder = tmp_path_factory.mktemp("stranger")
    uploads = {STRANGER: write_repository(folder / "repository")}
    for name, config, steps in (
        ("step", ACT, [TO_ACTIONS]),
        ("actor", GAUSSIAN, []),
        ("tokenizer", ACT, [TOKENIZE]),
        ("smolvla", ACT | {"type": "smolvla", "vlm_model_name": STRANGER}, [TOKENIZE]),
        ("pi0", ACT | {"type": "pi0"}, [TOKENIZE]),
    ):
        uploads[f"stranger/{name}"] = write_checkpoint(folder / name, config, steps)
    tiny_checkpoints.write_pi0(folder / "own")
    for name, step in (("tokens", TOKENIZE), ("actions", TO_ACTIONS)):
        uploads[f"stranger/{name}"] = with_step(folder / "own", folder / name, step)
    run = {"dataset": {"repo_id": "someone/data"}, "policy": {"type": "eo1", "vlm_base": STRANGER}}
    for name, config in (("run", run | {"policy": {"type": "depi_pi0"}}), ("other-run", run)):
        uploads[f"stranger/{name}"] = with_step(folder / "own", folder / name, TO_ACTIONS)
        (folder / name / "train_config.json").unlink()  # it is a link to that of the others
        (folder / name / "train_config.json").write_text(json.dumps(config))
        (folder / name / "training_state").mkdir()
        (folder / name / "training_state" / "training_step.json").write_text('{"step": 1, "global_batch": 4}')
    api = HfApi()
    for repo_id, content in uploads.items():
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=content)
    return module_hub


def with_step(source: Path, folder: Path, step: dict, name: str = PREPROCESSOR) -> Path:
    """A copy of a checkpoint with one step more in one of its pipelines."""
    shutil.copytree(source, folder, copy_function=os.link)
    content = json.loads((folder / name).read_text())
    content["steps"].append(step)
    (folder / name).unlink()
    (folder / name).write_text(json.dumps(content))
    return folder


def with_field(source: Path, folder: Path, change: dict) -> Path:
    """A copy of a checkpoint with other fields in its config.json."""
    shutil.copytree(source, folder, copy_function=os.link)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(content | change))
    return folder


type Case = tuple[str, str, str]  # name, door, path


def cases_of_types(folder: Path, own: dict[str, Path]) -> Iterator[Case]:
    """Checkpoints of every type with the stranger's name in each field, all at once where none is built."""
    for kind in sorted(REFUSED_TYPES):
        fields = hostile_fields(PreTrainedConfig.get_choice_class(kind))
        path = write_checkpoint(folder / kind, {**ACT, **fields, "type": kind}, [TOKENIZE])
        yield f"type {kind}", "eval", str(path)
        yield f"type {kind} in training", "train", str(path)
    for kind in sorted(LEROBOT_TYPES):
        for field, value in hostile_fields(PreTrainedConfig.get_choice_class(kind)).items():
            config = {**ACT, **SMALL.get(kind, {}), field: value, "type": kind}
            path = write_checkpoint(folder / f"{kind}-{field}", config, [])
            yield f"{kind}.{field}", "eval", str(path)
    for kind, source in own.items():
        for field, value in hostile_fields(PreTrainedConfig.get_choice_class(kind)).items():
            path = with_field(source, folder / f"{kind}-{field}", {field: value})
            yield f"{kind}.{field}", "value" if kind == "value" else "train", str(path)


def cases_of_steps(folder: Path, bases: dict[str, Path]) -> Iterator[Case]:
    """Checkpoints of three types with each registered step, with the stranger's name in its fields."""
    for number, step in enumerate(sorted(known_steps())):
        cls = ProcessorStepRegistry.get(step)
        fields = hostile_fields(cls)
        settings = [fields] if step in REFUSED_STEPS else [{name: value} for name, value in fields.items()]
        for kind, source in bases.items():
            for config in settings:
                name = f"{step} in {kind} with {'+'.join(config)}"
                file = (PREPROCESSOR, POSTPROCESSOR)[number % 2]
                path = with_step(source, folder / name, {"registry_name": step, "config": config}, file)
                yield name, "value" if kind == "value" else "eval", str(path)
    for number, name in enumerate(("code.Tokenizer", f"{STRANGER}.code.Model", "os.system", "builtins.exec")):
        path = with_step(bases["act"], folder / f"class-{number}", {"class": name, "config": {}})
        yield f"class {name}", "eval", str(path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_that_a_checkpoint_names_runs_or_is_fetched(stranger, tmp_path):
    """Every type and step of LeRobot through DePi's doors, in a process whose every doing is watched."""
    own, act, value = (tmp_path / "base" / name for name in ("depi_pi0", "act", "value"))
    tiny_checkpoints.write_pi0(own)
    tiny_checkpoints.write_act(act)
    tiny_checkpoints.write_value(value)
    cases = [
        *cases_of_types(tmp_path / "types", {"depi_pi0": own, "value": value}),
        *cases_of_steps(tmp_path / "steps", {"depi_pi0": own, "act": act, "value": value}),
        *((f"{door} {name}", door, f"stranger/{name}") for door, name in HUB_CASES),
    ]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, HELPERS / "watched.py", tmp_path / "cases.json", tmp_path / "result.json"],
        env=hostile_environment(tmp_path) | {"PYTHONPATH": os.pathsep.join([str(HELPERS), *sys.path])},
        input="y\n" * 1000,
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert not result["ran"]
    assert {name: case["did"] for name, case in result["cases"].items() if case["did"]} == {}
    said = {name: case["said"] for name, case in result["cases"].items()}
    assert [text for text in said.values() if text and text.startswith("not a UserError")] == []
    for kind in REFUSED_TYPES:
        assert f"policy type '{kind}'" in said[f"type {kind}"]
        assert f"policy type '{kind}'" in said[f"type {kind} in training"]
    for name, text in said.items():
        step = name.partition(" in ")[0]
        if step in REFUSED_STEPS:
            assert f"a step that is not part of {name.split()[2]}: {step}" in text
        if name.startswith("class "):
            assert f"a step that is not part of act: {name.removeprefix('class ')}" in text
    assert all(said[f"{door} {name}"] for door, name in HUB_CASES)
    assert said["depi_pi0.license"] is said["value.license"] is None, "it was loaded"
    # The same watch sees all of it where the stranger is let in.
    assert (tmp_path / "mark").exists()
    control = " ".join(result["control"])
    for trace in (
        "trust stranger",
        "code ",
        "ask for",
        "unpickle",
        "torch.load",
        "connect",
        "input",
        "Popen",
    ):
        assert trace in control, (trace, control)
    assert "compile" in control or "exec" in control


HUB_CASES = [
    *(("eval", name) for name in ("step", "actor", "tokenizer", "smolvla", "pi0", "tokens", "actions")),
    *(("train", name) for name in ("step", "pi0", "tokens", "actions")),
    *(("resume", name) for name in ("run", "other-run")),
]


def hostile_environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "MARK": str(folder / "mark"), "HF_MODULES_CACHE": str(folder / "modules")}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param(
            [
                "-m",
                "depi.cli",
                "eval",
                "--policy.path=stranger/step",
                "--env.type=pusht",
                "--policy.device=cpu",
            ],
            "a step that is not part of act: action_tokenizer_processor",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            [
                SCRIPT,
                "--policy.path=stranger/tokens",
                "--policy.device=cpu",
                "--dataset.repo_id=someone/data",
            ],
            f"tokenizer_name is '{STRANGER}', and nothing is loaded from there",
        ),
        pytest.param(
            [SCRIPT, "--resume=true", "--config_path=stranger/run"],
            "a step that is not part of depi_pi0: action_tokenizer_processor",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["eval", "train", "resume"],
)
def test_no_command_runs_code_of_a_stranger_or_asks_to(stranger, tmp_path, command, said):
    run = subprocess.run(
        [sys.executable, *command, f"--output_dir={tmp_path / 'out'}"],
        input="y\n" * 20,
        env=hostile_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert not (tmp_path / "mark").exists()
    assert run.returncode == 2, run.stderr
    assert said in run.stderr
    assert "Traceback" not in run.stderr
    assert "custom code" not in run.stdout + run.stderr


def test_compare_reads_numbers_and_loads_nothing(stranger, tmp_path):
    """Results of others: the policy that they name is a text, and their numbers become names of files."""
    rows = [
        {"index": 0, "seed": seed, "success": bool(seed), "length": 1, "reward": 0.5, "error": None}
        for seed in (0, 1)
    ]
    result = {"policy": STRANGER, "env": {"type": "pusht"}, "episodes": rows}
    for name, episodes in (("good", rows), ("bad", [rows[0] | {"seed": "../../out"}])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "eval.json").write_text(json.dumps(result | {"episodes": episodes}))
    for other, status, said in (("good", 0, STRANGER), ("bad", 2, "seed of episode 0 is '../../out'")):
        run = subprocess.run(
            [sys.executable, "-m", "depi.cli", "compare", tmp_path / "good", tmp_path / other, "--json"],
            env=hostile_environment(tmp_path),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert (run.returncode, "Traceback" in run.stderr) == (status, False), run.stderr
        assert said in run.stdout + run.stderr
    assert not (tmp_path / "mark").exists()


def test_a_run_on_the_hub_sends_nothing_away_that_no_flag_names(stranger, tmp_path, capsys):
    from depi.train import main as train

    api = HfApi()
    config = {
        "dataset": {"repo_id": "someone/data"},
        "policy": {"type": "depi_pi0", "repo_id": "victim/best"},
    }
    for change, said in (
        ({"push_to_hub": True}, "publishes its checkpoints as victim/best: say with --policy.repo_id"),
        ({"wandb": {"enable": True}}, "sends its metrics to Weights & Biases: say --wandb.enable"),
        (
            {"job_name": "x/../../../../outside"},
            "--job_name=x/../../../../outside becomes the name of a folder",
        ),
    ):
        content = json.dumps(config | change).encode()
        api.create_repo("stranger/config", exist_ok=True)
        api.upload_file(path_or_fileobj=content, path_in_repo="train_config.json", repo_id="stranger/config")
        output = [] if "job_name" in change else [f"--output_dir={tmp_path / 'out'}"]
        assert train(["--config_path=stranger/config", *output]) == 2
        assert said in capsys.readouterr().err


# Texts in the configurations of allowed types that no loader of repositories takes: checked by reading
# LeRobot 0.6.1. A new field of a new version has to be read, and put here or into the lists.
TEXTS = {
    *(
        "device",
        "repo_id",
        "license",
        "tags",
        "pretrained_revision",
        "pretrained_path",
        "dtype",
        "compile_mode",
    ),
    *("paligemma_variant", "action_expert_variant", "vision_backbone", "pretrained_backbone_weights"),
    *("feedforward_activation", "noise_scheduler_type", "beta_schedule", "prediction_type"),
    *("scheduler_name", "attention_mode", "pad_language_to", "objective", "integration_method"),
    *("timestep_sampling_strategy", "tokenizer_padding", "tokenizer_padding_side"),
    *("action_feature_names", "relative_exclude_joints"),
}


@pytest.mark.parametrize("kind", sorted({*LEROBOT_TYPES, "pi0"}))
def test_every_text_of_an_allowed_configuration_was_looked_at(kind):
    texts = hostile_fields(PreTrainedConfig.get_choice_class(kind)).keys()
    assert texts <= TEXTS | allowed_of(kind).repositories.keys()


def test_a_checkpoint_is_built_that_its_user_vouches_for(tmp_path, monkeypatch):
    folder = write_checkpoint(tmp_path / "c", {**ACT, "type": "gaussian_actor"}, [])
    with pytest.raises(UserError, match="trust_checkpoint"):
        load_lerobot_policy(folder, "gaussian_actor", "cpu")
    # LeRobot is asked, and finds no weights.
    with pytest.raises(UserError, match="cannot be loaded"):
        load_lerobot_policy(folder, "gaussian_actor", "cpu", trusted=True)


def test_vouching_is_for_one_checkpoint_alone(stranger, tmp_path, capsys):
    from depi import cli

    flags = ["--policy.path=stranger/actor", "--env.type=pusht", f"--output_dir={tmp_path / 'out'}"]
    assert cli.main(["eval", *flags, "--trust_checkpoint=stranger/actor@main"]) == 2
    said = capsys.readouterr().err
    assert "--trust_checkpoint=stranger/actor@main is another checkpoint than stranger/actor@" in said


def test_lerobots_own_checkpoints_pass(tmp_path):
    config = ACTConfig()
    folder = tmp_path / "act"
    config.save_pretrained(folder)
    check_checkpoint(folder, "act")
    shutil.copy(folder / "config.json", folder / PREPROCESSOR)
    with pytest.raises(UserError, match="no list of steps"):
        check_checkpoint(folder, "act")


@pytest.fixture
def trained(tmp_path):
    """A folder with a small ACT and its processors."""
    tiny_checkpoints.write_act(tmp_path / "trained")
    return tmp_path / "trained"


def test_wrong_fields_weights_and_statistics_are_refused_of_lerobots_policies_too(trained):
    load_lerobot_policy(trained, "act", "cpu")
    config = json.loads((trained / "config.json").read_text())
    feature = {"type": ["STATE"], "shape": [2]}
    for change in ({"input_features": {"observation.state": feature}}, {"n_heads": None}, {"dim_model": -1}):
        (trained / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=r"trained cannot be loaded"):
            load_lerobot_policy(trained, "act", "cpu")
    (trained / "config.json").write_text(json.dumps(config))
    (path,) = trained.glob("policy_postprocessor*.safetensors")
    good = load_file(path)
    save_file(good | {"action.std": torch.tensor([1.0, torch.nan])}, path)
    with pytest.raises(UserError, match=r"policy_postprocessor.json: std of action is NaN or infinite"):
        load_lerobot_policy(trained, "act", "cpu")
    save_file(good, path)
    weights = load_file(trained / "model.safetensors")
    weights["model.action_head.bias"][0] = torch.nan
    save_file(weights, trained / "model.safetensors")
    with pytest.raises(UserError, match=r"NaN or infinite, in 1 of .* first model.action_head.bias"):
        load_lerobot_policy(trained, "act", "cpu")
