import json
import os
import shutil
import socket
import sys
from collections import namedtuple

import pytest
from huggingface_hub import HfApi

from depi import cli, doctor, probes
from depi.doctor import Finding

TOKENIZER = doctor.TOKENIZER
GIGABYTE = 10**9


def by_name(findings) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def probed(monkeypatch, **answers) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda name, timeout, *args: answers[name])


def hub_findings() -> dict[str, Finding]:
    return by_name(doctor.check_hub(60))


def test_doctor_looks_at_everything_for_real(hub, capsys):
    status = cli.main(["doctor", "--json", "--timeout=120"])
    found = {line["name"]: line for line in json.loads(capsys.readouterr().out)}
    assert status == (1 if any(line["status"] == "fail" for line in found.values()) else 0)
    assert found["python"]["status"] == "ok"
    assert found["lerobot"]["detail"] == "0.6.1"
    assert {"video H.264", "video AV1", "rendering", "outputs", "Hub cache", "DePi cache"} <= set(found)
    assert found["video H.264"]["status"] != "fail"
    assert found["hub"] == {
        "name": "hub",
        "status": "ok",
        "detail": f"{hub.endpoint}: depi",
        "remedy": "",
    }
    assert found["tokenizer"]["status"] == "ok"
    assert all(line["remedy"] for line in found.values() if line["status"] != "ok")
    assert "ray" not in found


def test_lines_say_what_to_type(monkeypatch, capsys):
    findings = [Finding("a", "ok", "well"), Finding("b", "warn", "so so", "try [this]")]
    monkeypatch.setattr(doctor, "examine", lambda config: findings)
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == "ok    a: well\nwarn  b: so so\n      try [this]\n"
    findings.append(Finding("c", "fail", "broken", "mend it"))
    assert cli.main(["doctor"]) == 1


