"""`depi samples`: what a step of a run trained on, or one frame as the network sees it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from depi.catalog.text import clean
from depi.errors import UserError
from depi.flags import parse_flags
from depi.training.samples_config import SamplesConfig

if TYPE_CHECKING:
    from depi.training.samples_of_run import Drawn

MAX_DRAWN = 256
"""Samples on a contact sheet; further ones are listed only."""
TILE = 112
"""Side in pixels of an image on the sheet of a step."""


def main(args: Sequence[str]) -> int:
    """List and draw the samples, and return the exit status."""
    config = parse_flags(SamplesConfig, args, "depi samples", ["run"])
    assert config.run is not None
    if not config.run.is_dir():
        raise UserError(f"there is no folder {config.run}: name that of a training run")
    # Slow imports, which help and mistakes do without.
    from depi.training.samples_of_run import (
        as_the_network_sees_it,
        draw,
        one_sample,
        open_run,
        samples_of_step,
    )

    run = open_run(config.run, config.step)
    found: dict[str, Any] = {"run": str(config.run), "step": config.step}
    if config.step is None:
        drawn, samples = one_sample(run, config)
        found |= as_the_network_sees_it(run, samples[0])
    else:
        drawn, samples = samples_of_step(run, config, MAX_DRAWN)
    found["samples"] = [asdict(one) for one in drawn]
    output = config.output or config.run / _sheet_name(config)
    draw(output, samples, run.stream.samples.slots, None if config.step is None else TILE)
    found["sheet"] = str(output)
    if config.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found, drawn)
    return 0


def _sheet_name(config: SamplesConfig) -> str:
    if config.step is not None:
        return f"samples_step_{config.step:06d}.png"
    return f"sample_{quote(str(config.dataset), safe='')}_{config.episode:06d}_{config.frame:06d}.png"


def _show(found: dict[str, Any], drawn: "Sequence[Drawn]") -> None:
    for number, one in enumerate(drawn):
        cameras = ", ".join((key or "-").removeprefix("observation.images.") for key in one.slots)
        told = "" if one.indicator is None else f" ({one.indicator})"
        print(
            f"{number:4}  process {one.process} micro-batch {one.micro_batch}  "
            f"{one.dataset}@{(one.revision or 'local')[:8]} episode {one.episode} frame {one.frame}  "
            f"[{cameras}]  {clean(one.task)}{told}"
        )
    for name in ("prompt", "state", "first_action", "last_action", "actions_outside_the_episode"):
        if name in found:
            print(f"{name}: {found[name]!r}")
    more = f" (the first {MAX_DRAWN})" if len(drawn) > MAX_DRAWN else ""
    print(f"drawn in {found['sheet']}{more}")
