"""What DePi writes and prints while it uses tokens, keys and passwords: none of them is in it."""

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import fsspec
import pytest
from huggingface_hub import HfApi
from leaks import leaks, spellings
from moto.server import ThreadedMotoServer
from recordings import Recording, write_v2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from vlm_server import VlmServer, completion, good_answer, serving

from depi.demo.commands import TRAIN_SCRIPT
from depi.hub.server.serve import LocalHub, serve

USER = "proxy-user"
# Characters that addresses, JSON, HTML and base64 spell in different ways.
PASSWORD = "Hub/Pa+ss&w@rd:0123456789"
VLM_PASSWORD = "Vlm/Pa+ss<w@rd:0123456789"
API_KEY = "sk-Key+With/Slash=0123456789"
S3_KEY = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"
WANDB_KEY = "0123456789abcdef" * 2 + "fedcba98"
SECRETS = [PASSWORD, VLM_PASSWORD, API_KEY, S3_KEY, WANDB_KEY]

# Runs commands in one process, because starting one takes longer than most of them.
RUN = """
import json, os, sys
from depi import cli
from depi.hub.client import retry
from depi.train import main as train
retry.RETRIES = retry.RetryPolicy(first_wait=0.1)
for changes, verb, *args in json.loads(sys.argv[1]):
    os.environ.update(changes)
    print(verb, "ends with", train(args) if verb == "train" else cli.main([verb, *args]), flush=True)
"""


class Proxy:
    """Stands before the Hub: asks for user and password, then for the token in the client's place."""

    def __init__(self) -> None:
        self.hub: LocalHub | None = None
        self.failures: list[tuple[str, str]] = []
        self.seen: set[str] = set()

    def __call__(self, request: Request) -> Response | None:
        if self.hub is None:
            return None
        name, _, value = request.headers.get("authorization", "").partition(" ")
        given = base64.b64decode(value).decode() if name == "Basic" else ""
        if given != f"{USER}:{PASSWORD}":
            return JSONResponse({"error": "who are you?"}, status_code=401)
        self.seen.add(request.method)
        for failure in self.failures:
            if request.method == failure[0] and failure[1] in request.url.path:
                self.failures.remove(failure)
                return JSONResponse({"error": f"no {request.url}"}, status_code=503)
        others = [pair for pair in request.scope["headers"] if pair[0] != b"authorization"]
        token = ("authorization", f"Bearer {self.hub.write_token}")
        request.scope["headers"] = [*others, tuple(text.encode() for text in token)]
        return None


def with_password(address: str, password: str) -> str:
    return address.replace("//", f"//{USER}:{quote(password, safe='')}@", 1)


@contextmanager
def s3(folder: Path, bucket: str) -> Iterator[str]:
    """A bucket that holds what a folder does; gives the address of its server."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        options = {"endpoint_url": address, "key": "AKIAIOSFODNN7", "secret": S3_KEY}
        storage = fsspec.filesystem("s3", skip_instance_cache=True, **options)
        storage.makedirs(bucket, exist_ok=True)
        storage.put(f"{folder}/", f"{bucket}/box/", recursive=True)
        yield address
    finally:
        server.stop()


def environment(folder: Path, **values: str) -> dict[str, str]:
    """This one's with secrets; whatever programs keep for their user goes below `folder` too."""
    places = {name: str(folder / name.lower()) for name in ("HOME", "HF_HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        Path(place).mkdir(parents=True, exist_ok=True)
    taken = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "WANDB_"))}
    keys = {"OPENAI_API_KEY": API_KEY, "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7", "AWS_SECRET_ACCESS_KEY": S3_KEY}
    wandb = {"WANDB_API_KEY": WANDB_KEY, "WANDB_MODE": "offline", "WANDB_DIR": str(folder)}
    return {**taken, **places, **keys, **wandb, "AWS_DEFAULT_REGION": "us-east-1", **values}


TINY = {
    **{"image_resolution": "[28,28]", "vision_width": 16, "vision_depth": 1, "vision_mlp_dim": 32},
    **{"width": 32, "mlp_dim": 32, "expert_width": 32, "expert_mlp_dim": 32, "depth": 2, "head_dim": 16},
    **{"chunk_size": 4, "n_action_steps": 4},
}


