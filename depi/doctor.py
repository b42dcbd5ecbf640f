"""`depi doctor`: what works on this machine, and what to type where something does not."""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from depi.addresses import without_credentials
from depi.engine import RayConfig
from depi.files import cache_folder
from depi.flags import parse_flags
from depi.threads import threads

Status = Literal["ok", "warn", "fail", "skip"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red", "skip": "dim"}

PACKAGES = (
    *("torch", "torchvision", "lerobot", "transformers", "accelerate"),
    *("huggingface-hub", "torchcodec", "av"),
)
TOKENIZER = "google/paligemma-3b-pt-224"
TOKEN_REFUSED = "the token is refused"
HUB_SECONDS = 20.0
SET_UP = "install DePi's dependencies: uv sync --extra sim"
SLOW = "the machine is busy: try again, or wait longer with --timeout=300"
NOT_REPLACED = "nothing replaces it: do not trust what is trained here, and tell DePi's makers"
FFMPEG = "install FFmpeg's libraries (Debian: sudo apt-get install ffmpeg)"
# Free bytes, the variable that moves the folder, and what needs the space. A checkpoint of the full pi0 is
# written before the old one is removed.
ROOM_WANTED = {
    "outputs": (100e9, "--output_dir", "a checkpoint of the full pi0 takes 45 GB with its optimizer's state"),
    "Hub cache": (50e9, "HF_HOME", "weights of pi0 and videos of datasets are kept there"),
    "DePi cache": (10e9, "DEPI_CACHE", "indexes of datasets are kept there"),
}
ROOM_NEEDED = 2e9
# Docker gives 64 MB; a worker's batches of 32 samples with 3 cameras take 15 MB each, four at a time.
SHARED_MEMORY_WANTED = 1e9


@dataclass
class DoctorConfig:
    """Check what works on this machine, and print what to type where something does not.

    Exit status: 1 where something that training needs fails, else 0.
    """

    # Check instead, in about two minutes, what GPUs compute: attention, compiled layers, CUDA graphs, the
    # optimizer; and how fast, and with how much memory. One of each kind, which should be idle.
    gpu: bool = False
    # Check a Ray cluster too; without an address only where RAY_ADDRESS names one.
    ray: RayConfig = field(default_factory=RayConfig)
    # Longest time of one check, in seconds.
    timeout: float = 60.0
    # Print JSON instead of lines; with --gpu all figures, to be attached to an issue.
    json: bool = False

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"--timeout must be above 0, not {self.timeout}")


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, its status, and what to do about a problem."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def examine(config: DoctorConfig) -> list[Finding]:
    """Run all checks, several at a time; the order of the findings is fixed."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        check_versions,
        lambda: check_gpus(config.timeout),
        lambda: check_codecs(config.timeout),
        lambda: check_rendering(config.timeout),
        lambda: check_hub(min(config.timeout, HUB_SECONDS)),
        check_room,
        lambda: check_ray(config.ray.address or os.environ.get("RAY_ADDRESS"), config.timeout),
    ]
    with threads(len(checks)) as pool:
        return [finding for findings in pool.map(lambda check: list(check()), checks) for finding in findings]


def _probe(name: str, timeout: float, *args: str) -> dict[str, Any]:
    """The result of a probe of `depi.probes` in a separate process; {"error": ...} where it fails."""
    command = [sys.executable, "-m", "depi.probes", name, *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout:g} s", "slow": True}
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        said = done.stderr.strip().splitlines()
        return {"error": said[-1] if said else f"it ended with status {done.returncode}"}


def check_versions() -> Iterator[Finding]:
    """Python, the packages that training needs, and ffmpeg."""
    supported = sys.version_info[:2] == (3, 12)
    remedy = "" if supported else "use Python 3.12: uv python install 3.12"
    yield Finding("python", "ok" if supported else "fail", platform.python_version(), remedy)
    for package in PACKAGES:
        try:
            yield Finding(package, "ok", importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "fail", "not installed", SET_UP)
    if shutil.which("ffmpeg") is None:
        yield Finding("ffmpeg", "warn", "not found", FFMPEG)
        return
    done = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    yield Finding("ffmpeg", "ok", words[2] if len(words) > 2 else "found")


def check_gpus(timeout: float) -> Iterator[Finding]:
    """The GPUs that PyTorch finds."""
    found = _probe("gpus", timeout)
    if "error" in found:
        if "slow" in found:
            yield Finding("gpu", "warn", f"PyTorch gives {found['error']}", SLOW)
        else:
            yield Finding("gpu", "fail", f"PyTorch does not start: {found['error']}", SET_UP)
        return
    for number, device in enumerate(found["devices"]):
        detail = f"{device['name']}, {device['free'] / 1e9:.0f} of {device['total'] / 1e9:.0f} GB free"
        old = "" if device["bf16"] else "it does not support bfloat16: train with --policy.dtype=float32"
        yield Finding(f"gpu {number}", "warn" if old else "ok", f"{detail}, CUDA {found['cuda']}", old)
    if found["devices"]:
        return
    if found["mps"]:
        yield Finding("gpu", "ok", "Apple's, by --policy.device=mps")
    elif shutil.which("nvidia-smi"):
        remedy = (
            f"update the NVIDIA driver: this PyTorch wants CUDA {found['cuda']}; `nvidia-smi` shows yours"
        )
        yield Finding("gpu", "fail", "there is an NVIDIA driver, but PyTorch reaches no GPU", remedy)
    else:
        remedy = "small policies train on the processor: --policy.type=depi_pi0 --policy.device=cpu"
        built = (
            f"PyTorch is built for CUDA {found['cuda']}" if found["cuda"] else "PyTorch is built without CUDA"
        )
        yield Finding("gpu", "warn", f"none ({built})", remedy)


def check_codecs(timeout: float) -> Iterator[Finding]:
    """Whether videos that were encoded here are decoded here."""
    with threads(2) as pool:
        names = ("pyav", "torchcodec")
        pyav, torchcodec = pool.map(lambda name: _probe(name, timeout), names)
    for codec, title in (("h264", "H.264"), ("av1", "AV1")):
        problems = {
            name: found.get("error") or found[codec]
            for name, found in (("PyAV", pyav), ("torchcodec", torchcodec))
        }
        slow = [name for name, found in (("PyAV", pyav), ("torchcodec", torchcodec)) if "slow" in found]
        broken = {name: problem for name, problem in problems.items() if problem and name not in slow}
        if slow and not broken:
            yield Finding(f"video {title}", "warn", f"{' and '.join(slow)} gave {problems[slow[0]]}", SLOW)
            continue
        if not broken:
            yield Finding(f"video {title}", "ok", "PyAV and torchcodec decode it")
            continue
        detail = "; ".join(f"{name} does not decode it ({problem})" for name, problem in broken.items())
        status: Status = "fail" if len(broken) == 2 else "warn"
        yield Finding(f"video {title}", status, detail, FFMPEG if "torchcodec" in broken else SET_UP)


def check_rendering(timeout: float) -> Iterator[Finding]:
    """Whether the simulator renders without a display."""
    if importlib.util.find_spec("mujoco") is None:
        yield Finding("rendering", "warn", "no simulator", "for simulated robots: uv sync --extra sim")
        return
    from depi.sim.gl import REMEDY

    found = _probe("rendering", timeout)
    problem = found.get("error") or found["problem"]
    if "slow" in found:
        yield Finding("rendering", "warn", f"MuJoCo gives {problem}", SLOW)
    elif problem:
        yield Finding("rendering", "warn", f"MuJoCo renders nothing: {problem}", REMEDY)
    else:
        yield Finding("rendering", "ok", f"MuJoCo, by {found['backend']}")


def check_hub(timeout: float) -> Iterator[Finding]:
    """Who is logged in, and whether PaliGemma's tokenizer, which pi0 needs, is available."""
    found = _probe("hub", timeout, TOKENIZER)
    if "error" in found or not found["reachable"]:
        named = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        where = found.get("endpoint") or without_credentials(named)
        problem = found.get("error") or found["problem"]
        remedy = "check the network and HF_ENDPOINT; what is cached trains with --dataset.offline=true"
        yield Finding("hub", "warn", f"{where} cannot be reached: {problem}", remedy)
    elif found["user"] is None:
        refused = found["problem"] == TOKEN_REFUSED
        remedy = f"make a token at {found['endpoint']}/settings/tokens, then: hf auth login"
        detail = f"{found['endpoint']}: {found['problem']}"
        yield Finding("hub", "fail" if refused else "warn", detail, remedy)
    elif found["role"] == "read":
        remedy = "to publish, log in with a token that may write: hf auth login"
        detail = f"{found['endpoint']}: {found['user']}, with a token that may only read"
        yield Finding("hub", "ok", detail, remedy)
    else:
        yield Finding("hub", "ok", f"{found['endpoint']}: {found['user']}")
    yield _tokenizer_finding(found)


