"""`depi recap`: the RECAP loop, stage by stage; what is done is not done again."""

import json
import logging
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.flags import parse_flags
from depi.recap.config import RecapConfig
from depi.recap.results import collect_results, draw, table
from depi.recap.stages import Stage, plan

logger = logging.getLogger(__name__)


def run_loop(config: RecapConfig) -> dict[str, object]:
    """Run the stages that are left, and return the results; see `collect_results`.

    Raises:
        UserError: a stage failed, or one that is done was run with other flags.
    """
    stages = plan(config)
    check_done(config, stages)
    for number, stage in enumerate(stages, start=1):
        if is_done(config, stage):
            logger.info("stage %s of %s, %s: done already", number, len(stages), stage.name)
            continue
        logger.info("stage %s of %s, %s: %s", number, len(stages), stage.name, shlex.join(stage.command))
        started = time.time()
        run_stage(config, stage)
        seconds = round(time.time() - started, 1)
        write_json(marker(config, stage), {"command": list(stage.command), "seconds": seconds})
        results = collect_results(config)
        write_json(config.output_dir / "results.json", results)
        draw(results, config.output_dir / "results.png")
    return collect_results(config)


def marker(config: RecapConfig, stage: Stage) -> Path:
    """The file that says that a stage is done, and with which command."""
    return config.output_dir / "stages" / f"{stage.name.replace('/', '_')}.json"


def is_done(config: RecapConfig, stage: Stage) -> bool:
    """Whether a stage has ended well."""
    return marker(config, stage).exists()


def check_done(config: RecapConfig, stages: Sequence[Stage]) -> None:
    """Raise a UserError where a stage that is done was run with another command than now."""
    for stage in stages:
        if not is_done(config, stage):
            continue
        before, now = set(read_json(marker(config, stage))["command"]), set(stage.command)
        if before != now:
            differing = " ".join(sorted(now - before)) or f"without {' '.join(sorted(before - now))}"
            raise UserError(
                f"the stage {stage.name} in {config.output_dir} was run with other flags (now {differing}): "
                f"remove {marker(config, stage)} and the folder {config.output_dir / stage.name} to run it "
                "and, likewise, those after it again, or choose another --output_dir"
            )


def run_stage(config: RecapConfig, stage: Stage) -> None:
    """Run a stage's command to its end; one that was stopped goes on.

    Raises:
        UserError: it failed; its own message is above.
    """
    for path, content in stage.files:
        write_json(path, content)
    command = list(stage.command)
    if stage.trains:
        folder = config.output_dir / stage.name
        if (folder / "checkpoints" / "last").exists():
            if _has_all_steps(folder):
                return
            command = [*command[: _script_at(command) + 1], "--resume=true", f"--output_dir={folder}"]
        elif folder.exists():  # it was stopped before its first checkpoint
            shutil.rmtree(folder)
    status = subprocess.run(command, check=False).returncode
    if status:
        if status < 0 or status > 128:
            raise KeyboardInterrupt
        raise UserError(
            f"the stage {stage.name} ended with status {status}: the same command goes on from there"
        )


def _script_at(command: Sequence[str]) -> int:
    """Where in a training's command its script stands; what follows are the trainer's flags."""
    return next(number for number, part in enumerate(command) if part.endswith("train.py"))


def _has_all_steps(run: Path) -> bool:
    """Whether a training was stopped after its last checkpoint."""
    last = run / "checkpoints" / "last"
    steps = read_json(last / "pretrained_model" / "train_config.json")["steps"]
    return int(last.resolve().name) >= steps


def main(args: Sequence[str]) -> int:
    """Run the `depi recap` verb."""
    args = [f"--config_path={arg[9:]}" if arg.startswith("--config=") else arg for arg in args]
    config = parse_flags(RecapConfig, args, "depi recap")
    if config.dry_run:
        for stage in plan(config):
            if not is_done(config, stage):
                print(f"# {stage.name}\n{shlex.join(stage.command)}")
        return 0
    results = run_loop(config)
    if config.json:
        json.dump(results, sys.stdout, indent=2)
        print()
    else:
        Console().print(table(results))
        print(f"details in {config.output_dir / 'results.json'}, plot in {config.output_dir / 'results.png'}")
    return 0
