"""The files of configs/recap, read by the parsers that read them in earnest."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_pi0 import make_small

from depi.flag_sources import read_flags
from depi.flags import parse_flags
from depi.hub.client.api import upload_folder
from depi.models.pi0 import Pi0Dimensions
from depi.policies import make_processors, save_checkpoint
from depi.recap.advantage_config import AdvantageFlags
from depi.training import config as training_config
from depi.training.command_line import parse_train_config
from depi.training.mixture import read_mixture

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "recap"


@pytest.fixture
def published_base(module_hub, tmp_path, monkeypatch):
    """A small pi0 under the name of the large one; and the working folder of a user, who is in the house."""
    policy = make_small()
    values = {"mean": np.zeros(6, np.float32), "std": np.ones(6, np.float32)}
    stats = {"observation.state": values, "action": values}
    save_checkpoint(tmp_path / "base", policy, *make_processors(policy.config, stats))
    upload_folder(tmp_path / "base", "lerobot/pi0_base", repo_type="model", commit_message="Upload")
    monkeypatch.chdir(ROOT)


def test_the_stages_that_train_are_configured_as_the_method_says(published_base, tmp_path):
    out = f"--output_dir={tmp_path / 'run'}"
    sft = parse_train_config([f"--config_path={CONFIGS / 'sft.yaml'}", out])
    assert sft.advantage.mode == "on"
    assert sft.policy.pretrained_path is not None
    assert sft.policy.dtype == "bfloat16"
    assert sft.dataset.mixture[0].weight == 1
    value = parse_train_config([f"--config_path={CONFIGS / 'value.yaml'}", out])
    assert value.policy.type == "value"
    assert (value.policy.number_of_bins, value.policy.c_fail, value.policy.reward_normalizer) == (
        201,
        1000,
        1600,
    )
    assert value.advantage.mode == "off"
    assert str(value.policy.init_from) == "lerobot/pi0_base"
    loop = yaml.safe_load((CONFIGS / "loop.yaml").read_text())["value"]["policy"]
    pi0 = Pi0Dimensions.full()
    for name in ("width", "mlp_dim", "num_heads", "num_kv_heads", "head_dim"):  # or nothing of it would fit
        assert getattr(value.policy, name) == loop[name] == getattr(pi0, name)
    assert value.policy.depth == loop["depth"] < pi0.depth
    policy = parse_train_config([f"--config_path={CONFIGS / 'policy.yaml'}", out])
    assert (policy.advantage.mode, policy.advantage.dropout) == ("use", 0.3)
    assert policy.dataset.mixture == read_mixture(CONFIGS / "mixture.yaml")
    assert policy.dataset.action_freq == 30
    advantage = parse_flags(AdvantageFlags, [f"--config_path={CONFIGS / 'advantage.yaml'}"], "depi advantage")
    assert (advantage.look_ahead, advantage.share) == (50, 0.3)
    # What one stage writes the next one reads.
    assert advantage.dataset.mixture == policy.dataset.mixture
    assert policy.advantage.path == advantage.output_dir


def test_the_value_function_is_trained_further_with_the_same_file(value_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = [f"--config_path={CONFIGS / 'value.yaml'}", f"--policy.path={value_checkpoint}"]
    args += ["--dataset.mixture=configs/recap/mixture.yaml", f"--output_dir={tmp_path / 'run'}", "--steps=7"]
    config = parse_train_config(args)
    assert config.policy.pretrained_path == value_checkpoint
    # The returns stay in the unit that the network has learnt.
    assert config.policy.reward_normalizer == 100
    assert len(config.dataset.mixture) == 2


def test_every_flag_that_the_table_names_exists():
    train = read_flags(Path(training_config.__file__), "TrainConfig")
    advantage = read_flags(ROOT / "depi/recap/advantage_config.py", "AdvantageFlags")
    known = set(train.known({})) | set(advantage.known({}))
    lines = (CONFIGS / "README.md").read_text().splitlines()
    text = "\n".join(line for line in lines if line.startswith("|"))
    elsewhere = {"config_path", "config_file", "policy.path", "policy.type", "record.root", "record.repo_id"}
    tutorial = {"accelerate-config", "dataloader_batch_size"}
    named = set(re.findall(r"--([a-z][a-z_.-]*[a-z])", text))
    assert named - known - elsewhere - tutorial == set()
    fields = ("number_of_bins", "C_neg", "reward_normalizer", "N_steps_look_ahead", "advantage_threshold")
    more = ("weights", "action_freq", "resample_strategy", "normalization_mapping", "tokenizer_max_length")
    assert [field for field in fields + more if field not in text] == []
    files = re.findall(r"configs/recap/([a-z]+\.yaml)", text)
    assert {"sft.yaml", "value.yaml", "mixture.yaml", "advantage.yaml", "policy.yaml"} == set(files)


def test_a_mixture_on_the_command_line_is_that_of_the_file():
    text = json.dumps([{"repo_id": "a/b", "weight": 2, "episodes": [1]}])
    config = parse_flags(AdvantageFlags, [f"--dataset.mixture={text}"], "depi advantage")
    assert config.dataset.mixture[0].episodes == [1]
