"""Checks of a GPU: what they find where all is right and where something is wrong, and what a run does."""

import json
import logging
import re
import sys
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from depi import cli, doctor, fingerprint
from depi.models.flow import FlowNetwork
from depi.models.pi0 import Pi0Dimensions
from depi.models.scene import SceneReader
from depi.policies import gpus
from depi.policies.choices import choices_of
from depi.policies.gpus import GROUPS, Check, Verdict, saved_verdict, switch
from depi.training.config import TrainConfig
from depi.training.gpu import child, examination, kernels, networks
from depi.training.gpu.checking import WrongError
from depi.training.gpu.examination import examine, first_contact, leave_out, run_group

CPU = torch.device("cpu")
SIZES = kernels.Sizes(
    lengths=(20, 13),
    heads=4,
    head_dim=16,
    steps=6,
    images=2,
    patches=9,
    vision_heads=2,
    vision_head_dim=8,
    width=32,
    mlp_dim=64,
)
TINY = Pi0Dimensions.tiny(depth=2, chunk_size=5, image_size=28, vocab_size=64)
OF = {"gpu": "NVIDIA H200", "driver": "580.1", "torch": "2.11.0"}


def by_name(checks) -> dict[str, Check]:
    return {check.name: check for check in checks}


def failing(*names) -> Verdict:
    return Verdict(OF, tuple(Check(name, "fail", "off by 1") for name in names))


def test_right_kernels_pass():
    found = by_name(kernels.check_kernels(CPU, SIZES))
    assert tuple(found) == GROUPS["kernels"][0]
    assert found["attention varlen"].status == "skipped"
    for name in ("attention flash", "attention efficient", "attention math", "fused optimizer", "float8"):
        assert found[name].status == "ok", found[name]
    figures = found["attention efficient"].figures
    assert 0 < figures["error, gradient of the suffix's values"] < 0.01
    assert figures["ms forward, vision tower"] > 0


def test_a_list_is_compared_sequence_by_sequence(monkeypatch):
    def in_a_list(q, k, v, starts, longest):
        parts = [[x[a:b].transpose(0, 1) for x in (q, k, v)] for a, b in pairwise(starts.tolist())]
        return torch.cat([kernels.plain_attention(*part).transpose(0, 1) for part in parts]).flatten(1)

    monkeypatch.setattr(kernels, "_calls", lambda *args: [kernels._list_call(CPU, SIZES)])
    monkeypatch.setattr(kernels, "list_attention", in_a_list)
    assert kernels.measure_attention("varlen", CPU, SIZES)[0].startswith("right to")
    one = torch.tensor([0, sum(SIZES.lengths) + 5])
    monkeypatch.setattr(kernels, "list_attention", lambda q, k, v, *_: in_a_list(q, k, v, one, None))
    with pytest.raises(WrongError, match="prefix in a list"):
        kernels.measure_attention("varlen", CPU, SIZES)


def faulty(fault):
    """An attention with a fault."""
    right = kernels.attention

    def compute(q, k, v, bias, backends):
        if fault == "raises":
            raise RuntimeError("CUDA error: invalid argument\nCompile with TORCH_USE_CUDA_DSA")
        if fault == "memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        if fault == "gradient":
            return right(q, k, 0.9 * v + 0.1 * v.detach(), bias, backends)
        return right(q, k, v, bias, backends) * (torch.nan if fault == "nan" else 1.05)

    return compute


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("nan", "fail", "is not finite"),
        ("raises", "fail", "CUDA error: invalid argument$"),
        ("gradient", "fail", "gradient of the (prefix|suffix)'s values is off by 0.1"),
        ("scale", "fail", "is off by 0.05"),
        ("memory", "skipped", "too little free memory"),
    ],
)
def test_wrong_attention_is_found(monkeypatch, fault, status, says):
    monkeypatch.setattr(kernels, "attention", faulty(fault))
    found = by_name(kernels.check_kernels(CPU, SIZES))
    for name in ("attention efficient", "attention math"):
        assert found[name].status == status
        assert re.search(says, found[name].detail)
        assert found[name].final == (fault != "memory")
        json.dumps(found[name].figures, allow_nan=False)
    assert found["attention flash"].status == "ok"


