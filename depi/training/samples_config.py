"""The flags of `depi samples`."""

from dataclasses import dataclass
from pathlib import Path

from depi.errors import UserError


@dataclass
class SamplesConfig:
    """List and draw what a step of a training run saw: depi samples RUN --step=12345

    RUN is the run's folder, which has at least one checkpoint. The datasets must be as they were; what the
    cache lacks of them is fetched. With --dataset, --episode and --frame instead of --step: one frame as the
    network sees it, with the random changes of a first sample. With both: those of the step's samples.
    """

    run: Path | None = None
    # An optimizer step, numbered from 1.
    step: int | None = None
    # A dataset of the run, an episode's index as recorded, and a frame's number in the episode.
    dataset: str | None = None
    episode: int | None = None
    frame: int | None = None
    # The contact sheet, a PNG; by default samples_....png in RUN.
    output: Path | None = None
    # Print JSON instead of a table.
    json: bool = False

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("depi samples needs the folder of a run: `depi samples RUN --step=1`")
        if self.step is not None and self.step < 1:
            raise UserError(f"--step={self.step}: steps are numbered from 1")
        whole = None not in (self.dataset, self.episode, self.frame)
        if self.step is None and not whole:
            raise UserError("name a step with --step, or a frame with --dataset, --episode and --frame")
