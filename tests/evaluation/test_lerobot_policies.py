"""LeRobot's other policies: act and diffusion, tiny, in gym-pusht."""

import importlib.util
import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.tdmpc.configuration_tdmpc import TDMPCConfig

from depi.errors import UserError
from depi.evaluation.actors import Observation, camera_keys
from depi.evaluation.compare import main as compare
from depi.evaluation.config import EnvironmentConfig, EpisodesConfig, EvaluateConfig, PolicyConfig
from depi.evaluation.environments import find_table, resolve
from depi.evaluation.evaluate import evaluate
from depi.evaluation.lerobot_policies import LeRobotActor, load_lerobot_policy
from depi.evaluation.messages import Seen
from depi.evaluation.pi0_actor import generator

FEATURES = {
    "input_features": {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
    "device": "cpu",
    "pretrained_backbone_weights": None,
}
CONFIGS = {
    "act": lambda: ACTConfig(
        **FEATURES, chunk_size=10, n_action_steps=10, dim_model=32, n_heads=2, dim_feedforward=32,
        n_encoder_layers=1, n_vae_encoder_layers=1, latent_dim=8,
    ),
    "ensembling": lambda: ACTConfig(
        **FEATURES, chunk_size=10, n_action_steps=1, temporal_ensemble_coeff=0.01, dim_model=32, n_heads=2,
        dim_feedforward=32, n_encoder_layers=1, n_vae_encoder_layers=1, latent_dim=8,
    ),
    "diffusion": lambda: DiffusionConfig(
        **FEATURES, horizon=8, n_action_steps=4, down_dims=(16, 32), num_inference_steps=2,
        crop_shape=(84, 84), diffusion_step_embed_dim=16, spatial_softmax_num_keypoints=4,
    ),
    "diffusion_of_one_observation": lambda: DiffusionConfig(
        **FEATURES, n_obs_steps=1, horizon=8, n_action_steps=4, down_dims=(16, 32), num_inference_steps=2,
        crop_shape=(84, 84), diffusion_step_embed_dim=16, spatial_softmax_num_keypoints=4,
    ),
    "tdmpc": lambda: TDMPCConfig(
        **{name: value for name, value in FEATURES.items() if name != "pretrained_backbone_weights"},
        latent_dim=8, mlp_dim=16, state_encoder_hidden_dim=16, image_encoder_hidden_dim=8, cem_iterations=1,
        n_gaussian_samples=8, n_pi_samples=2, n_elites=2,
    ),
}  # fmt: skip
if importlib.util.find_spec("diffusers") is None:
    del CONFIGS["diffusion"], CONFIGS["diffusion_of_one_observation"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot")
    values = {"mean": [256.0, 256.0], "std": [80.0, 80.0], "min": [0.0, 0.0], "max": [512.0, 512.0]}
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    image = {name: torch.full((3, 1, 1), value) for name, value in (("mean", 0.5), ("std", 0.3))}
    image |= {name: torch.full((3, 1, 1), value) for name, value in (("min", 0.0), ("max", 1.0))}
    stats = {"observation.state": tensors, "action": tensors, "observation.image": image}
    for name, make in CONFIGS.items():
        torch.manual_seed(0)
        config = make()
        policy = get_policy_class(config.type)(config)
        policy.save_pretrained(folder / name)
        for pipeline in make_pre_post_processors(config, dataset_stats=stats):
            pipeline.save_pretrained(folder / name)
    return folder


def choices(checkpoint, folder, batch_size, **more) -> EvaluateConfig:
    size = {"observation_height": 96, "observation_width": 96, "episode_length": 13}
    return EvaluateConfig(
        policy=PolicyConfig(path=str(checkpoint), device="cpu"),
        env=EnvironmentConfig(type="pusht", **{**size, **more}),
        eval=EpisodesConfig(n_episodes=3, n_videos=0, batch_size=batch_size),
        output_dir=folder,
    )


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("act", "diffusion") else pytest.param(name, marks=pytest.mark.slow)
        for name in CONFIGS
    ],
)
def test_results_do_not_depend_on_how_many_are_played_at_once(checkpoints, tmp_path, name):
    results = [evaluate(choices(checkpoints / name, tmp_path / str(size), size)) for size in (1, 3)]
    first, second = (
        [(row["success"], row["length"], row["reward"], row["error"]) for row in result["episodes"]]
        for result in results
    )
    assert first == second
    assert {length for _, length, _, _ in first} == {13}
    assert len({reward for _, _, reward, _ in first}) == 3
    assert results[0]["policy_type"] in name or name == "ensembling"
    assert results[0]["errors"] == {}


