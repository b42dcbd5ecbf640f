"""The model card of a checkpoint: what it is, what it was trained on, how to run it."""

from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from lerobot.configs import PreTrainedConfig

from depi.training.config import TrainConfig

UNITS = {
    "degrees": "degrees with the zero mid-range, gripper 0 to 100: `--robot.use_degrees=true`.",
    "normalized": "-100 to 100 over each joint's range, gripper 0 to 100: `--robot.use_degrees=false`.",
    "native": "those of the recordings, see the table below.",
}
SLOTS = {
    "name": "wrist, front, top, side, then by name, without gaps.",
    "view": "0 wrist, 1 front, 2 top, 3 side.",
    "shuffle": "any order; they were shuffled sample by sample.",
}


def model_card(config: TrainConfig, policy: PreTrainedConfig, report: dict[str, Any], step: int) -> str:
    """Return the README.md of a checkpoint.

    Args:
        config: the run's configuration.
        policy: the configuration of the policy that is saved.
        report: the run's data report, as `MultiLeRobotDataset.report` gives it.
        step: optimizer steps taken.
    """
    datasets = report["datasets"]
    data = ModelCardData(
        library_name="lerobot",
        pipeline_tag="robotics",
        license="apache-2.0",
        tags=["robotics", "lerobot", "pi0", "depi", "so101"],
        datasets=[entry["repo_id"] for entry in datasets],
    )
    base = f"fine-tuned from `{policy.pretrained_path}`" if policy.pretrained_path else "trained from scratch"
    cameras = ", ".join(f"`{key}`" for key in policy.image_features)
    names = policy.action_feature_names or []
    lines = [
        "---",
        data.to_yaml(),
        "---",
        "",
        f"# {config.job_name}",
        "",
        f"A `{policy.type}` vision-language-action policy, {base} with DePi: {step} steps, "
        f"seed {config.seed}, {len(datasets)} datasets, {report['num_episodes']} episodes, "
        f"{report['num_frames']} frames.",
        "",
        "## Inputs and outputs",
        "",
        f"- Cameras: {cameras}, letterboxed to {policy.image_resolution[0]} px; any of them may be absent.",
        f"- State: {policy.robot_state_feature.shape[0]} joints.",
        f"- Action: chunks of {policy.chunk_size} steps of {len(names)} joints: {', '.join(names)}.",
        f"- Units: {UNITS[config.dataset.joint_convention]}",
        f"- Camera slots: {SLOTS[config.dataset.cameras]}",
        "",
        "## Training data",
        "",
        "| dataset | revision | episodes | frames | fps | joints as recorded |",
        "|---|---|---|---|---|---|",
        *(
            f"| {entry['repo_id']} | {entry['revision'] or 'local'} | {entry['episodes']} "
            f"| {entry['frames']} | {entry['fps']:g} | {entry['convention']} |"
            for entry in datasets
        ),
        "",
    ]
    card = ModelCard("\n".join(lines), ignore_metadata_errors=True)
    return str(card)
