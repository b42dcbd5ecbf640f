"""`--policy.pretrained_revision` names the revision of `--policy.path`, for configuration and weights."""

from types import SimpleNamespace

from huggingface_hub import HfApi

from depi.policies import DepiPi0Config, load_policy, make_policy
from depi.training.command_line import parse_train_config


def test_an_older_revision_is_fine_tuned(hub, tmp_path):
    data = SimpleNamespace(state_dim=6, action_dim=6, camera_slots=("observation.images.0",))
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("someone/pi0", repo_type="model")
    commits, policies = [], []
    for steps in (3, 4):
        policy = make_policy(DepiPi0Config(device="cpu", depth=2, vision_depth=1, n_action_steps=steps), data)
        policy.save_pretrained(tmp_path / str(steps))
        commits.append(api.upload_folder(repo_id="someone/pi0", folder_path=tmp_path / str(steps)).oid)
        policies.append(policy)
    flags = [
        "--policy.path=someone/pi0",
        f"--policy.pretrained_revision={commits[0]}",
        "--dataset.repo_id=someone/data",
        f"--output_dir={tmp_path / 'run'}",
    ]
    config = parse_train_config(flags).policy
    assert config.n_action_steps == 3
    loaded = load_policy(config.pretrained_path, config=config)
    assert loaded.model.state_proj.weight.equal(policies[0].model.state_proj.weight)
    assert not loaded.model.state_proj.weight.equal(policies[1].model.state_proj.weight)
