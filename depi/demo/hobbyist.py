"""The second half of the demo: somebody with one robot records it, trains a policy for it, and watches it."""

from depi.demo.commands import Demo, depi, metrics, run, run_side_by_side, train_command
from depi.errors import UserError
from depi.files import read_json, write_json
from depi.sim.setup import Camera, Setup

MODEL_ID = "you/pi0-touch"
# Recorded side by side, one on each core; their scenes begin at different seeds.
SESSIONS = ("morning", "evening")
# Seeds of this demo's own, so that no scene of a recording is one of the rollouts.
SCENES, ROLLOUTS = 100_000, 500_000_000
# The camera at the wrist sees the cube all the time: a policy with it alone does as well as with another one
# beside it, and a step takes two thirds of the time. A square image fills the square that the policy sees.
ROBOT = Setup(
    cameras=(Camera("wrist", "wrist"),), width=96, height=96, fps=10, codec="h264", object_size=0.04
)
# Half the layers of depi_pi0's default, and patches that divide the recorded pixels; actions relative to the
# state are learnt sooner. benchmarks/README.md has the measurements.
SIZE = ("--policy.image_resolution=[96,96]", "--policy.patch_size=16", "--policy.depth=2")


def record(demo: Demo) -> str:
    """You record your own robot: a script stands for your hand."""
    rig = demo.root / "my_robot.json"
    write_json(rig, [ROBOT.to_dict()])
    commands, folders = [], {}
    for number, session in enumerate(SESSIONS):
        name, folder = f"you/touch_{session}", (demo.root / "recordings" / session).resolve()
        episodes = (demo.config.own_episodes + number) // len(SESSIONS)
        seed = SCENES * (len(SESSIONS) * demo.config.seed + number)
        chosen = ("--task=touch", f"--rig={rig}", f"--repo_id={name}", f"--root={folder}")
        commands.append(depi("sim", "record", *chosen, f"--episodes={episodes}", f"--seed={seed}"))
        folders[name] = folder
    for said in run_side_by_side(commands):
        demo.console.print(said.strip(), highlight=False)
    mixture = [{"repo_id": name, "root": str(folder)} for name, folder in folders.items()]
    write_json(demo.root / "my_recordings.json", mixture)
    return f"{demo.config.own_episodes} episodes of touching a cube, in {len(SESSIONS)} sessions"


def train(demo: Demo) -> str:
    """Train a policy for it on both cores."""
    # From scratch: what a hundred steps on the community's datasets teach made no difference. Without
    # workers: they would take from the two cores what the network needs.
    run(
        train_command(
            f"--dataset.mixture={demo.root / 'my_recordings.json'}",
            f"--output_dir={demo.own_run}",
            *("--policy.type=depi_pi0", "--policy.device=cpu", "--policy.push_to_hub=false"),
            *SIZE,
            *("--policy.chunk_size=16", "--policy.n_action_steps=8", "--policy.use_relative_actions=true"),
            *("--policy.optimizer_lr=1e-3", "--policy.scheduler_decay_lr=1e-5"),
            *(f"--steps={demo.config.steps}", "--batch_size=8", "--num_workers=0", "--log_freq=50"),
            *("--save_freq=0", f"--seed={demo.config.seed}", "--job_name=pi0-touch"),
            processes=2,
        )
    )
    losses = [line["loss"] for line in metrics(demo.own_run)]
    if not losses[-1] < losses[0]:
        raise UserError(f"the loss did not fall: {losses[0]:.3f} at first, {losses[-1]:.3f} at last")
    return f"{demo.config.steps} steps, loss {losses[0]:.3f} -> {losses[-1]:.3f}"


def publish(demo: Demo) -> str:
    """Publish it, with a card that names its data."""
    run(depi("upload", str(demo.own_run), MODEL_ID))
    return f"{MODEL_ID} is on the embedded Hub"


def evaluate(demo: Demo) -> str:
    """Fetch it, film how it touches cubes that it has never seen."""
    run(
        depi(
            "eval",
            f"--policy.path={MODEL_ID}",
            *("--policy.device=cpu", "--env.type=so101", "--env.task=touch"),
            f"--env.setups={demo.root / 'my_robot.json'}",
            *(f"--eval.n_episodes={demo.config.eval_episodes}", "--eval.n_videos=6"),
            f"--seed={ROLLOUTS + SCENES * demo.config.seed}",
            f"--output_dir={demo.evaluation}",
        )
    )
    result = read_json(demo.evaluation / "eval.json")
    low, high = result["success_interval_95"] or (0, 1)
    rate, count = result["success_rate"] or 0, len(result["episodes"])
    return f"success rate {rate:.0%} of {count} episodes (95% interval {low:.0%} to {high:.0%})"
