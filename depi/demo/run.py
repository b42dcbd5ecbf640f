"""The verb `depi demo`: one step after the other, a table of what happened, and a page."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from depi.demo import community, hobbyist
from depi.demo.commands import Demo, DemoConfig, environment
from depi.demo.summary import write_page
from depi.errors import UserError
from depi.files import write_json
from depi.flags import parse_flags
from depi.hub.server.serve import serve

MARKER = "demo.json"

# In the order in which they happen: title, what is done, what a user types against the real Hub.
STEPS: tuple[tuple[str, Callable[[Demo], str], str], ...] = (
    (
        "community",
        community.publish_community,
        "depi sim record --task=touch --repo_id=YOU/so101_touch --push",
    ),
    ("collect", community.collect, "depi collect-ids --deep"),
    ("annotate", community.annotate, "depi annotate --base_url=http://127.0.0.1:8000/v1"),
    ("pre-train", community.train, "accelerate launch depi/train.py --num_datasets=1500 --policy.type=pi0"),
    ("resume", community.resume, "accelerate launch depi/train.py --resume=true --output_dir=RUN"),
    (
        "record",
        hobbyist.record,
        "lerobot-record --robot.type=so101_follower --teleop.type=so101_leader "
        "--dataset.repo_id=YOU/so101_touch --dataset.no_stamp=true",
    ),
    (
        "train",
        hobbyist.train,
        "accelerate launch depi/train.py --dataset.repo_id=YOU/so101_touch --policy.path=lerobot/pi0_base",
    ),
    ("publish", hobbyist.publish, "depi upload RUN YOU/pi0-so101"),
    ("evaluate", hobbyist.evaluate, "depi eval --policy.path=YOU/pi0-so101 --env.task=touch"),
)


def prepare_root(root: Path) -> None:
    """Make the demo's folder, replacing that of an earlier demo and nothing else.

    Raises:
        UserError: the folder holds something that a demo has not written.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        if not (root / MARKER).exists():
            raise UserError(f"{root} holds something else: choose another folder with --root")
        shutil.rmtree(root)
    write_json(root / MARKER, {"finished": False})


def main(args: Sequence[str]) -> int:
    """Run the `depi demo` verb."""
    config = parse_flags(DemoConfig, args, "depi demo")
    console = Console(stderr=True)
    prepare_root(config.root)
    started = time.perf_counter()
    with serve(config.root / "hub") as hub:
        demo = Demo(config, console)
        os.environ.update(environment(hub, config.root))
        console.print(f"[bold]embedded Hub[/bold] at {hub.endpoint}, files in {config.root / 'hub'}")
        console.print("[dim]$ depi hub serve --root DIR --port 8080[/dim]")
        for number, (title, step, command) in enumerate(STEPS, start=1):
            console.rule(f"{number}/{len(STEPS)} {title}: {step.__doc__}", align="left")
            console.print(f"[dim]$ {command}[/dim]", highlight=False, soft_wrap=True)
            step_started = time.perf_counter()
            result = step(demo)
            demo.results.append((title, result, time.perf_counter() - step_started))
    seconds = time.perf_counter() - started
    report(demo, seconds)
    Console().print(f"all of it on one page: {write_page(demo, seconds)}", soft_wrap=True)
    return 0


def report(demo: Demo, seconds: float) -> None:
    """Print the closing table and write it to `demo.json`."""
    table = Table(title=f"DePi demo, {seconds:.0f} s")
    for column in ("step", "what happened", "seconds"):
        table.add_column(column, overflow="fold", justify="right" if column == "seconds" else "left")
    for title, result, step_seconds in demo.results:
        table.add_row(title, result, f"{step_seconds:.0f}")
    Console().print(table)
    steps = [{"step": title, "result": result, "seconds": round(s, 1)} for title, result, s in demo.results]
    write_json(demo.root / MARKER, {"finished": True, "seconds": round(seconds, 1), "steps": steps})
