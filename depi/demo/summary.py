"""The page at the end of the demo: one file with what was found, learnt, filmed, and what to type next."""

import base64
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from depi.catalog.catalogue import load_catalog
from depi.catalog.report import Pictures, read_pictures
from depi.demo.commands import Demo, metrics
from depi.demo.hobbyist import ROLLOUTS, SCENES
from depi.files import read_json, write_text
from depi.page import document

PAGE = "index.html"
# More than the demo films, in case somebody asks for more of them.
MOST_FILMS = 24


def write_page(demo: Demo, seconds: float) -> Path:
    """Write the page and return its path.

    Args:
        demo: with all steps done.
        seconds: that they took.
    """
    result = read_json(demo.evaluation / "eval.json")
    data = {
        "seconds": round(seconds),
        "steps": [[title, happened, round(took)] for title, happened, took in demo.results],
        "success": {
            "rate": result["success_rate"],
            "interval": result["success_interval_95"],
            "successes": result["n_successes"],
            "episodes": result["n_episodes"],
        },
        "films": list(films(demo, result)),
        "verdicts": verdicts(demo.data_ids),
        "losses": [
            {
                "name": name,
                "points": [[line["step"], line["loss"]] for line in metrics(run) if "loss" in line],
            }
            for name, run in (("your recordings", demo.own_run), ("the community's", demo.community_run))
        ],
        "begin": begin(demo.root),
        "commands": commands(demo),
    }
    title = "Your robot touches the cube"
    page = document.render(
        data, package="depi.demo", name="demo", scripts=("demo.js",), title=title, about="demo"
    )
    path = demo.root / PAGE
    write_text(path, page)
    return path


def films(demo: Demo, result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rollouts that were filmed: their number, whether they succeeded, their steps, and the mp4."""
    for episode in result["episodes"][:MOST_FILMS]:
        path = demo.evaluation / "videos" / f"episode_{episode['index']:03d}.mp4"
        if path.exists():
            yield {
                "episode": episode["index"],
                "success": episode["success"],
                "steps": episode["length"],
                "mp4": base64.b64encode(path.read_bytes()).decode(),
            }


def verdicts(data_ids: Path) -> list[dict[str, Any]]:
    """The datasets of the catalogue: name, verdict, score, reasons, and a picture where there is one."""
    pictures: Pictures = read_pictures(data_ids)
    found = []
    for row in load_catalog(data_ids):
        (name, jpeg), *_ = pictures.get((row.repo_id, row.revision)) or [("", b"")]
        found.append(
            {
                "repo_id": row.repo_id,
                "verdict": row.verdict,
                "score": row.score,
                "episodes": row.episodes,
                "bad_episodes": row.bad_episodes or 0,
                "reasons": row.reasons,
                "picture": [name, base64.b64encode(jpeg).decode()] if jpeg else None,
            }
        )
    return found


def begin(root: Path) -> list[str]:
    """What to type before anything else: the folder, and the environment that DePi is installed in."""
    lines = [shlex.join(["cd", str(root.resolve())])]
    if sys.prefix != sys.base_prefix:
        lines.append(f"source {shlex.quote(str(Path(sys.prefix) / 'bin' / 'activate'))}")
    return lines


def commands(demo: Demo) -> list[tuple[str, str]]:
    """What to type next, in the demo's folder: (what it is for, the command); none needs a network."""
    config = demo.config
    seed = ROLLOUTS + SCENES * config.seed
    rollouts = "depi eval --policy.path=train --policy.device=cpu --env.task=touch --env.setups=my_robot.json"
    again = f"{rollouts} --policy.n_action_steps=4 --eval.n_episodes={config.eval_episodes} --seed={seed}"
    night = "you/touch_night"
    train = "python -m depi.train"
    return [
        (
            "Watch it on 30 more scenes",
            f"{rollouts} --eval.n_episodes=30 --seed={seed + 1000} --output_dir=eval_more",
        ),
        ("Let it look twice as often", f"{again} --output_dir=eval_often"),
        ("and see whether that helps", "depi compare eval eval_often --output_dir=compared"),
        (
            "Look at an episode of yours",
            "depi view you/touch_morning --root=recordings/morning --output=episode.mp4",
        ),
        (
            "Record more",
            f"depi sim record --task=touch --rig=my_robot.json --repo_id={night} --root=recordings/night"
            f" --episodes=20 --seed={SCENES * (2 * config.seed + 1) + 50_000}",
        ),
        (
            "Train on with those",
            f"{train} --policy.path=train --dataset.repo_id={night} --dataset.root=recordings/night"
            " --policy.device=cpu --policy.push_to_hub=false --steps=100 --batch_size=16 --num_workers=1"
            " --output_dir=train_night",
        ),
        (
            "Or train longer on the first ones",
            f"{train} --resume=true --output_dir=train --steps={config.steps + 100} --batch_size=16",
        ),
        ("Draw the losses", "depi plot train train_community --output=loss.html"),
        ("Open the demo's Hub again", "depi hub serve --root=hub"),
    ]
