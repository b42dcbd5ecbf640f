"""What `depi eval` is configured with: policy, environment, episodes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DRAWN_SETUPS = ("seen", "unseen")


@dataclass
class PolicyConfig:
    """The checkpoint."""

    # A local folder or a Hub repo id; `expert` is the scripted expert of so101.
    path: str | None = None
    revision: str | None = None
    device: str | None = None
    # Actions of a chunk that are played out before the next chunk is computed; null: as saved.
    n_action_steps: int | None = None
    # Strength of guidance by the advantage indicator, 0 to 100; null: as saved, by default 1, the policy as
    # trained. Other values take up to twice the time.
    guidance: float | None = None
    # Chunks to sample, of which the one nearest to their mean is played; null: as saved, by default 1.
    num_samples: int | None = None
    # How DePi's own policies compute on a CUDA device; null: as saved. The attention kernels that may be
    # used, chunks replayed as one CUDA graph, and compiled, of which the first then takes a minute or two.
    attention_backends: str | None = None
    cuda_graphs: bool | None = None
    compile_chunks: bool | None = None


@dataclass
class EnvironmentConfig:
    """The environment."""

    # so101, pusht, aloha, libero and the others of LeRobot, or a gym id such as my_package:MyEnv-v0; empty:
    # that of the policy's training, else so101.
    type: str = ""
    # null: touch, PushT-v0, AlohaTransferCube-v0, or LeRobot's own.
    task: str | None = None
    # Control steps per second, where they can be chosen; null: as in training, else 10 for so101 and the
    # environment's own.
    fps: int | None = None
    # Of so101 with the standard setup: wrist, front, side, top; null: as in training, else front,wrist.
    cameras: list[str] | None = None
    # Of so101: standard; a rig drawn for each episode, seen (as contributors record) or unseen; or a JSON
    # file with a list of rigs (depi.sim.setup.Setup), of which an episode gets the one numbered seed % count.
    setups: str = "standard"
    # The instruction; null: the environment's own.
    instruction: str | None = None
    # Steps after which an episode ends; null: the environment's own.
    episode_length: int | None = None
    # Pixels of the cameras; null: as in training, else the environment's own.
    observation_height: int | None = None
    observation_width: int | None = None
    # More arguments of a gym environment, or fields of LeRobot's environment class.
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class EpisodesConfig:
    """The numbers of episodes, of videos and of environments at a time."""

    n_episodes: int = 50
    n_videos: int = 10
    # Environments at a time, each in a process of its own; null: one for each core, at most 16.
    batch_size: int | None = None
    # Observations in one call of the policy, filled up where fewer are waiting, so that results are the same
    # whatever the batch size; null: 8 on a GPU, 1 on a CPU.
    policy_batch: int | None = None
    # Seconds after which an environment that does not answer is restarted.
    timeout: float = 60.0


@dataclass
class RecordConfig:
    """The rollouts as a LeRobot dataset, successes and failures, with `next.success` for every frame."""

    # Its folder, which must not exist yet, and its name.
    root: Path | None = None
    repo_id: str = "rollouts/policy"


@dataclass
class EvaluateConfig:
    """Roll a policy out: depi eval --policy.path=FOLDER_OR_REPO --env.type=so101 --env.task=touch.

    The same command again, with its --output_dir, continues where it was stopped.
    """

    policy: PolicyConfig = field(default_factory=PolicyConfig)
    env: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    eval: EpisodesConfig = field(default_factory=EpisodesConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    # null: outputs/eval/DATE/TIME_POLICY.
    output_dir: Path | None = None
    # Seed of the first episode; each next episode has the next number.
    seed: int = 1000
    # USER/NAME@COMMIT: run the code that LeRobot loads for this checkpoint. Without it, only policy types and
    # repositories without code of their own are loaded.
    trust_checkpoint: str | None = None
    # The policy's names for the environment's cameras: {"observation.image": "observation.images.0"}
    rename_map: dict[str, str] = field(default_factory=dict)
    # Print the result as JSON instead of a table.
    json: bool = False

    @property
    def folder(self) -> Path:
        """Where this evaluation writes."""
        assert self.output_dir is not None
        return self.output_dir