@pytest.mark.parametrize(
    ("ignored", "says"),
    [
        ("found_inf", "a step that is to be left out changes the weights"),
        ("grad_scale", "the change of the weights is off by"),
    ],
)
def test_an_optimizer_that_ignores_what_it_is_told_is_found(monkeypatch, ignored, says):
    class Heedless(torch.optim.AdamW):
        def step(self):
            self.__dict__.pop(ignored, None)
            super().step()

    monkeypatch.setattr(torch.optim, "AdamW", Heedless)
    found = by_name(kernels.check_kernels(CPU, SIZES))["fused optimizer"]
    assert found.status == "fail"
    assert says in found.detail


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("none", "ok", "right to 0.0"),
        ("scale", "fail", "product in float8 is off by 0.1"),
        ("gradient", "fail", "gradient of its weights is off by 0.3"),
        ("raises", "fail", "CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"),
        ("absent", "skipped", "not available: it needs an NVIDIA GPU of compute capability 8.9 or higher"),
    ],
)
def test_products_in_float8(monkeypatch, fault, status, says):
    multiply = torch._scaled_mm

    def faulty(x, y, x_unit, y_unit, out_dtype, use_fast_accum=False):
        if fault == "raises":
            raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasLtMatmul")
        of_weights = out_dtype == torch.float32
        wrong = {"scale": 1.1 * use_fast_accum, "gradient": 1.3 * of_weights}.get(fault) or 1.0
        return wrong * multiply(x, y, x_unit, y_unit, out_dtype=out_dtype)

    monkeypatch.setattr(torch, "_scaled_mm", faulty)
    monkeypatch.setattr(kernels, "takes_float8", lambda device: fault != "absent")
    (found,) = kernels.check_kernels(CPU, SIZES, wanted=["float8"])
    assert (found.status, found.final) == (status, True), found
    assert says in found.detail


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("none", "ok", "compiled in 0 s"),
        ("wrong", "fail", "compiled chunk is off by"),
        ("raises", "fail", "triton.PTXASError: no ptxas"),
    ],
)
def test_compiled_chunks_against_plain_ones(monkeypatch, fault, status, says):
    def compile_for_sampling(self):
        if fault == "raises":
            raise RuntimeError("SubprocException: in a subprocess:\n  ...\ntriton.PTXASError: no ptxas\n\n")
        if fault == "wrong":
            plain = self.respond
            self.respond = lambda *inputs: 1.1 * plain(*inputs)

    monkeypatch.setattr(FlowNetwork, "compile_for_sampling", compile_for_sampling)
    (found,) = networks.check_graph(CPU, TINY, wanted=["compiled chunk"])
    assert found.status == status, found
    assert says in found.detail


def compile_with(monkeypatch, compile_layers):
    monkeypatch.setattr(SceneReader, "compile_layers", compile_layers)


@pytest.mark.parametrize(
    ("fault", "status", "says"),
    [
        ("none", "ok", "right to"),
        ("wrong", "fail", "gradient is off by"),
        ("raises", "fail", "triton.PTXASError: no ptxas"),
    ],
)
def test_compiled_layers_against_eager_ones(monkeypatch, fault, status, says):
    eager, layer = SceneReader.compile_layers, networks.Pi0Policy.forward

    def compile_layers(self):
        if fault == "raises":
            raise RuntimeError("SubprocException: in a subprocess:\n  ...\ntriton.PTXASError: no ptxas\n\n")
        if fault == "wrong":
            monkeypatch.setattr(
                networks.Pi0Policy, "forward", lambda self, batch: (1.3 * layer(self, batch)[0], {})
            )
        eager(self, backend="eager")

    compile_with(monkeypatch, compile_layers)
    (found,) = networks.check_compile(CPU, TINY)
    assert found.status == status, found
    assert says in found.detail


def test_whole_network_on_a_processor():
    found = by_name(networks.check_whole(CPU, TINY, batch_size=4))
    assert {name: check.status for name, check in found.items()} == {
        "training steps": "ok",
        "memory": "skipped",
        "chunk": "ok",
    }
    figures = found["training steps"].figures
    assert figures["images a step"] == 9
    assert figures["ms a step"] > 0
    assert [check.status for check in networks.check_graph(CPU, TINY, wanted=["CUDA graph"])] == ["skipped"]


def saying(*lines, then="pass") -> tuple[str, ...]:
    """A command that prints lines, and does something then."""
    said = "".join(f"print({line!r}, flush=True);" for line in lines)
    return sys.executable, "-c", f"import json, os, sys, time; {said} {then}"


READY = json.dumps("ready")
# A child that makes its first check well, and does something before the second one of the group.
FIRST = "print(json.dumps({'name': sys.argv[3], 'status': 'ok', 'detail': 'right'}), flush=True);"
THEN = "'memory' in sys.argv[3:] and "


