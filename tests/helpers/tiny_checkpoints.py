"""Tiny checkpoints that a PushT environment fits to: pi0, adapters to it, a value function, an ACT."""

from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import PeftConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from small_pi0 import SIZES

from depi.files import write_json
from depi.policies import DepiPi0Config, load_policy, make_policy, make_processors, save_checkpoint
from depi.policies.adapters import add_adapters
from depi.policies.configuration_value import ValueConfig

STATE, ACTION, IMAGE = "observation.state", "action", "observation.images.0"
TINY = {**SIZES, "depth": 2, "vision_depth": 1, "tokenizer_max_length": 16, "vocab_size": 1024}


class Shape:
    """What a dataset of PushT looks like to a policy."""

    state_dim = action_dim = 2
    camera_slots = (IMAGE,)


def _values(size: int, *shape: int) -> dict[str, torch.Tensor]:
    return {"mean": torch.full((size, *shape), 0.5), "std": torch.full((size, *shape), 0.3)}


STATS = {STATE: _values(2), ACTION: _values(2)}


def write_pi0(folder: Path) -> None:
    torch.manual_seed(0)
    policy = make_policy(DepiPi0Config(device="cpu", **TINY), Shape)
    save_checkpoint(folder, policy, *make_processors(policy.config, STATS))
    write_json(folder / "train_config.json", {"dataset": {"joint_convention": "native", "cameras": "name"}})
    write_json(folder / "data_report.json", {"datasets": [{"convention": "native"}]})


def write_adapter(folder: Path, base: Path) -> None:
    policy = load_policy(base)
    add_adapters(policy.model, PeftConfig(r=2))
    policy.config.pretrained_path = base
    folder.mkdir()
    save_checkpoint(folder, policy, *make_processors(policy.config, STATS), adapters=True)


def write_value(folder: Path) -> None:
    torch.manual_seed(0)
    config = ValueConfig(size="tiny", device="cpu", tokenizer_max_length=16)
    policy = make_policy(config, Shape)
    save_checkpoint(folder, policy, *make_processors(policy.config, {STATE: STATS[STATE]}))


ACT_SIZES = {
    **{"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "latent_dim": 4},
    **{"n_vae_encoder_layers": 1, "chunk_size": 4, "n_action_steps": 4},
}


def write_act(folder: Path) -> None:
    torch.manual_seed(0)
    config = ACTConfig(
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
            STATE: PolicyFeature(FeatureType.STATE, (2,)),
        },
        output_features={ACTION: PolicyFeature(FeatureType.ACTION, (2,))},
        pretrained_backbone_weights=None,
        device="cpu",
        **ACT_SIZES,
    )
    get_policy_class("act")(config).save_pretrained(folder)
    stats = {**STATS, "observation.image": _values(3, 1, 1)}
    for pipeline in make_pre_post_processors(config, dataset_stats=stats):
        pipeline.save_pretrained(folder)