def _tokenizer_finding(found: dict[str, Any]) -> Finding:
    if found.get("cached"):
        return Finding("tokenizer", "ok", f"{TOKENIZER} is in the cache")
    if "error" in found or not found["reachable"]:
        return Finding(
            "tokenizer", "warn", f"{TOKENIZER} is not in the cache", "pi0 needs it: download it once online"
        )
    if found["missing"]:
        remedy = f"ask for access at {found['endpoint']}/{TOKENIZER}, then: hf auth login"
        return Finding("tokenizer", "fail", f"{TOKENIZER}: {found['missing']}", remedy)
    return Finding("tokenizer", "ok", f"{TOKENIZER} can be downloaded")


def check_room() -> Iterator[Finding]:
    """Space where runs, downloads and caches go, and in shared memory, through which loaders send batches."""
    from huggingface_hub import constants

    places = {
        "outputs": Path("outputs"),
        "Hub cache": Path(constants.HF_HUB_CACHE),
        "DePi cache": cache_folder(),
    }
    for name, path in places.items():
        folder = path.absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        wanted, variable, reason = ROOM_WANTED[name]
        if not os.access(folder, os.W_OK):
            yield Finding(name, "fail", f"{path} cannot be written", f"choose another folder with {variable}")
            continue
        status: Status = "fail" if free < ROOM_NEEDED else "warn" if free < wanted else "ok"
        remedy = "" if status == "ok" else f"{reason}: make room, or name another disk with {variable}"
        yield Finding(name, status, f"{free / 1e9:.1f} GB free in {path}", remedy)
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        remedy = "start the container with --shm-size=16g (or --ipc=host), or train with --num_workers=0"
        enough = free >= SHARED_MEMORY_WANTED
        detail = f"{free / 1e9:.1f} GB free in {shared}"
        yield Finding("shared memory", "ok" if enough else "warn", detail, "" if enough else remedy)