def test_login_and_gate(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    found = hub_findings()
    assert (found["hub"].status, found["hub"].detail) == (
        "ok",
        f"{hub.endpoint}: reader, with a token that may only read",
    )
    owner = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    if not owner.repo_exists(TOKENIZER):
        owner.create_repo(TOKENIZER)
    owner.update_repo_settings(TOKENIZER, gated="manual")
    found = hub_findings()
    assert found["tokenizer"].status == "fail"
    assert found["tokenizer"].remedy.startswith(f"ask for access at {hub.endpoint}/{TOKENIZER}")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert hub_findings()["hub"].detail == f"{hub.endpoint}: the token is refused"
    assert hub_findings()["hub"].status == "fail"


def test_nobody_is_logged_in(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    found = hub_findings()["hub"]
    assert (found.status, found.detail) == ("warn", f"{hub.endpoint}: nobody is logged in")
    assert found.remedy == f"make a token at {hub.endpoint}/settings/tokens, then: hf auth login"


def test_a_hub_that_is_away_is_no_failure(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    found = hub_findings()
    assert found["hub"].status == "warn"
    assert "http://127.0.0.1:9 cannot be reached" in found["hub"].detail
    assert found["tokenizer"].status == "warn"


def test_a_hub_that_hangs_is_given_up(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        found = by_name(doctor.check_hub(3))
    assert "no answer within 3 s" in found["hub"].detail
    assert found["tokenizer"].status == "warn"


def test_missing_packages_and_programs(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("av", "no-such-package"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sys, "version_info", (3, 11, 2))
    found = by_name(doctor.check_versions())
    assert {name: finding.status for name, finding in found.items()} == {
        "python": "fail",
        "av": "ok",
        "no-such-package": "fail",
        "ffmpeg": "warn",
    }
    assert "apt-get install ffmpeg" in found["ffmpeg"].remedy


CARD = {"name": "NVIDIA H200", "free": 140 * GIGABYTE, "total": 150 * GIGABYTE, "bf16": True}


@pytest.mark.parametrize(
    ("answer", "smi", "status", "says"),
    [
        (
            {"cuda": "12.8", "devices": [CARD], "mps": False},
            True,
            "ok",
            "H200, 140 of 150 GB free, CUDA 12.8",
        ),
        ({"cuda": "12.8", "devices": [CARD | {"bf16": False}], "mps": False}, True, "warn", "H200"),
        ({"cuda": "12.8", "devices": [], "mps": False}, True, "fail", "PyTorch reaches no GPU"),
        ({"cuda": "12.8", "devices": [], "mps": False}, False, "warn", "none"),
        ({"cuda": None, "devices": [], "mps": True}, False, "ok", "mps"),
        ({"error": "No module named 'torch'"}, False, "fail", "No module named 'torch'"),
    ],
)
def test_gpus(monkeypatch, answer, smi, status, says):
    probed(monkeypatch, gpus=answer)
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/nvidia-smi" if smi else None)
    (finding,) = doctor.check_gpus(60)
    assert finding.status == status
    assert says in finding.detail
    assert bool(finding.remedy) == (status != "ok")


def test_a_decoder_that_is_missing_is_a_warning_and_both_a_failure(monkeypatch):
    probed(
        monkeypatch,
        pyav={"h264": "", "av1": "no AV1"},
        torchcodec={"error": "Could not load libtorchcodec"},
    )
    found = by_name(doctor.check_codecs(60))
    assert found["video H.264"].status == "warn"
    assert "torchcodec does not decode it (Could not load libtorchcodec)" in found["video H.264"].detail
    assert "apt-get install ffmpeg" in found["video H.264"].remedy
    assert found["video AV1"].status == "fail"


def test_a_probe_that_crashes_or_hangs_is_a_finding(monkeypatch):
    assert doctor._probe("gpus", 0.01) == {"error": "no answer within 0.01 s", "slow": True}
    assert doctor._probe("no_such_probe", 60) == {"error": "'no_such_probe'"}
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert doctor._probe("gpus", 60) == {"error": "it ended with status 1"}


def test_a_probe_that_was_only_slow_is_no_reason_to_install_anything(monkeypatch):
    slow = {"error": "no answer within 9 s", "slow": True}
    probed(monkeypatch, gpus=slow, pyav={"h264": "", "av1": ""}, torchcodec=slow, rendering=slow)
    found = [*doctor.check_gpus(9), *doctor.check_codecs(9), *doctor.check_rendering(9)]
    assert {finding.status for finding in found} == {"warn"}
    assert {finding.remedy for finding in found} == {doctor.SLOW}
    assert all("no answer within 9 s" in finding.detail for finding in found)


def test_a_codec_that_loses_frames_is_told(monkeypatch):
    monkeypatch.setattr(probes, "_decode_with_pyav", lambda path: 5)
    assert probes.pyav()["h264"] == "5 of 6 frames came out"


def test_without_a_simulator_or_opengl(monkeypatch):
    probed(monkeypatch, rendering={"error": "no EGL"})
    (finding,) = doctor.check_rendering(60)
    assert finding.status == "warn"
    assert "libegl1" in finding.remedy
    monkeypatch.setitem(sys.modules, "mujoco", None)
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    (finding,) = doctor.check_rendering(60)
    assert "--extra sim" in finding.remedy


def test_room(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    free = {"value": 500 * GIGABYTE}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, free["value"]))
    monkeypatch.chdir(tmp_path)
    assert {finding.status for finding in doctor.check_room()} == {"ok"}
    free["value"] = GIGABYTE // 2
    found = by_name(doctor.check_room())
    assert found["outputs"].status == "fail"
    assert "--output_dir" in found["outputs"].remedy
    assert "--shm-size" in found["shared memory"].remedy
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert by_name(doctor.check_room())["outputs"].detail == "outputs cannot be written"


def test_a_ray_cluster_that_is_not_there(monkeypatch):
    assert list(doctor.check_ray(None, 60)) == []
    (finding,) = doctor.check_ray("127.0.0.1:9", 60)
    assert finding.status == "fail"
    assert "no Ray cluster answers at 127.0.0.1:9" in finding.detail
    probed(monkeypatch, ray={"nodes": 2, "cpus": 64.0, "gpus": 8.0})
    (finding,) = doctor.check_ray("head:6379", 60)
    assert (finding.status, finding.detail) == ("ok", "head:6379: 2 nodes, 64 CPUs, 8 GPUs")
