"""Checkpoints of strangers: no code of theirs runs, none is asked about, no repository of theirs is read."""

import contextlib
import dataclasses
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import lerobot.policies
import pytest
import torch
from huggingface_hub import HfApi
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.processor.pipeline import ProcessorStepRegistry
from safetensors.torch import load_file, save_file

from depi.errors import UserError
from depi.evaluation.lerobot_policies import load_lerobot_policy
from depi.policies.trust import LEROBOT_TYPES, PREPROCESSOR, allowed_of, check_checkpoint

STRANGER = "stranger/helpful"
# Each of them leaves a file behind when it runs.
CODE = """
import os, pathlib
pathlib.Path(os.environ["MARK"]).write_text(os.environ.get("HF_TOKEN", ""))
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, ProcessorMixin
class Config(PretrainedConfig):
    model_type = "helpful"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer(PreTrainedTokenizerFast):
    pass
class Processor(ProcessorMixin):
    pass
"""
CLASSES = {
    "AutoConfig": "code.Config",
    "AutoModel": "code.Model",
    "AutoProcessor": "code.Processor",
    "AutoTokenizer": ["code.Tokenizer", "code.Tokenizer"],
}
TOKENIZE = {
    "registry_name": "tokenizer_processor",
    "config": {"tokenizer_name": STRANGER, "max_length": 8, "task_key": "task", "padding_side": "right"},
}
TO_ACTIONS = {
    "registry_name": "action_tokenizer_processor",
    "config": {"action_tokenizer_name": STRANGER, "trust_remote_code": True},
}
ACT = {
    "type": "act",
    "input_features": {
        "observation.image": {"type": "VISUAL", "shape": [3, 96, 96]},
        "observation.state": {"type": "STATE", "shape": [2]},
    },
    "output_features": {"action": {"type": "ACTION", "shape": [2]}},
}
GAUSSIAN = ACT | {"type": "gaussian_actor", "vision_encoder_name": STRANGER}


