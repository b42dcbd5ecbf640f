"""The model card of a checkpoint: what it is, what it was trained on, how well it does, how to run it."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from lerobot.configs import PreTrainedConfig

from depi.catalog.text import in_markdown
from depi.datasets.judging.offsets import name_offsets
from depi.datasets.recording.cameras import camera_order, numbered_slots
from depi.errors import UserError
from depi.evaluation.as_trained import trained_on
from depi.evaluation.trained_slots import slots_by_camera
from depi.files import read_json
from depi.hub.names import is_dataset_id, parse_dataset_id
from depi.policies.families import family_of
from depi.training.config import TrainConfig

UNITS = {
    "degrees": "degrees with the zero mid-range, gripper 0 to 100: `--robot.use_degrees=true`.",
    "normalized": "-100 to 100 over each joint's range, gripper 0 to 100: `--robot.use_degrees=false`.",
    "native": "those of the recordings, see the table below.",
}
WEIGHTS_LINES = {
    "raw": "- Weights: as they were trained, after the last of these steps.",
    "ema": "- Weights: the exponential moving average of those that were trained.",
}
_SNAPSHOT = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})")


def model_card(
    config: TrainConfig,
    policy: PreTrainedConfig,
    report: dict[str, Any],
    step: int,
    metrics: dict[str, Any],
) -> str:
    """Return the README.md of a checkpoint.

    Args:
        config: the run's configuration.
        policy: the configuration of the policy that is saved.
        report: the run's data report, as `MultiLeRobotDataset.report` gives it.
        step: optimizer steps taken.
        metrics: see `last_metrics`.
    """
    datasets, family = report["datasets"], family_of(policy)
    base, revision = _base(policy)
    ids = [entry["repo_id"] for entry in datasets if is_dataset_id(entry["repo_id"])]
    data = ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        license="apache-2.0",
        tags=["robotics", "lerobot", family.name, "depi", "so101"],
        # A repository may hold many datasets: it is named once.
        datasets=list(dict.fromkeys(parse_dataset_id(name).repo_id for name in ids)),
        base_model=base if revision else None,
    )
    origin = f"fine-tuned from `{base}`" if base else "trained from scratch"
    if revision:
        origin += f" at revision {revision}"
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {config.job_name}",
        "",
        f"{family.about.format(type=policy.type)}, {origin} with DePi: {step} steps, "
        f"seed {config.seed}, {len(datasets)} datasets, {report['num_episodes']} episodes, "
        f"{report['num_frames']} frames.",
        "",
        *_interface_lines(config, policy),
        *(_run_lines(config, policy, report) if family.acts else _usage_lines(family.usage)),
        *_metrics_lines(metrics),
        *_data_lines(datasets),
    ]
    return str(ModelCard("\n".join(lines), ignore_metadata_errors=True))


def _base(policy: PreTrainedConfig) -> tuple[str | None, str | None]:
    """The checkpoint that training began with: a repository and its revision, or a folder and None."""
    if not policy.pretrained_path:
        return None, None
    path = Path(policy.pretrained_path).as_posix()
    if match := _SNAPSHOT.search(path):
        return f"{match[1]}/{match[2]}", match[3]
    return path, None


def _interface_lines(config: TrainConfig, policy: PreTrainedConfig) -> list[str]:
    cameras = ", ".join(f"`{key}`" for key in policy.image_features)
    averaged = config.ema.decay is not None and config.ema.export
    return [
        "## Inputs and outputs",
        "",
        f"- Cameras: {cameras}, {_sizes(policy)}.",
        f"- State: {policy.robot_state_feature.shape[0]} joints.",
        family_of(policy).output(policy),
        f"- Units: {UNITS[config.dataset.joint_convention]}",
        *_slot_lines(config, policy),
        *_prompt_lines(config),
        WEIGHTS_LINES["ema" if averaged else "raw"],
        "",
    ]


def _slot_lines(config: TrainConfig, policy: PreTrainedConfig) -> list[str]:
    if not numbered_slots(policy.image_features):  # of one dataset, with the keys as recorded
        return []
    return [f"- Camera slots: {camera_order(config.dataset.cameras).card}"]


def _sizes(policy: PreTrainedConfig) -> str:
    if family_of(policy).own:
        return f"letterboxed to {policy.image_resolution[0]} px; any of them may be absent"
    sizes = dict.fromkeys(
        f"{feature.shape[1]} x {feature.shape[2]}" for feature in policy.image_features.values()
    )
    return f"{' and '.join(sizes)} px (height x width)"


def _usage_lines(commands: tuple[str, ...]) -> list[str]:
    return ["## How to use it", "", "```bash", *commands, "```", ""]


def _prompt_lines(config: TrainConfig) -> list[str]:
    if config.advantage.mode == "off":
        return []
    return [
        "- Prompts: the task and a line `Advantage: positive`, which the saved processor adds; a task that "
        "ends with a line `Advantage: negative` keeps that."
    ]


def _run_lines(config: TrainConfig, policy: PreTrainedConfig, report: dict[str, Any]) -> list[str]:
    """How to run it on an SO-101, with LeRobot's command."""
    stock = policy.type in family_of(policy).stock and config.advantage.mode == "off"
    stock = stock and not config.letterboxed  # by a step of DePi's
    # LeRobot alone knows the cameras by their slots; the plugin finds them by the names of the recordings.
    recorded = [] if stock else _recorded_cameras(report, list(policy.image_features))
    names = recorded or [key.rpartition(".")[2] for key in policy.image_features]
    cameras = ", ".join(
        f'"{name}": {{type: opencv, index_or_path: {number}, width: 640, height: 480, fps: 30}}'
        for number, name in enumerate(names)
    )
    named = (
        "The cameras have the names of the recordings."
        if recorded
        else "Name the cameras by their slots, and leave out those that you have not got."
    )
    plugin = (
        [] if stock else ["pip install DEPI DEPI/plugins/lerobot_policy_depi  # in DEPI, a clone of DePi", ""]
    )
    # LeRobot's own 30 would play what was recorded at 10 Hz three times too fast.
    rate = trained_on(report, config.dataset.action_freq).usual_rate
    return [
        "## On an SO-101",
        "",
        "```bash",
        *plugin,
        "lerobot-rollout --strategy.type=base \\",
        "    --policy.path=THIS_REPOSITORY_OR_FOLDER \\",
        *(["    --inference.type=rtc \\"] if getattr(policy, "use_relative_actions", False) else []),
        "    --robot.type=so101_follower --robot.port=/dev/ttyACM0 --robot.id=my_arm \\",
        f"    --robot.cameras='{{{cameras}}}' \\",
        f'    {f"--fps={rate:g} " if rate else ""}--task="what the arm shall do" --duration=60',
        "```",
        "",
        f"With `--strategy.type=episodic` it records a dataset of what happens. {named}",
        "",
    ]


