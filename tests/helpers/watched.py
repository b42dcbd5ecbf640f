"""A program that opens checkpoints through DePi's doors and writes down what they make the process do.

`python watched.py CASES.json RESULT.json`: CASES is a list of [name, door, path]. The result has what each
case said (null where it was loaded) and did, and under `control` what was seen while a stranger's code ran.
"""

import contextlib
import json
import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
import transformers
from strangers import PICKLE, STRANGER
from transformers import dynamic_module_utils

from depi.errors import UserError
from depi.evaluation.config import EvaluateConfig, PolicyConfig
from depi.evaluation.loading import load_actor
from depi.policies import load_processors
from depi.policies.factory import load_any_policy, load_value
from depi.training.command_line import parse_train_config

OWNER = STRANGER.partition("/")[0]
HUB = urlsplit(os.environ["HF_ENDPOINT"])
PROCESSES = {
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
}
# Where the stranger's files lie: Python has no business in there.
FOREIGN = (os.environ["HF_HOME"], os.environ["HF_MODULES_CACHE"], str(Path(sys.argv[1]).parent))

seen: list[str] | None = None


def is_foreign(file: Any) -> bool:
    return isinstance(file, str) and file.startswith(FOREIGN)


def hook(event: str, arguments: tuple) -> None:
    """Audit hooks stay for good: this one looks while `seen` is a list."""
    if seen is None:
        return
    if event in PROCESSES or event == "builtins.input":
        seen.append(event)
    elif event == "pickle.find_class":
        seen.append(f"unpickle {arguments[0]}.{arguments[1]}")
    elif event == "socket.connect" and tuple(arguments[1][:2]) != (HUB.hostname, HUB.port):
        seen.append(f"connect {arguments[1]}")
    elif event == "socket.getaddrinfo" and arguments[0] not in (HUB.hostname, None):
        seen.append(f"look up {arguments[0]}")
    elif event == "compile" and (is_foreign(arguments[1]) or OWNER in str(arguments[0])[:10_000]):
        seen.append(f"compile {arguments[1]}")
    elif (event == "exec" and is_foreign(arguments[0].co_filename)) or (
        event in ("import", "ctypes.dlopen")
        and is_foreign(arguments[-1] if event == "import" else arguments[0])
    ):
        seen.append(event)


def on_call(code: CodeType, offset: int) -> None:
    """Called as a function of `WATCHED` begins, with its arguments as its variables."""
    if seen is None or (told := WATCHED[code](sys._getframe(1).f_locals)) is None:
        return
    seen.append(told)


def _body(function: Any) -> CodeType:
    return getattr(function, "__wrapped__", function).__code__


WATCHED: dict[CodeType, Callable[[dict[str, Any]], str | None]] = {
    _body(dynamic_module_utils.resolve_trust_remote_code): lambda names: (
        f"trust {names['model_name']}" if names["trust_remote_code"] else None
    ),
    _body(dynamic_module_utils.get_class_from_dynamic_module): lambda names: (
        f"code {names['class_reference']}"
    ),
    _body(torch.load): lambda names: (
        None if names["weights_only"] in (None, True) else "torch.load of pickles"
    ),
    _body(httpx.Client.send): lambda names: (
        f"ask for {names['request'].url.path}" if STRANGER in str(names["request"].url) else None
    ),
}


@contextlib.contextmanager
def watching() -> Iterator[list[str]]:
    global seen
    seen = found = []
    try:
        yield found
    finally:
        seen = None


def evaluate(path: str) -> None:
    load_actor(EvaluateConfig(policy=PolicyConfig(path=path, device="cpu")))


def judge(path: str) -> None:
    load_value(path, device="cpu")
    load_processors(path, device="cpu")


def train(path: str) -> None:
    flags = [f"--policy.path={path}", "--policy.device=cpu", "--dataset.repo_id=someone/data"]
    policy: Any = parse_train_config([*flags, "--output_dir=nowhere"]).policy
    load_any_policy(policy.pretrained_path, config=policy)


def resume(path: str) -> None:
    parse_train_config(["--resume=true", f"--config_path={path}", "--output_dir=nowhere"])


DOORS = {"eval": evaluate, "value": judge, "train": train, "resume": resume}


def open_door(door: str, path: str) -> dict[str, Any]:
    said = None
    with watching() as found:
        try:
            DOORS[door](path)
        except UserError as error:
            said = str(error)
        except BaseException as error:
            said = f"not a UserError: {type(error).__name__}: {error}"
    return {"said": said, "did": found}


def control() -> list[str]:
    """What is seen where the stranger's code is let in: what the watch does not see here it sees nowhere."""
    with watching() as found:
        with contextlib.suppress(Exception):  # it is no tokenizer, but that shows later
            transformers.AutoTokenizer.from_pretrained(STRANGER, trust_remote_code=True)
        pickle.loads(PICKLE)
        with contextlib.suppress(Exception):
            torch.load(sys.argv[1], weights_only=False)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.2", 9), timeout=1)
        with contextlib.suppress(EOFError):
            input()
        subprocess.run(["true"], check=True)
    return found


def main() -> None:
    sys.addaudithook(hook)
    tool = sys.monitoring.DEBUGGER_ID
    sys.monitoring.use_tool_id(tool, "watched")
    sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, on_call)
    for code in WATCHED:
        sys.monitoring.set_local_events(tool, code, sys.monitoring.events.PY_START)
    cases = json.loads(Path(sys.argv[1]).read_text())
    results = {name: open_door(door, path) for name, door, path in cases}
    ran = Path(os.environ["MARK"]).exists()
    Path(sys.argv[2]).write_text(json.dumps({"cases": results, "ran": ran, "control": control()}))


if __name__ == "__main__":
    main()
