"""LeRobot's own `push_to_hub` of a dataset and of a policy, to the Hub that HF_ENDPOINT names."""

import torch
from huggingface_hub import HfApi, ModelCard
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from recordings import Recording, write_v3
from small_lerobot import SMALL

import depi.hub.client.api  # noqa: F401  as the plugin for LeRobot's commands imports it


def test_lerobot_pushes_a_dataset_and_loads_it_again(hub, tmp_path):
    write_v3(tmp_path / "recorded", Recording(lengths=(4, 3)))
    LeRobotDataset("alice/recorded", root=tmp_path / "recorded").push_to_hub(tags=["so101"])
    again = LeRobotDataset("alice/recorded", root=tmp_path / "again")
    assert (again.num_episodes, again.num_frames) == (2, 7)
    assert "v3.0" in {tag.name for tag in HfApi().list_repo_refs("alice/recorded", repo_type="dataset").tags}
    card = HfApi().dataset_info("alice/recorded").card_data
    assert {"LeRobot", "so101"} <= set(card["tags"])


def test_lerobot_pushes_a_policy_and_loads_it_again(hub):
    sizes = {name: value for name, value in SMALL["act"].items() if value != "null"}
    config = ACTConfig(device="cpu", pretrained_backbone_weights=None, repo_id="alice/act", **sizes)
    config.input_features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
        "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    policy = ACTPolicy(config)
    policy.push_model_to_hub(TrainPipelineConfig(dataset=DatasetConfig("alice/recorded"), policy=config))
    again = ACTPolicy.from_pretrained("alice/act")
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in again.state_dict().items())
    assert ModelCard.load("alice/act").data.library_name == "lerobot"
