"""LeRobot's commands with a stranger's checkpoint of DePi's types: the plugin lets none of its code run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import tiny_checkpoints
from huggingface_hub import HfApi
from strangers import STRANGER, TO_ACTIONS, write_repository

REPOSITORY = Path(__file__).parents[2]


def test_lerobot_builds_no_step_that_is_not_ours(module_hub, site, tmp_path):
    checkpoint = tmp_path / "checkpoint"
    tiny_checkpoints.write_pi0(checkpoint)
    path = checkpoint / "policy_preprocessor.json"
    content = json.loads(path.read_text())
    content["steps"].append(TO_ACTIONS)
    path.write_text(json.dumps(content))
    api = HfApi()
    for repo_id, folder in ((STRANGER, write_repository(tmp_path / "code")), ("stranger/policy", checkpoint)):
        api.create_repo(repo_id)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("lerobot-eval"), "--policy.path=stranger/policy"),
            *("--policy.device=cpu", "--env.type=pusht", "--eval.n_episodes=1", "--eval.batch_size=1"),
            *("--eval.use_async_envs=false", f"--output_dir={tmp_path / 'out'}"),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(site), str(REPOSITORY), os.environ.get("PYTHONPATH")))
            ),
            "MARK": str(tmp_path / "mark"),
            "HF_MODULES_CACHE": str(tmp_path / "modules"),
        },
        input="y\n" * 20,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode != 0
    assert "a step that is not part of depi_pi0: action_tokenizer_processor" in run.stderr
    assert not (tmp_path / "mark").exists()