def test_every_spelling_is_found(tmp_path):
    """What the other tests rely on."""
    for secret in SECRETS:
        for number, text in enumerate(sorted(spellings(secret))):
            (tmp_path / "file").write_bytes(b"..." + text + b"...")
            assert leaks([secret], tmp_path) == [f"{secret} in {tmp_path / 'file'}"], number
        for before in range(7):
            (tmp_path / "file").write_bytes(base64.b64encode(b"." * before + secret.encode() + b"..."))
            assert leaks([secret], tmp_path), before


@dataclass
class Place:
    """Where commands run: a Hub behind a password, a model's server with one, and a bucket."""

    work: Path
    hub: LocalHub
    proxy: Proxy
    vlm: VlmServer
    env: dict[str, str]

    def run(self, *commands: list, program: tuple[str, ...] = ("-c", RUN)) -> tuple[list[str], list[str]]:
        """With which status each command ends, and what was printed."""
        command = [sys.executable, *program, *([json.dumps(commands)] if commands else [])]
        options = {"env": self.env, "cwd": self.work, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        return re.findall(r"\w+ ends with (\d+)", done.stdout), [done.stdout, done.stderr]

    def leaks(self, printed: list[str]) -> list[str]:
        """The secrets in what was printed, in the Hub's folder (without its tokens) and below `work`."""
        tokens = json.loads((self.hub.root / "tokens.json").read_text())
        (self.hub.root / "tokens.json").unlink()
        return leaks([*SECRETS, *tokens.values()], self.work.parent, *printed)

    @property
    def training(self) -> list[str]:
        """Flags of one step."""
        return [
            *("--policy.type=depi_pi0", "--policy.device=cpu", "--dataset.repo_id=ann/so101_0"),
            *(f"--policy.{name}={value}" for name, value in TINY.items()),
            *(
                "--steps=1",
                "--batch_size=2",
                "--num_workers=0",
                "--log_freq=1",
                f"--output_dir={self.work}/run",
            ),
            *("--policy.push_to_hub=true", "--policy.repo_id=ann/pi0", "--save_checkpoint_to_hub=true"),
        ]


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    boxes, work, proxy = tmp_path / "boxes", tmp_path / "work", Proxy()
    box = write_v2(boxes / "box", Recording(lengths=(9, 7), cameras=("observation.images.top",)))
    with (
        serve(tmp_path / "hub", faults=proxy, page_size=2) as hub,
        serving(lambda handler, body, _: handler.send(200, completion(good_answer(body)))) as vlm,
        s3(box, "robots") as bucket,
    ):
        owner = HfApi(endpoint=hub.endpoint, token=hub.write_token)
        for number in range(3):
            named = {"repo_id": f"ann/so101_{number}", "repo_type": "dataset"}
            owner.create_repo(**named)
            owner.upload_folder(**named, folder_path=box)
        proxy.hub = hub
        env = environment(work, **hub.environment(), AWS_ENDPOINT_URL=bucket, DEPI_CACHE=f"{work}/cache")
        env["HF_ENDPOINT"] = with_password(hub.endpoint, PASSWORD)
        env["OPENAI_BASE_URL"] = with_password(vlm.url, VLM_PASSWORD)
        yield Place(work, hub, proxy, vlm, env)


def test_commands_write_and_print_no_secret(place):
    # The library warns of the second and the third, and names the address.
    place.proxy.failures = [("GET", "/api/datasets"), ("GET", "/tree/"), ("PUT", "/lfs/")]
    annotations = f"--annotations={place.work}/annotations"
    statuses, printed = place.run(
        [{}, "collect-ids", "--search=[so101]", f"--data_ids={place.work}/ids"],
        [{}, "report", f"--data_ids={place.work}/ids"],
        [{}, "annotate", "--repo_id=ann/so101_0", annotations, "--max_episodes=1"],
        [{}, "annotate", "--repo_id=s3://robots/box", annotations, "--max_episodes=1"],
        [{}, "annotate", "export", "--push", "--repo_id=ann/texts", annotations],
        [{}, "train", *place.training, "--dataset.use_annotated_tasks=true", f"--dataset.{annotations[2:]}"],
        [{}, "upload", f"{place.work}/run", "ann/again"],
    )
    assert statuses == ["0"] * 7, printed
    assert place.proxy.seen >= {"GET", "POST", "PUT"}, "the password was used"
    assert place.vlm.headers_seen["Authorization"].startswith("Basic"), "and that one too"
    place.proxy.hub = None
    files = HfApi(endpoint=place.hub.endpoint).list_repo_files("ann/pi0")
    assert any(name.startswith("training_state") for name in files)
    assert f'"hub":"{place.hub.endpoint}"' in (place.work / "ids/report.html").read_text()
    assert place.hub.endpoint in printed[1], "messages name the Hub"
    assert place.leaks(printed) == []


def test_failures_tell_no_secret(place):
    """Where nobody listens, where the password is wrong, and where the address is no address."""
    place.vlm.answer = lambda handler, body, _: handler.send(
        418, json.dumps({"error": f"{handler.headers['Authorization']} has no access"}).encode()
    )
    nobody = {"HF_ENDPOINT": with_password("http://127.0.0.1:9", PASSWORD)}
    wrong = {"HF_ENDPOINT": with_password(place.hub.endpoint, f"{PASSWORD}!")}
    unquoted = {"HF_ENDPOINT": place.hub.endpoint.replace("//", f"//me:{PASSWORD}@") + ":x"}
    offline = {"HF_HUB_OFFLINE": "1"}
    vlm = f"--base_url={with_password('http://127.0.0.1:9/v1', VLM_PASSWORD)}"
    box = ["--repo_id=s3://robots/box", f"--annotations={place.work}/annotations"]
    collect = ["collect-ids", "--search=[so101]", f"--data_ids={place.work}/ids"]
    statuses, printed = place.run(
        *([hub, *collect] for hub in (nobody, wrong, unquoted)),
        *([hub, "annotate", "--repo_id=ann/so101_0", *box[1:]] for hub in (nobody, wrong, unquoted)),
        [{}, "annotate", *box],
        [{"OPENAI_BASE_URL": place.vlm.url}, "annotate", *box],
        [{}, "annotate", *box, vlm],
        [{}, "annotate", *box, f"{vlm}:x"],
        [{}, "annotate", *box, vlm.replace("base_url", "base_uri")],
        [{}, "annotate", "--repo_id=s3://robots/nothing", *box[1:]],
        [{}, "annotate", f"--repo_id=s3://AKIA:{S3_KEY}@robots/box", *box[1:]],
        [{"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "annotate", "--repo_id=s3://robots/other", *box[1:]],
        [offline, "annotate", "--repo_id=ann/so101_2", *box[1:]],
    )
    assert place.leaks(printed) == []
    assert "0" not in statuses
    assert len(statuses) == 15, printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_programs_write_and_print_no_secret(place):
    """In processes of their own, with the trackers, checks and failures that take longer."""
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1")
    train = (*launch, "--mixed_precision=no", "--dynamo_backend=no", str(TRAIN_SCRIPT))
    _, trained = place.run(program=(*train, *place.training, "--wandb.enable=true", "--num_workers=1"))
    assert any((place.work / "run/wandb").rglob("*.wandb")), trained
    evaluation = ["--policy.device=cpu", "--env.type=so101", "--env.task=touch", "--eval.n_episodes=1"]
    _, resumed = place.run(
        program=(*train, "--resume=true", "--config_path=ann/pi0", f"--output_dir={place.work}/on")
    )
    _, evaluated = place.run(program=("-m", "depi.cli", "eval", "--policy.path=ann/pi0", *evaluation))
    _, checked = place.run(program=("-m", "depi.cli", "doctor"))
    assert place.hub.endpoint in checked[0], checked
    place.env["HF_ENDPOINT"] = with_password("http://127.0.0.1:9", PASSWORD)
    _, unreached = place.run(program=(*train, *place.training, f"--output_dir={place.work}/other"))
    assert "cannot reach the Hub at http://127.0.0.1:9" in unreached[1], unreached
    _, unchecked = place.run(program=("-m", "depi.cli", "doctor"))
    assert place.leaks([*trained, *resumed, *evaluated, *checked, *unreached, *unchecked]) == []
