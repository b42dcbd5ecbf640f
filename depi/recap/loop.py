"""`depi recap`: the RECAP loop, stage by stage; finished stages are not repeated."""

import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from depi.errors import UserError
from depi.files import read_json, write_json
from depi.flags import parse_flags
from depi.recap.loop_config import RecapConfig
from depi.recap.results import collect_results, draw, table
from depi.recap.running import only_one, run_command
from depi.recap.stages import Stage, check_stages, plan

logger = logging.getLogger(__name__)


def run_loop(config: RecapConfig) -> dict[str, object]:
    """Run the stages that are left, and return the results; see `collect_results`.

    Raises:
        UserError: a stage failed, or its flags or data are not valid; an earlier run of a stage had other
            flags or data; a foreign folder is in its place; or the loop is running already.
        KeyboardInterrupt: SIGINT or SIGTERM stopped it, and the stage that was running.
    """
    stages = plan(config)
    check_stages(stages)
    with only_one(config.output_dir / "stages") as lock:
        check_before(config, stages)
        for number, stage in enumerate(stages, start=1):
            if is_done(config, stage):
                logger.info("stage %s of %s, %s: done already", number, len(stages), stage.name)
                continue
            logger.info("stage %s of %s, %s: %s", number, len(stages), stage.name, shlex.join(stage.command))
            begun = time.time()
            run_stage(config, stage, lock)
            seconds = round(time.time() - begun, 1)
            write_json(marker(config, stage), {**_facts(stage), "seconds": seconds})
            started(config, stage).unlink(missing_ok=True)
            results = collect_results(config)
            write_json(config.output_dir / "results.json", results)
            draw(results, config.output_dir / "results.png")
    return collect_results(config)


def marker(config: RecapConfig, stage: Stage) -> Path:
    """The file that marks a stage as done, and holds its command and files."""
    return config.output_dir / "stages" / f"{stage.name.replace('/', '_')}.json"


def started(config: RecapConfig, stage: Stage) -> Path:
    """The file that marks a stage as started, and so its folder as made by the loop."""
    return marker(config, stage).with_suffix(".started.json")


def is_done(config: RecapConfig, stage: Stage) -> bool:
    """Whether a stage has succeeded."""
    return marker(config, stage).exists()


def _facts(stage: Stage) -> dict[str, Any]:
    """The command and files on which a stage's outcome depends."""
    return {"command": list(stage.command), "files": {str(path): content for path, content in stage.files}}


def check_before(config: RecapConfig, stages: Sequence[Stage]) -> None:
    """Check the folders of earlier runs.

    Raises:
        UserError: a stage was run or started with another command or other data; or a stage would write into
            a folder that the loop has not made.
    """
    for stage in stages:
        folder = config.output_dir / stage.name
        there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if is_done(config, stage):
            _check_same(folder, marker(config, stage), stage)
        elif there and started(config, stage).exists():
            _check_same(folder, started(config, stage), stage)
        elif there:
            raise UserError(
                f"{folder} exists, but this loop has not made it: choose another --output_dir, or move it"
            )


def _check_same(folder: Path, noted: Path, stage: Stage) -> None:
    """Raise a UserError where a stage was run with another command or other files than now."""
    facts = read_json(noted)
    before, now = set(facts["command"]), set(stage.command)
    differing = " ".join(sorted(now - before)) or " ".join(f"without {arg}" for arg in sorted(before - now))
    files = _facts(stage)["files"]
    changed = [path for path, content in files.items() if facts.get("files", files).get(path) != content]
    if differing:
        how = f"with other flags (now {differing})"
    elif changed:
        how = f"with other data than {changed[0]} names now"
    else:
        return
    raise UserError(
        f"the stage {stage.name} in {folder} was run {how}: remove {noted} and that folder to run it and, "
        "likewise, those after it again, or choose another --output_dir"
    )


def run_stage(config: RecapConfig, stage: Stage, lock: int) -> None:
    """Run a stage's command to its end; one that was stopped continues. See `check_before` and `run_command`.

    Raises:
        UserError: it failed; its own message is above.
        KeyboardInterrupt: it was stopped.
    """
    folder = config.output_dir / stage.name
    check_before(config, [stage])
    write_json(started(config, stage), _facts(stage))
    for path, content in stage.files:
        write_json(path, content)
    command = list(stage.command)
    if stage.trains and (folder / "checkpoints" / "last").exists():
        if _has_all_steps(folder):
            return
        command = [*command[: _script_at(command) + 1], "--resume=true", f"--output_dir={folder}"]
    elif stage.trains and folder.exists():  # it was stopped before its first checkpoint
        shutil.rmtree(folder)
    status = run_command(command, lock)
    if status < 0 or status > 128:
        number = -status if status < 0 else status - 128
        raise UserError(
            f"the stage {stage.name} was killed by signal {number}; maybe for lack of memory. "
            "The same command continues from there"
        )
    if status:
        raise UserError(
            f"the stage {stage.name} ended with status {status}: the same command continues from there"
        )


def _script_at(command: Sequence[str]) -> int:
    """The position of the script in a training's command; the trainer's flags follow."""
    return next(number for number, part in enumerate(command) if part.endswith("train.py"))


def _has_all_steps(run: Path) -> bool:
    """Whether a training was stopped after its last checkpoint."""
    last = run / "checkpoints" / "last"
    steps = read_json(last / "pretrained_model" / "train_config.json")["steps"]
    return int(last.resolve().name) >= steps


def main(args: Sequence[str]) -> int:
    """Run the `depi recap` verb."""
    renamed = {"--config": "--config_path"}
    parts = [arg.partition("=") for arg in args]
    args = [renamed.get(name, name) + equals + value for name, equals, value in parts]
    config = parse_flags(RecapConfig, args, "depi recap")
    if config.dry_run:
        stages = plan(config)
        check_stages(stages)
        check_before(config, stages)
        for stage in stages:
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
