"""The recipes in configs/train are what the trainer and `depi eval` understand."""

import re
import shlex
from pathlib import Path

import pytest
from lerobot.policies.pi0.configuration_pi0 import PI0Config
from lerobot.policies.pi05.configuration_pi05 import PI05Config
from recordings import Recording, write_v3
from small_pi0 import SIZES

from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.hub.client.api import upload_folder
from depi.policies import make_policy, make_processors, save_checkpoint
from depi.policies.choices import choices_of
from depi.policies.families import family
from depi.training.command_line import parse_train_config

RECIPES = Path(__file__).parents[2] / "configs" / "train"


@pytest.fixture(scope="module")
def bases(module_hub, tmp_path_factory) -> None:
    """Small checkpoints under the names of the published ones."""
    folder = tmp_path_factory.mktemp("base")
    dataset = MultiLeRobotDataset([DatasetSource("a/b", root=write_v3(folder / "b", Recording()))])
    for name in ("pi0", "pi05"):
        config = family(name).configs[f"depi_{name}"](device="cpu", **SIZES)
        policy = make_policy(config, dataset)
        save_checkpoint(folder / name, policy, *make_processors(policy.config, dataset.stats))
        upload_folder(folder / name, f"lerobot/{name}_base", repo_type="model", commit_message="Upload")


@pytest.mark.parametrize(
    ("name", "repo_id", "env", "chunk"),
    [
        ("pi0_pusht", "lerobot/pusht", ("pusht", "PushT-v0"), 16),
        ("pi0_aloha", "lerobot/aloha_sim_transfer_cube_human", ("aloha", "AlohaTransferCube-v0"), 50),
        ("pi0_so101_sim", "sim/so101", ("so101", "pick_lift"), 30),
    ],
)
def test_a_recipe_says_all_that_a_run_needs(bases, tmp_path, name, repo_id, env, chunk):
    args = [f"--config_path={RECIPES / name}.yaml", f"--output_dir={tmp_path / 'run'}"]
    config = parse_train_config(args)
    assert config.dataset.repo_id == repo_id
    assert (config.env.type, config.env.task) == env
    assert config.policy.pretrained_path is not None
    assert (config.policy.chunk_size, config.policy.dtype) == (chunk, "bfloat16")
    assert config.policy.n_action_steps * 2 == chunk
    assert config.policy.scheduler_decay_steps == config.steps
    offline = parse_train_config([*args, f"--dataset.root={tmp_path / 'recorded'}"])
    assert (offline.dataset.repo_id, offline.dataset.root) == (repo_id, tmp_path / "recorded")


@pytest.mark.parametrize(
    ("stock", "batch_size", "steps"), [(PI0Config, 32, 30_000), (PI05Config, 64, 20_000)], ids=["pi0", "pi05"]
)
def test_the_recipe_of_the_base_is_openpis(bases, tmp_path, stock, batch_size, steps):
    stock = stock(device="cpu")
    args = [f"--config_path={RECIPES / stock.type}_base.yaml", f"--output_dir={tmp_path / 'run'}"]
    config = parse_train_config([*args, "--dataset.repo_id=a/b"])
    policy, data = config.policy, config.dataset
    assert (policy.use_relative_actions, policy.relative_exclude_joints) == (True, ["gripper"])
    assert not choices_of(policy).do_mask_loss_for_padding
    assert policy.type == f"depi_{stock.type}"
    assert policy.optimizer_weight_decay == 1e-10
    assert (config.ema.decay, config.ema.export) == (0.99, True)
    assert (data.augment_color, data.augment_hue, data.augment_geometry) == (1, 0, 1)
    assert (policy.chunk_size, config.steps, data.cameras) == (50, steps, "front,wrist")
    assert config.batch_size * config.gradient_accumulation_steps == batch_size
    for name in ("optimizer_lr", "optimizer_betas", "optimizer_eps", "optimizer_grad_clip_norm"):
        assert getattr(policy, name) == getattr(stock, name)
    for name in ("scheduler_warmup_steps", "scheduler_decay_steps", "scheduler_decay_lr"):
        assert getattr(policy, name) == getattr(stock, name)
    lora = parse_train_config([*args, "--dataset.repo_id=a/b", "--peft.r=16", "--ema.decay=null"])
    assert lora.peft.r == 16


def test_the_documented_small_run_is_understood():
    text = (RECIPES / "README.md").read_text("utf-8").partition("## Small")[2]
    (command,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    words = shlex.split(command.replace("\\\n", " "))
    args = words[words.index("depi/train.py") + 1 :]
    args[0] = args[0].replace("configs/train", str(RECIPES))
    config = parse_train_config(args)
    assert (config.policy.type, config.policy.device, config.env.type) == ("depi_pi0", "cpu", "pusht")
    assert config.steps == config.policy.scheduler_decay_steps
