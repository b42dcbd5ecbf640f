"""README and docs keep to what is there: flags, verbs, links and files exist, and the README is short."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import depi
from depi.cli import VERBS
from depi.errors import UserError
from depi.flag_sources import read_flags
from depi.flags import check_flags, take_flags
from depi.other_programs import RENAMED, TRAIN, replacement, verb_hint
from depi.training.estimate_command import EstimateConfig

ROOT = Path(__file__).parents[1]
PACKAGE = Path(depi.__file__).parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "so100_data" / "README.md"])
MAX_README = 10_000  # bytes

# Flags of the programs that the pages name beside DePi's own.
FOREIGN = {
    *("extra",),  # uv sync
    *("max-model-len", "limit-mm-per-prompt.video", "data-parallel-size"),  # vllm serve
    *("config_file", "machine_rank", "main_process_ip"),  # accelerate launch
    *("nodes", "gpus_per_node"),  # configs/launch/ray_train.py
    *("robot.type", "robot.port", "robot.id", "robot.cameras", "robot.use_degrees"),  # lerobot-rollout
    *("robot.max_relative_target", "strategy.type", "dataset.single_task", "inference.type"),
    *("dataset.fps", "inference.rtc.execution_horizon"),
    *("robot.width", "robot.height", "robot.fps", "duration"),  # of the simulated arm
    # lerobot-record:
    *("teleop.type", "teleop.use_degrees", "dataset.num_episodes", "dataset.push_to_hub", "dataset.no_stamp"),
}
FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*)")


@cache
def commands() -> dict[str, list[tuple[Path, str]]]:
    """`depi eval` and the like -> where their configuration classes are, by the calls of parse_flags."""
    found: dict[str, list[tuple[Path, str]]] = {}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        constants = {
            node.targets[0].id: node.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "parse_flags" and len(node.args) > 2:
                config, command = node.args[0], constants.get(ast.unparse(node.args[2]), node.args[2])
                if isinstance(config, ast.Name) and isinstance(command, ast.Constant):
                    found.setdefault(command.value.removesuffix(" RUN..."), []).append((path, config.id))
    training = [(PACKAGE / "training" / "config.py", "TrainConfig")]
    return found | {TRAIN: training, "depi train": training}


@cache
def known_flags() -> set[str]:
    names = {"help", "config_path"}
    for path, class_name in (place for places in commands().values() for place in places):
        flags = read_flags(path, class_name)
        names |= set(flags.known({}))
        names |= {f"{choice}.{field}" for choice in flags.choices for field in ("type", "path")}
    return names


def code_lines(text: str) -> Iterator[str]:
    """The command lines in the shell blocks of a page, continued ones joined."""
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield from block.replace("\\\n", " ").splitlines()


def test_the_flags_of_all_commands_are_found():
    missing = {
        verb for verb in VERBS if not any(f"{name} ".startswith(f"depi {verb} ") for name in commands())
    }
    assert missing == set()
    assert len(known_flags()) > 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_flags_and_verbs_of_a_page_exist(page):
    text = re.sub(
        r"^```python\n.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert [flag for flag in FLAG.findall(text) if not is_known(flag)] == []
    verbs = re.findall(r"\bdepi ([a-z][a-z-]+)", "\n".join([*code_lines(text), *code_spans(text)]))
    assert set(verbs) <= set(VERBS)


def is_known(flag: str) -> bool:
    """Whether a command takes the flag; one that ends with a dot, as in `--policy.*`, stands for several."""
    if flag.endswith("."):
        return any(name.startswith(flag) for name in known_flags())
    return flag in FOREIGN or flag.replace("-", "_") in known_flags()


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_command_lines_of_a_page_are_accepted(page):
    """Each with the flags of its own command, values included."""
    for line in code_lines(page.read_text(encoding="utf-8")):
        words = shlex.split(line, comments=True)
        text = " ".join(words)
        for command in sorted(commands(), key=len, reverse=True):
            before, found, after = f"{text} ".partition(f"{command} ")
            if not found or (before and not before.endswith((" ", "run "))):
                continue
            args = [word for word in shlex.split(after) if word.startswith("--")]
            places = commands()[command]
            if command == "depi estimate":  # it takes every flag of training as well
                own, args = take_flags(args, EstimateConfig)
                assert refusal(places[0], own, command) is None
                places = commands()["depi/train.py"]
            refusals = [refusal(place, args, command) for place in places]
            assert None in refusals, (line, refusals)
            break


def refusal(place: tuple[Path, str], args: list[str], command: str) -> str | None:
    try:
        check_flags(*place, args, command)
    except UserError as error:
        return str(error)
    return None


def test_what_people_coming_from_other_programs_type_is_answered():
    """The flags and commands on the left of the page's tables; names of classes and files are none."""
    rows = [
        row for row in (ROOT / "docs" / "coming-from.md").read_text().splitlines() if row.startswith("| ")
    ]
    words = [span.split()[0] for row in rows for span in code_spans(row.split(" | ")[0])]
    typed = [
        word for word in words if re.fullmatch(r"[a-z][\w./-]*", word) and word not in ("on", "use", "ignore")
    ]
    assert len(typed) > 50
    for word in typed:
        known = word in known_flags() or word in RENAMED["depi view"]
        assert known or replacement(word, TRAIN) or verb_hint(word) or word == "train_config.json", word


def anchors(page: Path) -> set[str]:
    """The headings of a page as a web page names them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_the_files_that_the_pages_name_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"`((?:depi|tests|configs|plugins)/[\w/.]+\.\w+)`", text)
    assert len(named) > 20
    assert {name for name in named if "NAME" not in name and not (ROOT / name).exists()} == set()


def test_the_readme_is_short_and_names_every_verb():
    readme = (ROOT / "README.md").read_bytes()
    assert len(readme) <= MAX_README
    for verb in VERBS:
        assert f"`depi {verb}".encode() in readme, verb


def test_pictures_are_small():
    pictures = list((ROOT / "docs" / "images").iterdir())
    assert len(pictures) >= 2
    assert {picture.name: size for picture in pictures if (size := picture.stat().st_size) > 150_000} == {}
