"""The experiment of `decentralised.py`: how large, whose recordings, which arms, which episodes to play."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from depi.sim.community import Contributor
from depi.sim.setup import CONVENTIONS, Camera, Setup, random_setup

TASK = "touch"
# Actions per second, of all chunks in training and of the robot when a policy is played.
RATE = 10
# A drawn colour asks for more training than a small scale has.
COLOR = "red"
# Episodes to play have these seeds, far from those of the recordings.
FIRST_SEED = 5_000_000


@dataclass(frozen=True)
class Scale:
    """How large the experiment is, and what it is expected to take.

    Attributes:
        contributors: who record `episodes` each, at `fps_limit` or less.
        unseen: rigs that nobody recorded. trials: episodes played in every rig, seen or unseen.
        steps, batch_size: of every training, whatever it trains on.
        trainings: of every arm, with other seeds.
        alone: whether each contributor is also trained on alone, and one with as many episodes as all have.
        spoilt: whether one in five recorded episodes is bad, as `depi.sim.defects` has it.
        alike: whether the rigs differ little, see `_alike_rig`; otherwise as `random_setup` draws them.
        object_size: side of the cube in metres. slots: for cameras, as many as the rigs have at most.
        policy: settings of `depi_pi0` that are not `work.train_flags`'s.
        processes: recordings, trainings and environments at a time, one thread each.
        loaders: DataLoader workers of a training. device: of trainings and evaluations.
        render_s, step_s: seconds that a rendered picture and a training step are expected to take in one of
            the processes.
    """

    contributors: int
    episodes: int
    unseen: int
    trials: int
    steps: int
    batch_size: int
    processes: int
    trainings: int = 1
    alone: bool = False
    spoilt: bool = False
    fps_limit: int = 15
    alike: bool = False
    object_size: float = 0.04
    slots: int = 3
    policy: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    loaders: int = 0
    device: str = "cpu"
    render_s: float = 0.05
    step_s: float = 0.1


SCALES = {
    "smoke": Scale(contributors=4, episodes=2, unseen=2, trials=1, steps=20, batch_size=8, processes=2),
    "cpu": Scale(
        contributors=4,
        episodes=40,
        unseen=4,
        trials=12,
        steps=2000,
        batch_size=8,
        processes=2,
        fps_limit=RATE,
        alike=True,
        object_size=0.03,
        slots=2,
        policy={
            "n_action_steps": 4,
            "optimizer_lr": 1e-3,
            "scheduler_warmup_steps": 1000,
            "scheduler_decay_lr": 1e-4,
        },
    ),
    "evidence": Scale(
        contributors=8,
        episodes=25,
        unseen=24,
        trials=5,
        steps=2000,
        batch_size=16,
        processes=2,
        trainings=3,
        alone=True,
        spoilt=True,
        fps_limit=RATE,
        alike=True,
        object_size=0.03,
        slots=2,
        policy={
            "n_action_steps": 4,
            "optimizer_lr": 1e-3,
            "scheduler_warmup_steps": 200,
            "scheduler_decay_lr": 1e-5,
        },
        render_s=0.006,
        step_s=0.08,
    ),
    "full": Scale(
        contributors=16,
        episodes=20,
        unseen=16,
        trials=12,
        steps=3000,
        batch_size=64,
        processes=16,
        fps_limit=30,
        policy={
            "optimizer_lr": 3e-4,
            "dtype": "bfloat16",
            "image_resolution": "[112,112]",
            "vision_width": 256,
            "vision_depth": 6,
            "vision_mlp_dim": 1024,
            "width": 256,
            "mlp_dim": 1024,
            "expert_width": 256,
            "expert_mlp_dim": 1024,
            "depth": 6,
            "num_heads": 8,
        },
        loaders=2,
        device="cuda",
        step_s=0.08,
    ),
}


@dataclass(frozen=True)
class Arm:
    """One training: on all contributors with everything in place, or with one thing taken away.

    Attributes:
        joints: the units of training, as `--dataset.joint_convention` names them.
        cameras: `--dataset.cameras`; cameras are called camera1, camera2, ..., so `name` is the keys' order.
        own_statistics: normalised with the first contributor's mean and standard deviation.
        single: trained on the one contributor with the most cameras alone.
        only: trained on the contributor of this number alone.
        prolific: trained on one contributor alone who recorded as much as all others together.
        bad_episodes: trained also on the episodes that DePi finds bad.
        policy: settings of the policy, `type` among them, in place of `work.train_flags`'s and the scale's.
        of_steps: the share of the scale's steps that take as much processor time as the union's; on a GPU,
            where that was not measured, all trainings have as many steps.
        training: which of the arm's trainings, each with a seed of its own.
    """

    name: str
    meaning: str
    joints: str = "degrees"
    cameras: str = "shuffle"
    own_statistics: bool = False
    single: bool = False
    only: int | None = None
    prolific: bool = False
    bad_episodes: bool = False
    policy: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    of_steps: float = 1.0
    training: int = 0

    @property
    def label(self) -> str:
        """The name of one training: of folders."""
        return f"{self.name}.{self.training}" if self.training else self.name


ARMS = (
    Arm(
        "union",
        "all contributors; joints in degrees, statistics over all data, cameras shuffled over the slots",
    ),
    Arm(
        "raw_joints",
        "conventions not unified: numbers as recorded, of all together; played in each rig's own units",
        joints="native",
    ),
    Arm(
        "one_statistics",
        "all data normalised with the mean and standard deviation of the first contributor's",
        own_statistics=True,
    ),
    Arm("key_order", "cameras in the slots in the order of their keys, not shuffled", cameras="name"),
    Arm("single", "the one contributor with the most cameras, as many training steps", single=True),
)

VERDICTS = Arm("no_verdicts", "bad episodes are used as well", bad_episodes=True)
PROLIFIC = Arm("prolific", "one contributor alone, with as many episodes as all together", prolific=True)

# What else a user would train on the union, see evidence.md. LeRobot's own policies have the optimizers of
# their presets, and sizes for two cores: at the presets' a diffusion policy computes for seconds an action.
POLICIES = (
    Arm(
        "pi0_relative",
        "the union, with actions relative to the state",
        policy={"use_relative_actions": "true"},
    ),
    Arm("pi05", "the union, pi0.5 in place of pi0", policy={"type": "depi_pi05"}),
    Arm(
        "pi05_relative",
        "the union, pi0.5 with actions relative to the state",
        policy={"type": "depi_pi05", "use_relative_actions": "true"},
    ),
    Arm(
        "act",
        "the union, LeRobot's ACT for as much processor time",
        policy={
            "type": "act",
            "chunk_size": 16,
            "pretrained_backbone_weights": "null",
            "dim_model": 128,
            "n_heads": 4,
            "dim_feedforward": 256,
            "optimizer_lr": 1e-4,
            "optimizer_lr_backbone": 1e-4,
        },
        of_steps=0.24,  # 0.68 s of processor time a step, the union 0.163
    ),
    Arm(
        "diffusion",
        "the union, LeRobot's diffusion policy for as much processor time",
        policy={
            "type": "diffusion",
            "horizon": 16,
            "pretrained_backbone_weights": "null",
            "use_separate_rgb_encoder_per_camera": "false",
            "down_dims": "[64,128,256]",
            "noise_scheduler_type": "DDIM",
            "num_inference_steps": 10,
        },
        of_steps=0.117,  # 1.40 s
    ),
)

# What success is worth: touching happens to whoever makes the usual motion.
BLIND = Arm("blind", "for comparison: no policy, in every episode the mean of 50 expert motions")


def arms_of(scale: Scale) -> tuple[Arm, ...]:
    """The arms of a scale, each once: the union first, then what is taken away, then people alone."""
    union, *others = ARMS
    verdicts = [VERDICTS] if scale.spoilt else []
    if not scale.alone:
        return (union, *others[:-1], *verdicts, others[-1])
    alone = [
        Arm(f"alone{number}", f"contributor {number} alone, as many training steps", only=number)
        for number in range(scale.contributors)
    ]
    return (union, *others[:-1], *verdicts, *alone, PROLIFIC, *POLICIES)


@dataclass(frozen=True)
class Experiment:
    """What is done, and where it is kept.

    Attributes:
        root: folder of recordings, trainings and outcomes. seed: of rigs and trainings.
        arms: to train and play, the union first; each `scale.trainings` times.
        first_training: of each arm, if those before it were trained elsewhere.
    """

    root: Path
    scale: Scale
    seed: int = 0
    arms: tuple[Arm, ...] = ARMS
    first_training: int = 0

    @property
    def rounds(self) -> list[tuple[Arm, ...]]:
        """All trainings: each arm's first, then each arm's second, ..."""
        return [
            tuple(dataclasses.replace(arm, training=training) for arm in self.arms)
            for training in range(self.first_training, self.scale.trainings)
        ]

    @property
    def trainings(self) -> tuple[Arm, ...]:
        """Those of all rounds."""
        return tuple(arm for trainings in self.rounds for arm in trainings)

    @property
    def contributors(self) -> list[Contributor]:
        """Those who record: drawn from `random_setup`'s seen rigs, the four joint conventions in turn."""
        return [
            self._contributor(f"contributor{number:02}", number, self.scale.episodes, 10_000 * (number + 1))
            for number in range(self.scale.contributors)
        ]

    @property
    def prolific(self) -> Contributor:
        """Who has the first contributor's rig, and records as much as all of them together."""
        episodes = self.scale.contributors * self.scale.episodes
        return self._contributor("prolific", 0, episodes, 10_000 * (self.scale.contributors + 1))

    @property
    def recording(self) -> list[Contributor]:
        """All whose recordings are needed."""
        return [*self.contributors, *([self.prolific] if self.scale.alone else [])]

    def _contributor(self, user: str, number: int, episodes: int, seed: int) -> Contributor:
        rig = _rig(self.scale, self.seed, "seen", number)
        defect = "every_fifth_episode_bad" if self.scale.spoilt else None
        return Contributor(f"{user}/{TASK}", TASK, rig, episodes, seed=seed, defect=defect)

    def contributors_of(self, arm: Arm) -> list[Contributor]:
        """Whose recordings an arm is trained on; `single` takes the first of those with the most cameras."""
        people = self.contributors
        if arm.prolific:
            return [self.prolific]
        if arm.only is not None:
            return [people[arm.only]]
        return [max(people, key=lambda person: len(person.setup.cameras))] if arm.single else people

    @property
    def rigs(self) -> "list[Rig]":
        """In which every arm is played: those of the contributors, and some that nobody recorded in.

        Where there are more of the second, each of the first comes several times.
        """
        people, scale = self.contributors, self.scale
        seen = [Rig(person.repo_id, True, person.setup) for person in people]
        seen *= max(1, scale.unseen // scale.contributors)
        drawn = [_rig(scale, self.seed, "unseen", number) for number in range(scale.unseen)]
        return seen + [Rig(f"unseen{number:02}", False, setup) for number, setup in enumerate(drawn)]

    def rig_of(self, seed: int) -> "Rig":
        """The rig in which the episode of a seed is played: `depi eval` takes those of a file in turn."""
        return self.rigs[seed % len(self.rigs)]

    @property
    def episodes(self) -> int:
        """How many every training plays."""
        return self.scale.trials * len(self.rigs)

    def run_folder(self, arm: Arm) -> Path:
        """Where an arm's training is."""
        return self.root / "trained" / arm.label

    def trained(self, arm: Arm) -> bool:
        """Whether an arm's training has reached its last step."""
        last = self.run_folder(arm) / "checkpoints" / "last"
        return last.exists() and int(last.resolve().name) == self.steps_of(arm)

    def steps_of(self, arm: Arm) -> int:
        """How many steps a training has."""
        share = arm.of_steps if self.scale.device == "cpu" else 1
        return max(1, round(self.scale.steps * share))

    @property
    def rigs_file(self) -> Path:
        """What `--env.setups` of `depi eval` is given."""
        return self.root / "rigs.json"

    def played_folder(self, arm: Arm) -> Path:
        """Where an arm's evaluation is: the `--output_dir` of `depi eval`."""
        return self.root / "played" / arm.label


@dataclass(frozen=True)
class Rig:
    """Where episodes are played: named after its contributor, if somebody recorded in it (`seen`)."""

    name: str
    seen: bool
    setup: Setup


def _rig(scale: Scale, seed: int, split: str, number: int) -> Setup:
    """A drawn rig with what would only blur the comparison at this size made equal: the cube.

    Cameras get names that do not tell their view, in the drawn order, as many people call theirs.
    """
    draw = 1000 * seed + number
    drawn = _alike_rig(draw, split) if scale.alike else random_setup(draw, split)
    cameras = tuple(
        dataclasses.replace(camera, name=f"camera{place}") for place, camera in enumerate(drawn.cameras, 1)
    )
    return dataclasses.replace(
        drawn,
        cameras=cameras,
        convention=CONVENTIONS[number % len(CONVENTIONS)],
        fps=min(drawn.fps, scale.fps_limit),
        object_color=COLOR,
        object_size=scale.object_size,
    )


def _alike_rig(draw: int, split: str) -> Setup:
    """A rig that differs little from others: what a small policy can learn in a few minutes.

    Every rig has the standard table and robot, and a front and a wrist camera of 160x120 pixels. Which of
    them comes first differs, as do poses, the base and light: cameras and base are a quarter as far from
    their standard poses as `random_setup` puts them, so that those of the two splits still come from
    disjoint ranges, and light half as far from the standard light.
    """
    drawn, standard = random_setup(draw, split), Setup()
    poses = [random_setup(1000 * draw + place, split).cameras[0] for place in (1, 2)]
    cameras = [
        Camera(kind, kind, pose.azimuth / 4, pose.elevation / 4, (3 + pose.distance) / 4, pose.jitter)
        for kind, pose in zip(("front", "wrist"), poses, strict=True)
    ]
    x, y, yaw = drawn.base_offset
    red, green, blue = drawn.lighting
    return dataclasses.replace(
        drawn,
        cameras=tuple(reversed(cameras) if draw % 4 in (1, 2) else cameras),
        width=160,
        height=120,
        table=standard.table,
        robot_color=standard.robot_color,
        lighting=((1 + red) / 2, (1 + green) / 2, (1 + blue) / 2),
        base_offset=(x / 4, y / 4, yaw / 4),
    )
