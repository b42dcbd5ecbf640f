"""RECAP's conditioning: which samples are told in their prompt that what they show is good, or bad."""

from collections.abc import Mapping
from typing import Any

from depi.datasets.samples.advantages import FrameAdvantages
from depi.datasets.samples.order import position_generator
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.policies.indicator import with_indicator
from depi.training.config import AdvantageConfig

_DROPOUT = 4  # beside the purposes of `depi.datasets.samples.stream`; see `position_generator`


class Conditioning:
    """The advantage indicator of each sample.

    Whether one is left out is drawn by a generator of its own, keyed by seed and position in the stream: it
    depends neither on the number of processes nor on where a run was resumed, and changes nothing else.

    Args:
        config: mode `on` or `use`.
        advantages: of the frames, for mode `use`. A frame whose advantage is not known, because it could not
            be read when advantages were computed, is drawn as often as others and told nothing; it never
            counts as negative.
        seed: of the run.
    """

    def __init__(self, config: AdvantageConfig, advantages: FrameAdvantages | None, seed: int) -> None:
        self.mode, self.dropout = config.mode, config.dropout
        self.advantages, self.seed = advantages, seed

    def indicator(self, index: int, position: int) -> bool | None:
        """Whether a sample is told that it is positive, or negative; None where it is told nothing.

        Args:
            index: of the frame, in the training set.
            position: in the stream.
        """
        if position_generator(self.seed, position, _DROPOUT).random() < self.dropout:
            return None
        return True if self.advantages is None else self.advantages.indicator(index)

    def __call__(self, position: int, sample: Mapping[str, Any]) -> dict[str, Any]:
        """The `task` of a sample with its indicator; an indicator that the recorded text has is left out."""
        positive = self.indicator(int(sample["index"]), position)
        return {"task": with_indicator(sample["task"], positive)}

    def report(self) -> dict[str, Any]:
        """What samples are told, for `data_report.json`."""
        frames = {} if self.advantages is None else self.advantages.report()
        return {"mode": self.mode, "dropout": self.dropout, **frames}

    def check_same(self, before: Mapping[str, Any] | None) -> None:
        """Raise a UserError where a resumed run would go on with other advantages than it began with.

        Args:
            before: what `report` said when the run began.
        """
        began, now = (before or {}).get("run"), self.report().get("run")
        if None not in (began, now) and began != now:
            assert self.advantages is not None
            raise UserError(
                f"the advantages in {self.advantages.folder} are not those that the run began with: name the "
                "folder that has them with --advantage.path, or start a new run"
            )


def make_conditioning(
    config: AdvantageConfig, dataset: MultiLeRobotDataset, seed: int
) -> Conditioning | None:
    """What `--advantage.mode` asks for; None where it is off.

    Raises:
        UserError: the advantages in `--advantage.path` cannot be read, or are of other data.
    """
    if config.mode == "off":
        return None
    advantages = None
    if config.mode == "use":
        assert config.path is not None
        advantages = FrameAdvantages(dataset, config.path)
    return Conditioning(config, advantages, seed)
