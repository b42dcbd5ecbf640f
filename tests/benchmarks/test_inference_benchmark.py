"""The script that times action chunks: what it measures, what it prints, what it makes of failures."""

import json
import subprocess
import sys

import pytest

from depi.models.flops import sampling_flops


@pytest.fixture
def script(benchmarks):
    import inference

    return inference


def row(implementation, cameras, median_ms):
    return {
        "implementation": implementation,
        "cameras": cameras,
        "median_ms": median_ms,
        "device": "a device",
    }


@pytest.mark.parametrize("implementation", ["depi_plain", "depi_fused", "lerobot"])
def test_rows(script, tmp_path, implementation):
    results = tmp_path / "results.jsonl"
    flags = [f"--implementations={implementation}", f"--worker={results}", "--cameras=1,3"]
    script.work(script.parse(["--device=cpu", "--size=smoke", "--repeats=3", "--steps=4", *flags]))
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["cameras"] for row in rows] == ["1", "3"]
    for each in rows:
        assert 0 < each["median_ms"] <= each["p95_ms"]
        if implementation != "lerobot":
            assert each["prefix_ms"] + 4 * each["step_ms"] == pytest.approx(each["median_ms"], rel=0.01)


@pytest.mark.parametrize("implementation", ["depi_fused", "lerobot"])
def test_only_the_robots_cameras_are_encoded(script, implementation):
    options = script.parse(["--device=cpu", "--size=smoke", f"--implementations={implementation}"])
    policy = script.make_policy(options)
    if implementation == "lerobot":
        vision = policy.model.paligemma_with_expert.paligemma.model.vision_tower
    else:
        vision = policy.model.vision
    images = []
    vision.register_forward_pre_hook(
        lambda _module, args, kwargs: images.append(len((*args, *kwargs.values())[0])), with_kwargs=True
    )
    for cameras in (3, 1):
        images.clear()
        script.chunk_of(policy, options, cameras)(2)
        assert sum(images) == cameras


def test_share_of_the_peak_is_of_what_the_chunk_needs(script, monkeypatch):
    options = script.parse(["--device=cpu", "--size=smoke", "--implementations=depi_plain", "--steps=4"])
    policy = script.make_policy(options)
    assert script.share_of_peak(policy, options, 2, 0.5) is None
    monkeypatch.setattr("depi.training.utilisation.peak_flops", lambda _: 1e12)
    needed = sampling_flops(policy.model.dimensions, 2, script.PROMPT_TOKENS, 4)
    assert script.share_of_peak(policy, options, 2, 0.5) == pytest.approx(needed / 0.5e12)


def test_what_is_not_measured_is_a_row_too(script):
    flags = ["--device=cpu", "--size=smoke", "--cameras=1,2", "--time_limit_s=0.2"]
    rows = script.run_worker(script.parse(flags), "lerobot")
    assert [(row["cameras"], row["error"]) for row in rows] == [
        ("1", "stopped after 0 s"),
        ("2", "stopped after 0 s"),
    ]
    script.show(rows)


def test_unknown_implementations(script, capsys):
    with pytest.raises(SystemExit):
        script.parse(["--implementations=depi,openpi"])
    assert "openpi is none of depi_plain" in capsys.readouterr().err


def test_last_line(script):
    rows = [
        row("depi_plain", "1", 40.0),
        row("depi_plain", "3", 60.0),
        row("depi", "1", 10.0),
        row("depi", "3", 20.0),
        row("lerobot", "1", 80.0),
        row("lerobot", "3", 50.0),
        {"implementation": "lerobot_compiled", "cameras": "3", "error": "stopped after 1800 s"},
    ]
    assert script.summary(rows) == {
        "device": "a device",
        "implementation": "depi",
        "latency_ms": {"1": 10.0, "3": 20.0},
        "lerobot_latency_ms": {"1": 80.0, "3": 50.0},
        "speedup_vs_lerobot": 2.5,
    }
    alone = script.summary(rows[:2])
    assert alone["latency_ms"] == {"1": 40.0, "3": 60.0}
    assert alone["speedup_vs_lerobot"] is None
    assert script.summary(rows[-1:])["latency_ms"] == {}


def test_quantiles(script):
    times = [float(number) for number in range(1, 21)]
    assert (script.quantile(times, 0.5), script.quantile(times, 0.95)) == (11.0, 20.0)
    assert script.quantile([7.0], 0.95) == 7.0


@pytest.mark.slow
def test_each_implementation_has_its_own_process(benchmarks):
    command = [
        sys.executable,
        str(benchmarks / "inference.py"),
        "--device=cpu",
        "--size=smoke",
        "--repeats=2",
    ]
    flags = ["--cameras=2", "--implementations=depi,lerobot"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=280)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["latency_ms"]["2"] > 0
    assert last["speedup_vs_lerobot"] > 0


@pytest.mark.gpu
def test_on_a_gpu(benchmarks):
    command = [
        sys.executable,
        str(benchmarks / "inference.py"),
        "--size=smoke",
        "--repeats=5",
        "--cameras=1,3",
    ]
    flags = ["--implementations=depi_plain,depi_fused,lerobot"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True, timeout=280)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["implementation"] == "depi_fused"
    assert set(last["latency_ms"]) == {"1", "3"}