def _recorded_cameras(report: dict[str, Any], slots: list[str]) -> list[str]:
    """The names of the cameras in the slots; none where datasets differ, or one is no word for a shell."""
    names = [key.removeprefix("observation.images.") for key in slots_by_camera(report, slots)]
    return names if all(name.isidentifier() and name.isascii() for name in names) else []


def _metrics_lines(metrics: dict[str, Any]) -> list[str]:
    shown = {
        name: value
        for name, value in metrics.items()
        if name in ("step", "samples", "epochs", "loss", "grad_norm", "lr")
        or (name.startswith("eval/") and not name.startswith("eval/loss/"))  # of 1,500 datasets
    }
    if not shown:
        return []
    rows = [f"| {name} | {value:g} |" for name, value in shown.items() if isinstance(value, int | float)]
    return ["## Training metrics", "", "| last logged | |", "|---|---|", *rows, ""]


def _data_lines(datasets: list[dict[str, Any]]) -> list[str]:
    return [
        "## Training data",
        "",
        "| dataset | revision | licence | episodes | frames | fps | joints as recorded |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {in_markdown(entry['repo_id'], 200)} | {in_markdown(entry['revision'] or 'local')} "
            f"| {in_markdown(entry.get('licence') or '') or 'not stated'} | {entry['episodes']} "
            f"| {entry['frames']} | {entry['fps']:g} | {entry['convention']} |"
            for entry in datasets
        ),
        "",
        *_offset_lines(datasets),
    ]


def _offset_lines(datasets: list[dict[str, Any]]) -> list[str]:
    """What was taken out of the commands; nothing where nothing was, nor of reports of an earlier DePi."""
    taken_out = {entry["repo_id"]: entry.get("offsets_taken_out") for entry in datasets}
    lines = [
        f"- {in_markdown(repo_id, 200)}: {name_offsets(offsets)}"
        for repo_id, offsets in taken_out.items()
        if offsets
    ]
    if not lines:
        return []
    return [
        "Constant offsets between command and measured position were taken out of the commands "
        "(a gripper's as measured while it touches nothing, so that the force of a grip is left):",
        "",
        *lines,
        "",
    ]


def evaluation_lines(path: Path) -> list[str]:
    """Return the card's lines about the `eval.json` of `depi eval`.

    Raises:
        UserError: it is missing or none, or none of its episodes counts.
    """
    result = read_json(path)
    try:
        if result["success_rate"] is None:
            raise UserError(f"{path} has no success rate: all of its episodes ended in an error")
        low, high = result["success_interval_95"]
        rate, episodes, env = result["success_rate"], len(result["episodes"]), result["env"]
        return [
            "",
            "## Evaluation",
            "",
            f"Success rate {rate:.0%} (95% interval {low:.0%} to {high:.0%}) over {episodes} simulated "
            f"episodes of `{env['type']}`, task `{env['task']}`.",
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no result of `depi eval`: {error!r}") from None