@pytest.mark.parametrize(
    ("name", "amp"), [*((name, False) for name in CONFIGS), ("act", True), ("diffusion", True)]
)
def test_interleaved_episodes_get_the_actions_that_lerobot_gives(checkpoints, name, amp):
    if name not in CONFIGS:
        pytest.skip("diffusers is missing")
    kind = CONFIGS[name]().type
    table = find_table(resolve(EnvironmentConfig(type="pusht")))
    draw = np.random.default_rng(0)
    shown = {
        place: [
            Seen({"observation.image": draw.integers(0, 256, (96, 96, 3), np.uint8)},
                 draw.uniform(0, 512, 2).astype(np.float32), "Push.")
            for _ in range(6)
        ]
        for place in (0, 1)
    }  # fmt: skip
    policy, (before, after) = load_lerobot_policy(checkpoints / name, kind, "cpu")
    policy.config.use_amp = amp
    actor = LeRobotActor(policy, (before, after))
    mixed = {0: [], 1: []}
    for step in range(6):
        both = [Observation(place, place, step, shown[place][step], table) for place in (0, 1)]
        for place, actions in enumerate(actor.act(both)):
            mixed[place].append(actions)
    for place in (0, 1):
        policy.reset()
        for step in range(6):
            seen = shown[place][step]
            image = torch.from_numpy(seen.images["observation.image"]).permute(2, 0, 1)[None].float() / 255
            batch = {"observation.image": image, "observation.state": torch.from_numpy(seen.state)[None]}
            seed = generator(Observation(place, place, step, seen, table)).initial_seed()
            torch.manual_seed(seed)
            if name == "act":
                policy.reset()  # one chunk for each observation
            with torch.inference_mode(), torch.autocast("cpu", enabled=amp):
                action = after(policy.select_action(before({**batch, "task": ["Push."]})).float())
            np.testing.assert_allclose(mixed[place][step][0], action[0].numpy(), rtol=1e-6)
    if amp:
        policy.config.use_amp = False
        exact = actor.act([Observation(1, 1, 0, shown[1][0], table)])[0]
        difference = np.abs(exact[0] - mixed[1][0][0]).max()
        assert 0 < difference < 0.05 * np.abs(exact[0]).max()


def test_two_policies_are_compared(checkpoints, tmp_path, capsys):
    for name in ("act", "ensembling"):
        config = choices(checkpoints / name, tmp_path / name, 2)
        config.eval.n_episodes = config.eval.n_videos = 2
        evaluate(config)
    capsys.readouterr()
    pair = [str(tmp_path / "act"), str(tmp_path / "ensembling"), f"--output_dir={tmp_path / 'pairs'}"]
    assert compare([*pair, "--json=true"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["paired"] == len(result["videos"]) == 2


def test_what_does_not_fit_is_named(checkpoints, tmp_path):
    with pytest.raises(UserError, match=r"384x384 pixels, the policy's 96x96"):
        evaluate(
            choices(checkpoints / "act", tmp_path / "a", 1, observation_height=384, observation_width=384)
        )
    unsaid = choices(checkpoints / "act", tmp_path / "b", 1, observation_height=None, observation_width=None)
    assert evaluate(unsaid)["env"]["observation_height"] == 96, "the size that the policy takes"
    with pytest.raises(
        UserError, match=r"observation.image is none of the environment's \(observation.images"
    ):
        camera_keys(["observation.image"], ["observation.images.top"], rename={})


def test_guidance_is_refused_where_there_is_no_indicator(checkpoints, tmp_path):
    config = choices(checkpoints / "act", tmp_path / "a", 1)
    config.policy.guidance = 2.0
    with pytest.raises(UserError, match="a policy of type act has no advantage indicator"):
        evaluate(config)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "step",
    [
        {"class": "os.system"},
        {"registry_name": "no_such_step"},
        {"registry_name": "normalizer_processor", "class": "os.system"},
        {"registry_name": "normalizer_processor", "state_file": "../../etc/passwd"},
        {"registry_name": "normalizer_processor", "state_file": "9" * 400},
        {"registry_name": "normalizer_processor", "state_file": "\ud800" * 9},
    ],
)
def test_a_pipeline_of_strangers_names_nothing_but_lerobots_steps(checkpoints, tmp_path, step):
    folder = tmp_path / "act"
    shutil.copytree(checkpoints / "act", folder)
    path = folder / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    content["steps"].append(step)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"not part of act|plain file name|no such file"):
        load_lerobot_policy(folder, "act", "cpu")


def test_an_unknown_type_is_named(checkpoints):
    with pytest.raises(UserError, match="telepathy"):
        load_lerobot_policy(checkpoints / "act", "telepathy", "cpu")