def check_ray(address: str | None, timeout: float) -> Iterator[Finding]:
    """The cluster at an address, if there is one."""
    if address is None:
        return
    found = _probe("ray", timeout, address)
    if "error" in found:
        remedy = "start it with `ray start --head`, or name another one with --ray.address=HOST:PORT"
        yield Finding("ray", "fail", found["error"], remedy)
    else:
        detail = f"{address}: {found['nodes']} nodes, {found['cpus']:g} CPUs, {found['gpus']:g} GPUs"
        yield Finding("ray", "ok", detail)


def examine_gpus(config: DoctorConfig, tell: Callable[[Finding], None]) -> list[dict[str, Any]]:
    """Make all checks of the first GPU of each kind, tell each as it ends, and return the verdicts.

    Verdicts are kept, and are what trainings and robots on such a GPU follow.
    """
    found = _probe("gpus", config.timeout)
    names = [device["name"] for device in found.get("devices", ())]
    if not names:
        for finding in check_gpus(config.timeout):
            tell(finding)
        return []
    import torch

    from depi.policies.gpus import GROUPS, identity
    from depi.training.gpu.examination import examine as examine_gpu

    verdicts = []
    for number in sorted(map(names.index, dict.fromkeys(names))):
        device = torch.device("cuda", number)
        of = ", ".join(f"{key} {value}" for key, value in identity(device).items() if key != "code")
        tell(Finding(f"gpu {number}", "ok", of))
        made = examine_gpu(
            device, GROUPS, again=True, tell=lambda check, verdict: tell(_gpu_finding(check, verdict))
        )
        said = f"in {made.path}, for an issue; whatever trains or acts on such a GPU follows it"
        tell(Finding("verdict", "ok", said))
        verdicts.append(made.to_dict())
    return verdicts


def _gpu_finding(check: Any, verdict: Any) -> Finding:
    """A line for a check of a GPU; `verdict` has what failed so far."""
    from depi.policies.gpus import switch as switch_of

    switch = switch_of(check.name, verdict.failed)
    if check.status == "ok":
        return Finding(check.name, "ok", check.detail)
    if check.status == "skipped":
        return Finding(check.name, "skip", check.detail)
    remedy = (
        f"it is switched off by {switch}; trainings and robots do so by themselves"
        if switch
        else NOT_REPLACED
    )
    return Finding(check.name, "fail", check.detail, remedy)


def show(finding: Finding) -> None:
    """Print a finding, and what to do about it."""
    console = Console(highlight=False, soft_wrap=True)
    line = Text(f"{finding.status:<5}", style=STYLES[finding.status])
    console.print(line + Text(f" {finding.name}: {finding.detail}", style="default"))
    if finding.remedy:
        console.print(Text(f"      {finding.remedy}"))


def main(args: list[str]) -> int:
    """Run `depi doctor`."""
    config = parse_flags(DoctorConfig, args, "depi doctor")
    findings: list[Finding] = []
    if config.gpu:

        def tell(finding: Finding) -> None:
            findings.append(finding)
            if not config.json:
                show(finding)

        verdicts = examine_gpus(config, tell)
        if config.json:
            print(json.dumps(verdicts, indent=2))
    else:
        findings = examine(config)
        if config.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=2))
        else:
            for finding in findings:
                show(finding)
    return 1 if any(finding.status == "fail" for finding in findings) else 0
