"""What the tutorials of LeRobot, openpi and OpenTau type, and what becomes of it here: a table.

`pytest -m slow -s tests/test_tutorials.py` prints it. All commands are typed into a shell, beside an embedded
Hub on which the tutorials' datasets are what DePi's simulators record, at the smallest sizes that train.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from rich.console import Console
from rich.table import Table
from small_lerobot import SMALL

ROOT = Path(__file__).parents[1]
LAST = "checkpoints/last/pretrained_model"


def _flags(values: dict[str, object]) -> str:
    return " ".join(f"--{name}={value}" for name, value in values.items())


# What is added to a command so that it takes seconds.
STEPS = "--steps=2 --batch_size=2 --num_workers=0 --log_freq=1 --policy.device=cpu"
ROLLOUT = "--eval.n_episodes=1 --eval.batch_size=1 --env.episode_length=3"
# The sizes that TINY has, for a command that names the type and the weights.
BASE = "--policy.image_resolution=[96,96] --policy.patch_size=16 --policy.depth=2"
TINY = "--config_path=configs/train/tiny.yaml --policy.scheduler_warmup_steps=1"
ACT, DIFFUSION = (
    _flags({f"policy.{name}": value for name, value in SMALL[kind].items()}) for kind in ("act", "diffusion")
)
ARM = "--robot.type=sim_so101 --teleop.type=sim_so101_expert"


@dataclass(frozen=True)
class Command:
    """One line of the table.

    typed: as in the tutorial, with DePi's verb or script where it is one of DePi's
    small: what is added so that it takes seconds
    answer: what the error names; if empty, the command works
    leaves: a file that is there when it has worked; `Hub:NAME` for a model there
    """

    program: str
    typed: str
    small: str = ""
    answer: str = ""
    leaves: str = ""


PREPARED = (
    "depi sim record --task=pusht --repo_id=lerobot/pusht --episodes=1 --root=data/pusht --push=true",
    "depi sim record --task=aloha_transfer_cube --repo_id=lerobot/aloha_sim_transfer_cube_human --episodes=1 "
    "--root=data/aloha --push=true",
    "depi upload data/aloha lerobot/aloha_sim_insertion_human",
    "depi sim record --task=touch --repo_id=alice/touch --episodes=2 --width=64 --height=48 "
    "--root=data/touch --push=true",
    f"depi train {TINY} --dataset.repo_id=alice/touch {STEPS} --output_dir=outputs/base",
    "depi upload outputs/base lerobot/pi0_base",
)

LEROBOT = (
    Command(
        "LeRobot",
        "depi train --policy.type=diffusion --env.type=pusht --dataset.repo_id=lerobot/pusht",
        f"{DIFFUSION} {STEPS} {ROLLOUT} --output_dir=outputs/train/diffusion_pusht",
        leaves=f"outputs/train/diffusion_pusht/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=act --dataset.repo_id=lerobot/aloha_sim_insertion_human --env.type=aloha "
        "--output_dir=outputs/train/act_aloha_insertion",
        f"{ACT} {STEPS} {ROLLOUT}",
        leaves=f"outputs/train/act_aloha_insertion/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=act --dataset.repo_id=lerobot/aloha_sim_transfer_cube_human "
        "--env.type=aloha --env.task=AlohaTransferCube-v0 --log_freq=25 --save_freq=100 "
        "--output_dir=outputs/train/run_resumption",
        f"{ACT} {STEPS} {ROLLOUT}",
        leaves=f"outputs/train/run_resumption/{LAST}/train_config.json",
    ),
    Command(
        "LeRobot",
        f"depi train --config_path=outputs/train/run_resumption/{LAST}/ --resume=true",
        leaves="outputs/train/run_resumption/checkpoints/000002/training_state",
    ),
    Command(
        "LeRobot",
        f"depi train --config_path=outputs/train/run_resumption/{LAST}/ --resume=true --offline.steps=200000",
        answer="--offline.steps is not a flag here: use --steps",
    ),
    Command(
        "LeRobot",
        f"depi train --config_path=outputs/train/run_resumption/{LAST}/ --resume=true --steps=3",
        "--eval_freq=0",
        leaves="outputs/train/run_resumption/checkpoints/000003/training_state",
    ),
    Command(
        "LeRobot",
        f"depi train --config_path=outputs/train/run_resumption/{LAST}/ "
        "--output_dir=outputs/train/act_aloha_transfer_2 --policy.n_action_steps=4",
        "--eval_freq=0 --steps=1",
        leaves=f"outputs/train/act_aloha_transfer_2/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        f"depi train --policy.path=outputs/train/run_resumption/{LAST} "
        "--dataset.repo_id=lerobot/aloha_sim_insertion_human --output_dir=outputs/train/tuned",
        "--steps=1 --batch_size=2 --num_workers=0 --policy.optimizer_lr_backbone=1e-5",
        leaves=f"outputs/train/tuned/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        "depi train --dataset.repo_id=alice/touch --policy.type=act "
        "--output_dir=outputs/train/act_so101_test --job_name=act_so101_test "
        "--policy.repo_id=alice/my_policy",
        f"{ACT} {STEPS}",
        leaves="Hub:alice/my_policy",
    ),
    Command(
        "LeRobot",
        "depi train --config_path=alice/my_policy --resume=true",
        answer="--policy.path=alice/my_policy",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=diffusion --dataset.repo_id=lerobot/pusht --policy.use_amp=true",
        f"{DIFFUSION} {STEPS} --output_dir=outputs/train/amp",
        leaves=f"outputs/train/amp/{LAST}/config.json",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=pi0 --dataset.repo_id=lerobot/pusht --policy.use_amp=true",
        answer="--policy.dtype=bfloat16",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=depi_pi0 --policy.pretrained_path=lerobot/pi0_base "
        "--dataset.repo_id=alice/touch --policy.dtype=bfloat16 --output_dir=./outputs/pi0_training",
        f"{BASE} --policy.chunk_size=16 --policy.n_action_steps=8 {STEPS}",
        leaves=f"outputs/pi0_training/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        "depi train --policy.path=lerobot/pi0_base --dataset.repo_id=alice/touch --peft.method_type=LORA "
        "--peft.r=4",
        f"{STEPS} --output_dir=outputs/train/lora",
        leaves=f"outputs/train/lora/{LAST}/model.safetensors",
    ),
    *(
        Command(
            "LeRobot", f"depi train --dataset.repo_id=lerobot/pusht --policy.type=act {flag}", answer=says
        )
        for flag, says in {
            "--dataset.streaming=true": "downloaded to the local cache",
            "--dataset.repo_type=bucket": "no buckets",
            "--dataset.video_backend=pyav": "leave it out",
            "--dataset.image_transforms.enable=true": "--dataset.augment_color",
            "--use_policy_training_preset=false": "--policy.optimizer_lr",
            "--optimizer.lr=1e-4": "--policy.optimizer_lr",
            "--scheduler.num_warmup_steps=500": "--policy.scheduler_warmup_steps",
            "--save_checkpoint=true": "--save_freq=0",
            "--use_amp=true": "--policy.dtype=bfloat16",
            "--job.target=a10g-small": "configs/launch",
            "--env.type=xarm": "depi eval --env.type=PACKAGE:ID",
            "--wandb.project_name=x": "--wandb.project",
            "--control.policy.path=x": "lerobot-rollout --policy.path=CHECKPOINT",
            "--policy.type=tdmpc": "lerobot-train",
        }.items()
    ),
    Command("LeRobot", "depi train policy=act env=pusht", answer="written --policy.type=act"),
    Command("LeRobot", "depi train hydra.run.dir=outputs/x device=cpu env=aloha", answer="use --output_dir"),
    Command("LeRobot", "depi train device=cuda", answer="use --policy.device"),
    Command("LeRobot", "depi train training.offline_steps=100000", answer="use --steps"),
    Command(
        "LeRobot", "depi train --config-dir outputs/x --config-name config", answer="use --config_path=FILE"
    ),
    Command("LeRobot", "depi lerobot-train --policy.type=act", answer="it is `depi train` here"),
    Command("LeRobot", "depi lerobot/scripts/eval.py -p x", answer="it is `depi eval` here"),
    Command("LeRobot", "depi eval -p outputs/train/x eval.n_episodes=10", answer="use --policy.path"),
    Command(
        "LeRobot",
        "depi eval --policy.path=outputs/train/diffusion_pusht --env.type=pusht --eval.batch_size=10 "
        "--eval.n_episodes=10 --policy.use_amp=false --policy.device=cuda",
        answer="runs in the precision of its checkpoint",
    ),
    Command(
        "LeRobot",
        f"depi eval --policy.path=outputs/train/diffusion_pusht/{LAST} --env.type=pusht --policy.device=cpu",
        f"{ROLLOUT} --output_dir=outputs/eval/diffusion",
        leaves="outputs/eval/diffusion/eval.json",
    ),
    Command(
        "LeRobot",
        f"lerobot-eval --policy.path=outputs/train/diffusion_pusht/{LAST} --env.type=pusht "
        "--policy.use_amp=false --policy.device=cpu",
        f"{ROLLOUT} --eval.use_async_envs=false --output_dir=outputs/eval/theirs "
        "--env.observation_height=96 --env.observation_width=96",
        leaves="outputs/eval/theirs/eval_info.json",
    ),
    Command(
        "LeRobot",
        "lerobot-train --dataset.repo_id=alice/touch --policy.type=act --policy.repo_id=alice/theirs "
        "--output_dir=outputs/train/theirs",
        f"{ACT} {STEPS}",
        leaves="Hub:alice/theirs",
    ),
    Command(
        "LeRobot",
        "depi train --config_path=alice/theirs --policy.n_action_steps=4",
        "--output_dir=outputs/train/from_theirs",
        leaves=f"outputs/train/from_theirs/{LAST}/model.safetensors",
    ),
    Command(
        "LeRobot",
        "depi eval --policy.path=alice/theirs --env.type=so101 --env.task=touch",
        f"{ROLLOUT} --output_dir=outputs/eval/from_theirs",
        leaves="outputs/eval/from_theirs/eval.json",
    ),
    Command(
        "LeRobot",
        "depi train --policy.type=act --dataset.repo_id=alice/touch "
        "--output_dir=outputs/train/run_resumption",
        answer="--resume=true",
    ),
    Command("LeRobot", "depi train --policy.type=act", "--policy.device=cpu", answer="--dataset.repo_id"),
    Command(
        "LeRobot",
        "depi train --policy.type=act --dataset.repo_id=nobody/nothing",
        f"{ACT} --policy.device=cpu",
        answer="nobody/nothing",
    ),
    Command(
        "LeRobot",
        "depi visualize_dataset.py --repo-id lerobot/pusht --episode-index 0",
        answer="`depi view USER/NAME --episode=0`",
    ),
    Command(
        "LeRobot",
        "depi view --repo-id lerobot/pusht --episode-index 0",
        "--output=outputs/pusht.mp4",
        leaves="outputs/pusht.mp4",
    ),
    Command(
        "LeRobot",
        "depi view --repo-id lerobot/pusht --episode-index 0 --save 1 --output-dir outputs",
        answer="--output=FILE.mp4",
    ),
    Command(
        "LeRobot",
        "lerobot-dataset-viz --repo-id lerobot/pusht --episode-index 0 --save 1 --output-dir outputs/viz",
        leaves="outputs/viz/lerobot_pusht_episode_0.rrd",
    ),
    Command("LeRobot", "depi control_robot.py --control.type=record", answer="lerobot-record"),
    Command("LeRobot", "depi lerobot-record --robot.type=so101_follower", answer="lerobot-record"),
    Command("LeRobot", "depi push_dataset_to_hub.py --raw-dir x", answer="`depi upload FOLDER USER/NAME`"),
    Command("LeRobot", "depi lerobot-info", answer="`depi doctor`"),
    Command("LeRobot", "depi lerobot-imgtransform-viz --repo-id=x", answer="`depi samples RUN --step=1`"),
    Command("LeRobot", "lerobot-info"),
    Command("LeRobot", f"lerobot-teleoperate {ARM} --fps=10", "--teleop_time_s=2"),
    Command(
        "LeRobot",
        f"lerobot-record {ARM} --robot.new_episode_after_s=0.3 --dataset.repo_id=alice/record-test "
        '--dataset.num_episodes=2 --dataset.single_task="Touch the cube"',
        "--dataset.fps=10 --dataset.episode_time_s=2 --dataset.reset_time_s=0 "
        "--dataset.root=data/record-test --play_sounds=false",
        leaves="data/record-test/meta/info.json",
    ),
    Command(
        "LeRobot",
        "lerobot-replay --robot.type=sim_so101 --dataset.repo_id=alice/record-test --dataset.episode=0",
        "--dataset.root=data/record-test --play_sounds=false --dataset.fps=10",
    ),
    Command(
        "LeRobot",
        "lerobot-rollout --policy.path=outputs/base/checkpoints/last/pretrained_model "
        '--robot.type=sim_so101 --task="Touch the cube" --duration=2',
        "--inference.type=rtc --device=cpu --play_sounds=false --return_to_initial_position=false",
    ),
    Command("LeRobot", "hf auth whoami"),
    Command("LeRobot", "hf download lerobot/pusht --repo-type dataset"),
    Command("LeRobot", "hf upload alice/untagged data/record-test --repo-type dataset"),
    Command(
        "LeRobot",
        "depi train --dataset.repo_id=alice/untagged --policy.type=act",
        f"{ACT} {STEPS} --output_dir=outputs/train/untagged",
        leaves=f"outputs/train/untagged/{LAST}/model.safetensors",
    ),
)

OPENPI = (
    Command(
        "openpi",
        "depi scripts/compute_norm_stats.py --config-name pi05_libero",
        answer="nothing is to be computed before training",
    ),
    Command(
        "openpi",
        "depi train pi05_libero --exp-name=my_experiment --overwrite",
        answer="--policy.path=lerobot/pi0_base",
    ),
    *(
        Command("openpi", f"depi train --policy.path=lerobot/pi0_base {flag}", answer=says)
        for flag, says in {
            "--exp-name=my_experiment": "--job_name",
            "--overwrite": "choose another --output_dir",
            "--num-train-steps=100": "--steps",
            "--save-interval=100": "--save_freq",
            "--fsdp-devices=8": "--sharding=full",
            "--ema-decay=0.99": "--ema.decay",
            "--lr-schedule.peak-lr=1e-5": "--policy.optimizer_lr",
            "--data.repo_id=x/y": "--dataset.repo_id",
            "--pytorch_training_precision=float32": "--policy.dtype",
        }.items()
    ),
    Command(
        "openpi",
        "depi scripts/serve_policy.py policy:checkpoint --policy.dir=checkpoints/x",
        answer="lerobot-rollout",
    ),
    Command("openpi", "depi scripts/train_pytorch.py pi0_aloha_sim --exp_name x", answer="`depi train`"),
    Command(
        "openpi",
        "depi examples/convert_jax_model_to_pytorch.py --config_name pi0_droid",
        answer="depi train --policy.path=FOLDER",
    ),
    Command(
        "openpi",
        "torchrun --standalone --nnodes=1 --nproc_per_node=1 depi/train.py --policy.path=lerobot/pi0_base "
        "--dataset.repo_id=alice/touch",
        f"{STEPS} --output_dir=outputs/train/torchrun",
        leaves=f"outputs/train/torchrun/{LAST}/model.safetensors",
    ),
)

OPENTAU = (
    Command(
        "OpenTau",
        "depi opentau-train --accelerate-config=x.yaml --config_path=opentau.json",
        answer="it is `depi train` here",
    ),
    Command(
        "OpenTau",
        "depi train --config_path=opentau.json",
        answer="policy.advantage: use --advantage.mode=on",
    ),
    Command("OpenTau", "depi train --policy.advantage=on", answer="--advantage.mode=on"),
    Command("OpenTau", "depi train --dataloader_batch_size=8", answer="--gradient_accumulation_steps"),
    Command("OpenTau", "depi train --val_freq=100", answer="--dataset.eval_split"),
    Command("OpenTau", "depi train --last_checkpoint_only=true", answer="--keep_last=1"),
    Command(
        "OpenTau",
        f"depi eval --config_path=outputs/base/{LAST}/train_config.json",
        answer="--policy.path=FOLDER",
    ),
    Command("OpenTau", "depi opentau-dataset-viz --repo-id x/y", answer="`depi view USER/NAME --episode=0`"),
    Command("OpenTau", "depi opentau-export --config_path=x", answer="run checkpoints as they are"),
    Command(
        "OpenTau",
        "accelerate launch depi/train.py --policy.path=lerobot/pi0_base --dataset.repo_id=alice/touch "
        "--output_dir=outputs/train/tau0 --steps 4 --log_freq 1 --save_freq 2",
        "--batch_size=2 --num_workers=0 --policy.device=cpu",
        leaves="outputs/train/tau0/checkpoints/000004/training_state",
    ),
    Command(
        "OpenTau",
        "accelerate launch depi/train.py --resume=true --steps=5 "
        "--config_path=outputs/train/tau0/checkpoints/000004/pretrained_model/train_config.json",
        leaves="outputs/train/tau0/checkpoints/000005/training_state",
    ),
)

FIRST_DEPI = (
    Command(
        "first DePi",
        "depi lerobot/scripts/accelerate_train.py --num_datasets=1500",
        answer="accelerate launch depi/train.py",
    ),
    Command("first DePi", "depi filter_so100_data.py", answer="`depi collect-ids`"),
    Command("first DePi", "depi annotate_instruction_rewards.py", answer="`depi advantage`"),
    Command("first DePi", "depi train --reward_alignment.enabled=true", answer="--advantage.mode=on"),
)

COMMANDS = (*LEROBOT, *OPENPI, *OPENTAU, *FIRST_DEPI)


@dataclass(frozen=True)
class Workplace:
    """A folder with DePi's scripts and recipes, as a clone has them, and a Hub with the tutorials' data."""

    folder: Path

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of a shell to its end; what it prints is in `stdout`."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def has(self, leaves: str) -> bool:
        if leaves.startswith("Hub:"):
            return HfApi().repo_exists(leaves.removeprefix("Hub:"))
        return not leaves or (self.folder / leaves).exists()


@pytest.fixture(scope="module")
def workplace(module_hub, tmp_path_factory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("tutorials"))
    for name in ("depi", "configs"):
        (place.folder / name).symlink_to(ROOT / name)
    opentau = {
        "dataset_mixture": {"datasets": [{"repo_id": "x/y"}]},
        "policy": {"type": "pi05", "advantage": "on"},
    }
    (place.folder / "opentau.json").write_text(json.dumps(opentau))
    for command in PREPARED:
        done = place.type(command)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}"
    return place


def outcome(place: Workplace, command: Command) -> tuple[str, str]:
    """works, answered or fails; and the last lines of what was printed."""
    done = place.type(f"{command.typed} {command.small}")
    said = done.stdout.strip()
    if command.answer:
        error = said.rpartition("error: ")[2]
        right = done.returncode == 2 and "Traceback" not in said and command.answer in error
        return "answered with the right hint" if right else "FAILS", said
    works = done.returncode == 0 and place.has(command.leaves)
    return "works" if works else "FAILS", said


def test_no_command_of_the_table_is_meaningless():
    """Each once, and with a hint to look for or a trace to look at where it is one of DePi's."""
    typed = [command.typed for command in COMMANDS]
    assert len(typed) == len(set(typed)) >= 30
    for command in COMMANDS:
        if "depi" in command.typed.split()[0]:
            assert command.answer or command.leaves, command.typed


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_of_the_tutorials_works_or_is_answered(workplace, capsys):
    table = Table("program", "typed", "what happens", title="Commands of the tutorials")
    failures = []
    for command in COMMANDS:
        verdict, said = outcome(workplace, command)
        table.add_row(command.program, command.typed, verdict)
        if verdict == "FAILS":
            failures.append(f"{command.typed} {command.small}\n{said[-2500:]}")
    with capsys.disabled():
        Console(width=160).print(table)
    assert not failures, "\n\n".join([f"{len(failures)} of {len(COMMANDS)} fail", *failures])