def write_checkpoint(folder: Path, config: dict, steps: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for name, content in (("preprocessor", steps), ("postprocessor", [])):
        path = folder / f"policy_{name}.json"
        path.write_text(json.dumps({"name": f"policy_{name}", "steps": content}))
    return folder


@pytest.fixture(scope="module")
def stranger(module_hub, tmp_path_factory):
    """A repository with code and, as `stranger/NAME`, checkpoints that name it."""
    folder = tmp_path_factory.mktemp("stranger")
    (folder / "code.py").write_text(CODE)
    for name in ("config.json", "tokenizer_config.json", "processor_config.json"):
        (folder / name).write_text(json.dumps({"model_type": "helpful", "auto_map": CLASSES}))
    uploads = {STRANGER: folder}
    for name, config, steps in (
        ("step", ACT, [TO_ACTIONS]),
        ("actor", GAUSSIAN, []),
        ("tokenizer", ACT, [TOKENIZE]),
        ("smolvla", ACT | {"type": "smolvla", "vlm_model_name": STRANGER}, [TOKENIZE]),
        ("pi0", ACT | {"type": "pi0"}, [TOKENIZE]),
    ):
        uploads[f"stranger/{name}"] = write_checkpoint(folder.with_name(f"checkpoint-{name}"), config, steps)
    api = HfApi()
    for repo_id, content in uploads.items():
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=content)
    return module_hub


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step", "a step that is not part of act: action_tokenizer_processor"),
        ("actor", "policy type 'gaussian_actor'"),
        ("tokenizer", f"tokenizer_name is '{STRANGER}'"),
    ],
)
def test_depi_eval_runs_no_code_of_a_stranger_and_does_not_ask(stranger, tmp_path, name, said):
    run = subprocess.run(
        [
            *(sys.executable, "-m", "depi.cli", "eval", f"--policy.path=stranger/{name}"),
            *("--env.type=pusht", "--policy.device=cpu", f"--output_dir={tmp_path / 'out'}"),
        ],
        input="y\n" * 20,
        env={**os.environ, "MARK": str(tmp_path / "mark"), "HF_MODULES_CACHE": str(tmp_path / "modules")},
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


def test_the_strangers_repository_does_run_code_where_it_is_trusted(stranger, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    with contextlib.suppress(Exception):  # it is no tokenizer, but that shows later
        AutoTokenizer.from_pretrained(STRANGER, trust_remote_code=True)
    assert (tmp_path / "mark").read_text() == os.environ["HF_TOKEN"]


def test_training_from_a_stranger_runs_no_code(stranger, tmp_path, monkeypatch):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    from depi.policies import load_processors

    with pytest.raises(UserError, match=f"tokenizer_name is '{STRANGER}'"):
        load_processors("stranger/pi0", device="cpu")
    assert not (tmp_path / "mark").exists()


def hostile_fields(cls: type) -> dict[str, str]:
    """The stranger's name in every field of a dataclass that takes a text."""
    return {
        field.name: STRANGER
        for field in dataclasses.fields(cls)
        if "str" in str(field.type) and not str(field.type).startswith(("dict", "list"))
    }


class Watch:
    """Counts connections and programs that this process opens while it watches; audit hooks stay for good."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple) -> None:
        if self.on and event in {"socket.connect", "subprocess.Popen", "pickle.find_class", "os.exec"}:
            self.seen.append(event)


@pytest.fixture(scope="module")
def watch():
    return Watch()


def known_types() -> list[str]:
    import lerobot.policies.factory  # noqa: F401  registers them

    return sorted(PreTrainedConfig.get_known_choices())


def known_steps() -> list[str]:
    for module in pkgutil.walk_packages(lerobot.policies.__path__, "lerobot.policies."):
        if ".processor_" in module.name:
            import_module(module.name)
    return sorted(ProcessorStepRegistry.list())


def test_no_policy_type_of_lerobot_loads_a_repository_that_the_checkpoint_names(tmp_path, watch):
    assert {"act", "gaussian_actor", "groot", "smolvla", "wall_x"} < set(known_types())
    for kind in known_types():
        fields = hostile_fields(PreTrainedConfig.get_choice_class(kind))
        folder = write_checkpoint(tmp_path / kind, {**ACT, **fields, "type": kind}, [TOKENIZE])
        watch.on = True
        try:
            with pytest.raises(UserError):
                load_lerobot_policy(folder, kind, "cpu")
        finally:
            watch.on = False
        assert (kind, watch.seen) == (kind, [])


def test_the_steps_that_pass_take_no_name_of_a_repository(tmp_path):
    passed = {}
    for step in known_steps():
        cls = ProcessorStepRegistry.get(step)
        fields = hostile_fields(cls) if dataclasses.is_dataclass(cls) else {}
        folder = write_checkpoint(tmp_path / step, ACT, [{"registry_name": step, "config": fields}])
        with contextlib.suppress(UserError):
            check_checkpoint(folder, "act")
            passed[step] = fields.keys()
    assert 0 < len(passed) < len(known_steps()) / 2
    # A device, a type of numbers, and keys.
    assert set().union(*passed.values()) <= {"device", "float_dtype", "normalize_observation_keys"}


# Texts in the configurations of allowed types that no loader of repositories takes: checked by reading
# LeRobot 0.6.1. A new field of a new version has to be read, and put here or into the lists.
TEXTS = {
    *("device", "repo_id", "license", "pretrained_revision", "pretrained_path", "dtype", "compile_mode"),
    *("paligemma_variant", "action_expert_variant", "vision_backbone", "pretrained_backbone_weights"),
    *("feedforward_activation", "noise_scheduler_type", "beta_schedule", "prediction_type"),
    *("scheduler_name", "attention_mode", "pad_language_to", "objective", "integration_method"),
    *("timestep_sampling_strategy", "tokenizer_padding", "tokenizer_padding_side"),
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
    config = ACTConfig(
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        **{"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "latent_dim": 4},
        **{"use_vae": False, "pretrained_backbone_weights": None, "device": "cpu"},
    )
    stats = {key: {"mean": torch.zeros(2), "std": torch.ones(2)} for key in ("observation.state", "action")}
    stats["observation.image"] = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}
    folder = tmp_path / "trained"
    ACTPolicy(config).save_pretrained(folder)
    for pipeline in make_act_pre_post_processors(config, stats):
        pipeline.save_pretrained(folder)
    return folder


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