@pytest.mark.parametrize(
    ("then", "found"),
    [
        (f"[{FIRST[:-1]} for sys.argv[3] in sys.argv[3:]]", ["ok right"] * 3),
        (
            f"{FIRST} {THEN} os.kill(os.getpid(), 11)",
            ["ok right", "fail the process ended with status -11", "ok right"],
        ),
        (
            f"{THEN} sys.exit('CUDA error: misaligned address'); {FIRST}",
            [*["fail the process ended with status 1: CUDA error: misaligned address"] * 2, "ok right"],
        ),
        (f"{FIRST} {THEN} time.sleep(60)", ["ok right", "fail no answer within 1 s", "ok right"]),
    ],
    ids=["well", "killed", "error", "hangs"],
)
def test_a_group_that_does_not_end(monkeypatch, then, found):
    monkeypatch.setitem(GROUPS, "whole", (GROUPS["whole"][0], 1 if "sleep" in then else 30))
    checks = list(run_group("whole", CPU, saying(READY, "a library says this", then=then)))
    assert [f"{check.status} {check.detail}" for check in checks] == found
    assert [check.name for check in checks] == list(GROUPS["whole"][0])
    assert all(check.final for check in checks)


def test_a_device_that_does_not_answer():
    checks = list(run_group("whole", CPU, saying("[]", then="sys.exit('all devices are busy')")))
    said = "the checks did not begin: the process ended with status 1: all devices are busy"
    assert checks == [Check(name, "skipped", said, final=False) for name in GROUPS["whole"][0]]
    known = Verdict(OF, (Check("memory", "fail", "80 GB"),)).with_checks(checks)
    assert by_name(known.checks)["memory"].status == "fail"


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """A cache of its own, and a GPU by name."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path))
    monkeypatch.setattr(gpus, "identity", lambda device: OF)
    return tmp_path


def test_a_verdict_is_kept_for_its_kind(kept, monkeypatch):
    made = []

    def make(group, device):
        made.append(group)
        return [Check(name, "ok", "right", {"error": 0.1}) for name in GROUPS[group][0]]

    monkeypatch.setattr(examination, "run_group", make)
    first = examine(CPU, ["kernels"])
    assert examine(CPU, ["kernels"]) == first
    assert made == ["kernels"]
    both = examine(CPU, ["kernels", "compile"])
    assert made == ["kernels", "compile"]
    assert [check.name for check in both.checks] == [*GROUPS["kernels"][0], "compile"]
    content = json.loads(first.path.read_text())
    assert content["gpu"] == "NVIDIA H200"
    assert first.path.parent == kept / "gpus"
    first.path.write_text("[1]")
    assert not saved_verdict(CPU).checks
    monkeypatch.setattr(gpus, "identity", lambda device: OF | {"driver": "590.2"})
    examine(CPU, ["kernels"])
    assert made[2:] == ["kernels"]


@pytest.mark.parametrize(
    "module",
    [
        *("depi.models.attention", "depi.models.capture", "depi.models.float8", "depi.models.inference"),
        *("depi.policies.pi0", "depi.training.optimizer", "depi.training.gpu.networks"),
    ],
)
def test_a_verdict_is_of_the_code_that_was_checked(monkeypatch, tmp_path, module):
    """Another digest is another verdict; what makes the checks is all that the table names."""
    assert {name for name, _ in child.GROUPS.values()} == set(gpus.MADE_BY)
    assert child.GROUPS.keys() == GROUPS.keys()
    digest, find = fingerprint.code.__wrapped__, fingerprint._file
    before = digest(*gpus.MADE_BY)
    changed = tmp_path / "changed.py"
    changed.write_text(find(module).read_text() + "# changed")
    monkeypatch.setattr(fingerprint, "_file", lambda name: changed if name == module else find(name))
    assert digest(*gpus.MADE_BY) != before


def test_what_was_skipped_for_now_is_tried_again():
    made = [Check(name, "skipped", "not for it") for name in GROUPS["whole"][0]]
    short = [*made[:2], Check("chunk", "skipped", "no memory", final=False)]
    assert Verdict(OF).with_checks(short).lacks("whole")
    assert not Verdict(OF).with_checks(short).with_checks(made).lacks("whole")
    assert not Verdict(OF).with_checks(made).with_checks(short).lacks("whole")
    assert Verdict(OF).with_checks(made).lacks("graph")


def test_flags_that_switch_off():
    varlen = "--policy.attention_backends=flash,efficient,math"
    assert switch("attention varlen", ["attention varlen"]) == varlen
    both = ["attention varlen", "attention efficient"]
    assert switch("attention efficient", both) == "--policy.attention_backends=flash,math"
    assert switch("attention math", ["attention math"]) == ""
    assert switch("compile", ["compile"]) == "--compile=false"
    assert switch("CUDA graph", ["CUDA graph"]) == "--policy.cuda_graphs=false"
    assert switch("compiled chunk", ["compiled chunk"]) == "--policy.compile_chunks=false"
    assert switch("float8", ["float8"]) == "--policy.float8=false"
    assert switch("fused optimizer", ["fused optimizer"]) == ""
    told = failing("attention varlen", "memory").to_dict()["checks"]
    assert [each["switched_off_by"] for each in told] == [varlen, ""]


def test_a_run_leaves_out_what_failed(caplog):
    config = TrainConfig(policy=PI0Config(device="cpu"), compile=True)
    with caplog.at_level(logging.WARNING):
        leave_out(config, failing("attention varlen", "compile", "CUDA graph", "fused optimizer"))
    choices = choices_of(config.policy)
    assert (choices.attention_backends, choices.cuda_graphs) == ("flash,efficient,math", False)
    assert not config.compile
    assert [record.getMessage() for record in caplog.records] == [
        "attention varlen fails on NVIDIA H200 (off by 1): switched off, as by "
        "--policy.attention_backends=flash,efficient,math; `depi doctor --gpu` tells more",
        "compile fails on NVIDIA H200 (off by 1): switched off, as by --compile=false; "
        "`depi doctor --gpu` tells more",
        "CUDA graph fails on NVIDIA H200 (off by 1): switched off, as by --policy.cuda_graphs=false; "
        "`depi doctor --gpu` tells more",
        "fused optimizer fails on NVIDIA H200 (off by 1), and nothing replaces it: see `depi doctor --gpu`",
    ]


def test_a_run_leaves_float8_out_where_it_asks_for_it(caplog):
    for asked in (True, False):
        policy = PI0Config(device="cpu", dtype="bfloat16")
        policy.float8 = asked
        leave_out(TrainConfig(policy=policy), failing("float8"))
        assert policy.float8 is False
    (record,) = caplog.records
    assert record.getMessage() == (
        "float8 fails on NVIDIA H200 (off by 1): switched off, as by --policy.float8=false; "
        "`depi doctor --gpu` tells more"
    )


def test_a_run_says_nothing_of_what_it_does_not_use(caplog):
    config = TrainConfig(policy=PI0Config(device="cpu"))
    config.policy.attention_backends = "efficient"
    with caplog.at_level(logging.WARNING):
        leave_out(config, failing("attention varlen", "compile"))
    assert not caplog.records
    assert config.policy.attention_backends == "efficient"


@pytest.mark.parametrize(
    ("device", "policy", "flags"),
    [
        ("cpu", PI0Config(device="cpu", dtype="bfloat16"), {}),
        ("cuda", PI0Config(device="cpu", dtype="float32"), {}),
        ("cuda", PI0Config(device="cpu", dtype="bfloat16"), {"gpu_check": False}),
        ("cuda", ACTConfig(device="cpu"), {}),
    ],
)
def test_where_nothing_is_checked(monkeypatch, device, policy, flags):
    asked = []
    monkeypatch.setattr(examination, "saved_verdict", asked.append)
    first_contact(TrainConfig(policy=policy, **flags), SimpleNamespace(device=torch.device(device)))
    assert asked == []


def test_the_doctor_tells_each_kind_of_gpu(kept, monkeypatch, capsys):
    cards = [{"name": "A"}, {"name": "B"}, {"name": "A"}]
    monkeypatch.setattr(doctor, "_probe", lambda name, timeout: {"devices": cards})
    examined = []

    def make(group, device):
        examined.append((group, device.index))
        names = GROUPS[group][0]
        return [
            Check(names[0], "fail", "off by 1"),
            *(Check(name, "skipped", "not reached") for name in names[1:]),
        ]

    monkeypatch.setattr(examination, "run_group", make)
    assert cli.main(["doctor", "--gpu"]) == 1
    assert examined == [(group, number) for number in (0, 1) for group in GROUPS]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "ok    gpu 0: gpu NVIDIA H200, driver 580.1, torch 2.11.0",
        "fail  attention varlen: off by 1",
        "      it is switched off by --policy.attention_backends=flash,efficient,math; trainings and "
        "robots do so by themselves",
        "skip  attention flash: not reached",
    ]
    assert cli.main(["doctor", "--gpu", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [each["checks"][0]["switched_off_by"] for each in told] == [
        "--policy.attention_backends=flash,efficient,math"
    ] * 2
    assert saved_verdict(CPU).failed.keys() == {names[0] for names, _ in GROUPS.values()}


def test_the_doctor_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_probe", lambda name, timeout: {"devices": [], "mps": True, "cuda": None})
    assert cli.main(["doctor", "--gpu"]) == 0
    assert capsys.readouterr().out == "ok    gpu: Apple's, by --policy.device=mps\n"
