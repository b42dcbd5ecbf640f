"""The order of the RECAP loop, what its commands read, and that nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from depi.cli import main
from depi.errors import UserError
from depi.evaluation import config as evaluation_config
from depi.files import read_json
from depi.flags import parse_flags
from depi.recap.loop import run_loop, run_stage
from depi.recap.loop_config import RecapConfig
from depi.recap.stages import Stage, check_stages, data, merge, plan, to_args
from depi.sim.record import record_dataset
from depi.sim.setup import Camera, Setup

CONFIGS = Path(__file__).parents[2] / "configs" / "recap"

DEMOS = [{"repo_id": "alice/touch", "root": "recordings/touch"}]


def config(tmp_path: Path, **changes) -> RecapConfig:
    return RecapConfig(
        **{
            "output_dir": tmp_path / "recap",
            "demonstrations": DEMOS,
            "start_from": "sft",
            "sft": {"policy": {"type": "depi_pi0"}, "steps": 10},
            "value": {"policy": {"type": "value", "c_fail": 40}, "steps": 20},
            "env": {"type": "so101", "task": "touch"},
            "rollouts": {"eval": {"n_episodes": 30}},
            "evaluation": {"eval": {"n_episodes": 100}, "seed": 1000},
            **changes,
        }
    )


@pytest.fixture
def commands(monkeypatch) -> list[list[str]]:
    """The commands that would have been run."""
    noted: list[list[str]] = []
    monkeypatch.setattr("depi.recap.loop.run_command", lambda command, lock: noted.append(command) or 0)
    return noted


def flags(stage: Stage) -> dict[str, str]:
    return dict(arg[2:].split("=", 1) for arg in stage.command if arg.startswith("--"))


def test_stages_come_in_the_order_of_the_method(tmp_path):
    names = [stage.name for stage in plan(config(tmp_path))]
    assert names == [
        "sft",
        "value",
        "sft_eval",
        *(f"iteration_1/{part}" for part in ("rollouts", "value", "advantage", "policy", "eval")),
        *(f"iteration_2/{part}" for part in ("rollouts", "value", "advantage", "policy", "eval")),
        "baseline_no_advantages/policy",
        "baseline_no_advantages/eval",
    ]


def test_each_stage_reads_what_the_ones_before_have_written(tmp_path):
    stages = {stage.name: flags(stage) for stage in plan(config(tmp_path))}
    root = tmp_path / "recap"
    checkpoint = "checkpoints/last/pretrained_model"
    assert stages["sft"]["advantage.mode"] == "on"
    assert stages["iteration_1/rollouts"]["policy.path"] == str(root / "sft" / checkpoint)
    assert stages["iteration_2/rollouts"]["policy.path"] == str(root / "iteration_1/policy" / checkpoint)
    for iteration in (1, 2):
        value = stages[f"iteration_{iteration}/value"]
        assert value["policy.path"] == str(root / "value" / checkpoint)
        assert value["policy.c_fail"] == "40"
        assert "policy.type" not in value
        advantage = stages[f"iteration_{iteration}/advantage"]
        assert advantage["policy.path"] == str(root / f"iteration_{iteration}/value" / checkpoint)
        policy = stages[f"iteration_{iteration}/policy"]
        assert policy["advantage.path"] == advantage["output_dir"]
        assert policy["policy.path"] == str(root / "sft" / checkpoint)
    assert stages["baseline_no_advantages/policy"]["advantage.mode"] == "off"
    assert (
        stages["baseline_no_advantages/policy"]["policy.path"] == stages["iteration_2/policy"]["policy.path"]
    )


def test_the_value_function_begins_with_what_the_first_policy_has_seen(tmp_path):
    value = {"policy": {"type": "value", "init_from": "sft"}}
    own = {stage.name: flags(stage) for stage in plan(config(tmp_path, value=value))}
    assert own["value"]["policy.init_from"] == own["sft_eval"]["policy.path"]
    given = {stage.name: flags(stage) for stage in plan(config(tmp_path, value=value, given={"sft": "a/b"}))}
    assert given["value"]["policy.init_from"] == "a/b"
    for other in ("a/b", str(tmp_path)):
        value["policy"]["init_from"] = other
        own = {stage.name: flags(stage) for stage in plan(config(tmp_path, value=value))}
        assert own["value"]["policy.init_from"] == other
    value["policy"]["init_from"] = "stf"  # said before the hours of the first policy's training
    with pytest.raises(ValueError, match="init_from is 'stf': neither sft, the stage, nor"):
        config(tmp_path, value=value)


def test_baselines_learn_from_the_same_data_without_advantages_or_from_its_successes(tmp_path):
    value = {"policy": {"type": "value"}, "dataset": {"assume_success": True, "cameras": "view"}}
    chosen = config(tmp_path, baselines=["successes", "no_advantages"], value=value)
    stages = {stage.name: stage for stage in plan(chosen)}
    assert list(stages)[-4:] == [
        *("baseline_successes/policy", "baseline_successes/eval"),
        *("baseline_no_advantages/policy", "baseline_no_advantages/eval"),
    ]
    successes, same_data, last = (
        flags(stages[f"{name}/policy"])
        for name in ("baseline_successes", "baseline_no_advantages", "iteration_2")
    )
    assert successes["dataset.only_successes"] == successes["dataset.assume_success"] == "true"
    assert "dataset.cameras" not in successes
    assert "dataset.only_successes" not in same_data
    for each in (successes, same_data):
        assert each["advantage.mode"] == "off"
        assert each["policy.path"] == last["policy.path"]
    assert stages["baseline_successes/policy"].files[0][1] == stages["iteration_2/policy"].files[0][1]
    with pytest.raises(ValueError, match="nothing is none of no_advantages, successes"):
        config(tmp_path, baselines=["nothing"])


def test_successes_alone_are_cloned_in_every_iteration(tmp_path):
    value = {"policy": {"type": "value"}, "dataset": {"assume_success": True}}
    stages = plan(config(tmp_path, learn_from="successes", value=value))
    assert [stage.name for stage in stages] == [
        *("sft", "sft_eval"),
        *(f"iteration_1/{part}" for part in ("rollouts", "policy", "eval")),
        *(f"iteration_2/{part}" for part in ("rollouts", "policy", "eval")),
        *("baseline_no_advantages/policy", "baseline_no_advantages/eval"),
    ]
    check_stages(stages)
    read = {stage.name: flags(stage) for stage in stages}
    assert {each["advantage.mode"] for each in read.values() if "advantage.mode" in each} == {"off"}
    for name in ("iteration_1/policy", "iteration_2/policy"):
        assert read[name]["dataset.only_successes"] == read[name]["dataset.assume_success"] == "true"
    assert "dataset.only_successes" not in read["baseline_no_advantages/policy"]
    with pytest.raises(ValueError, match="--learn_from=success is none of advantages, successes"):
        config(tmp_path, learn_from="success")
    with pytest.raises(ValueError, match="successes is what --learn_from=successes trains by itself"):
        config(tmp_path, learn_from="successes", baselines=["successes"])
    with pytest.raises(ValueError, match="asks no value function, leave out value"):
        config(tmp_path, learn_from="successes", given={"value": "USER/value"})


def test_advantages_take_the_successes_that_the_value_function_learnt(tmp_path):
    changes = {
        "train": {"dataset": {"success": "a.json", "cameras": "view", "exclude": "short.json"}},
        "value": {"policy": {"type": "value"}, "dataset": {"assume_success": True}},
        "advantage": {"dataset": {"success": "b.json"}},
    }
    for advantage, success in ((changes["advantage"], "b.json"), ({}, "a.json")):
        stages = plan(config(tmp_path, **changes | {"advantage": advantage}))
        found = next(flags(stage) for stage in stages if stage.name == "iteration_1/advantage")
        assert found["dataset.success"] == success
        assert found["dataset.assume_success"] == "true"
        # The checkpoint says how frames are read; advantages are of all of them.
        assert "dataset.cameras" not in found
        assert "dataset.exclude" not in found


def test_rollouts_and_evaluations_never_share_a_seed(tmp_path):
    stages = {stage.name: flags(stage) for stage in plan(config(tmp_path, iterations=3))}
    evaluated = {stage["seed"] for name, stage in stages.items() if name.endswith("eval")}
    collected = {int(stage["seed"]) for name, stage in stages.items() if name.endswith("rollouts")}
    assert evaluated == {"1000"}
    assert collected == {1_000_000, 2_000_000, 3_000_000}


def test_the_mixture_grows_by_the_rollouts_of_each_iteration(tmp_path):
    chosen = config(tmp_path, rollouts_weight=0.5)
    assert data(chosen, 0) == DEMOS
    later = data(chosen, 2)
    assert [entry["repo_id"] for entry in later] == ["alice/touch", "recap/rollouts_1", "recap/rollouts_2"]
    assert [entry.get("weight") for entry in later] == [None, 0.5, 0.5]
    stages = {stage.name: stage for stage in plan(chosen)}
    assert stages["iteration_2/policy"].files[0][1] == later
    assert stages["baseline_no_advantages/policy"].files[0][1] == later
    assert stages["sft"].files[0][1] == DEMOS


def test_a_checkpoint_that_is_there_replaces_its_stage(tmp_path):
    stages = plan(config(tmp_path, given={"sft": "me/sft", "value": "me/value"}))
    assert [stage.name for stage in stages][:2] == ["sft_eval", "iteration_1/rollouts"]
    assert flags(stages[0])["policy.path"] == "me/sft"
    assert flags(stages[2])["policy.path"] == "me/value"


def test_from_the_pretrained_policy_each_iteration_starts_as_the_first_training(tmp_path):
    sft = {"policy": {"path": "lerobot/pi0_base", "dtype": "bfloat16"}}
    stages = {stage.name: flags(stage) for stage in plan(config(tmp_path, start_from="pretrained", sft=sft))}
    assert stages["iteration_2/policy"]["policy.path"] == "lerobot/pi0_base"
    assert stages["iteration_2/policy"]["policy.dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"iterations": 0}, "iterations"),
        ({"demonstrations": []}, "demonstrations"),
        ({"start_from": "here"}, "pretrained, sft"),
        ({"start_from": "pretrained"}, "sft.policy.path"),
        ({"given": {"policy": "x"}}, "policy"),
        ({"value": {"policy": "lerobot/x"}}, "value.policy is 'lerobot/x'"),
        ({"train": {"dataset": ["a/b"]}}, "train.dataset is"),
        ({"rollouts": {"seed": "abc"}}, "rollouts.seed must be a whole number"),
        ({"evaluation": {"eval": {"n_episodes": "many"}}}, "evaluation.eval.n_episodes must be"),
        ({"evaluation": {"seed": 1_000_000}}, "rollouts of iteration 1 have the seeds 1000000 to 1000029"),
        ({"evaluation": {"seed": 1_999_951}}, "rollouts of iteration 2 have the seeds 2000000"),
        ({"rollouts": {"seed": 1000, "eval": {"n_episodes": 1_000_001}}}, "at most 1000000"),
    ],
)
def test_impossible_loops_are_refused(tmp_path, changes, said):
    with pytest.raises((ValueError, UserError), match=said):
        config(tmp_path, **changes)


def test_nested_flags_become_arguments():
    merged = merge({"policy": {"path": "a", "dtype": "float32"}}, {"policy": {"path": "b"}, "steps": 3})
    assert to_args(merged) == ["--policy.path=b", "--policy.dtype=float32", "--steps=3"]
    assert to_args({"a": True, "b": None, "c": ["x", 1]}) == ["--a=true", '--c=["x", 1]']


def test_flags_that_take_a_mapping_get_it_whole(tmp_path):
    kinds = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"}
    changes = {
        "env": {"type": "gym_x", "options": {"a": {"b": 1}}},
        "evaluation": {"rename_map": {"observation.image": "observation.images.0"}},
        "policy": {"policy": {"normalization_mapping": kinds}},
    }
    stages = {stage.name: flags(stage) for stage in plan(config(tmp_path, **changes))}
    assert json.loads(stages["iteration_1/rollouts"]["env.options"]) == {"a": {"b": 1}}
    evaluation = parse_flags(
        evaluation_config.EvaluateConfig,
        [f"--{name}={value}" for name, value in stages["sft_eval"].items()],
        "depi eval",
    )
    assert evaluation.env.options == {"a": {"b": 1}}
    assert evaluation.rename_map == {"observation.image": "observation.images.0"}
    assert json.loads(stages["iteration_1/policy"]["policy.normalization_mapping"]) == kinds
    check_stages(plan(config(tmp_path, **changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rollouts_weight": 0.5}, "stage iteration_1/value: .*alice/touch has no weight"),
        (
            {"demonstrations": [DEMOS[0] | {"weight": 1}]},
            "iteration_1/value: .*recap/rollouts_1 has no weight",
        ),
        ({"demonstrations": [{"repo": "a/b"}]}, "stage sft: .*repo"),
        ({"policy": {"stepss": 4}}, "iteration_1/policy: .*unknown flag --stepss.*did you mean --steps"),
        ({"evaluation": {"eval": {"episodes": 4}}}, "sft_eval: depi eval: unknown flag --eval.episodes"),
        ({"advantage": {"lookahead": 4}}, "iteration_1/advantage: depi advantage: unknown flag"),
        ({"advantage": {"look_ahead": "x"}}, "iteration_1/advantage: .*look_ahead"),
    ],
)
def test_what_a_late_stage_cannot_do_is_said_before_the_first(tmp_path, commands, changes, said):
    with pytest.raises(UserError, match=said):
        run_loop(config(tmp_path, **changes))
    assert commands == []


def counting_stage(tmp_path: Path, name: str, status: int = 0) -> Stage:
    """A command that leaves a line each time it runs."""
    script = "import sys; open(sys.argv[1], 'a').write('ran\\n'); sys.exit(int(sys.argv[2]))"
    return Stage(name, (sys.executable, "-c", script, str(tmp_path / "ran"), str(status)))


def test_what_is_done_is_not_done_again_and_other_flags_are_refused(tmp_path, monkeypatch):
    chosen = config(tmp_path)
    stages = [counting_stage(tmp_path, "sft_eval")]
    monkeypatch.setattr("depi.recap.loop.plan", lambda _: stages)
    run_loop(chosen)
    run_loop(chosen)
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert read_json(tmp_path / "recap/results.json") == {"evaluations": []}
    stages[0] = Stage("sft_eval", (*stages[0].command, "--seed=7"))
    with pytest.raises(UserError, match="--seed=7"):
        run_loop(chosen)


def test_a_stage_that_fails_ends_the_loop_and_is_tried_again(tmp_path, monkeypatch):
    chosen = config(tmp_path)
    stages = [
        counting_stage(tmp_path, "sft_eval", status=2),
        counting_stage(tmp_path, "baseline_no_advantages/eval"),
    ]
    monkeypatch.setattr("depi.recap.loop.plan", lambda _: stages)
    with pytest.raises(UserError, match="sft_eval ended with status 2"):
        run_loop(chosen)
    stages[0] = counting_stage(tmp_path, "sft_eval")
    run_loop(chosen)
    assert (tmp_path / "ran").read_text() == "ran\n" * 3


def begun(chosen: RecapConfig, stage: Stage, steps: int = 10) -> Path:
    """A training that was stopped after its fourth step: its `train_config.json`."""
    run = chosen.output_dir / stage.name
    pretrained = run / "checkpoints/000004/pretrained_model"
    pretrained.mkdir(parents=True)
    (run / "checkpoints/last").symlink_to("000004")
    (pretrained / "train_config.json").write_text(json.dumps({"steps": steps}))
    return pretrained / "train_config.json"


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path, commands):
    chosen = config(tmp_path)
    stage = plan(chosen)[0]
    run_stage(chosen, stage, 0)  # is begun, and stopped
    saved = begun(chosen, stage)
    run_stage(chosen, stage, 0)
    assert commands[-1][-2:] == ["--resume=true", f"--output_dir={chosen.output_dir / 'sft'}"]
    saved.write_text(json.dumps({"steps": 4}))
    run_stage(chosen, stage, 0)
    assert len(commands) == 2


def test_a_training_that_left_no_checkpoint_begins_again(tmp_path, commands):
    chosen = config(tmp_path)
    stage = plan(chosen)[0]
    run_stage(chosen, stage, 0)
    left = chosen.output_dir / "sft" / "metrics.jsonl"
    left.parent.mkdir()
    left.touch()
    run_stage(chosen, stage, 0)
    assert not left.exists()
    assert commands == [list(stage.command)] * 2


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("name", ["sft", "iteration_1/rollouts"])
def test_a_folder_that_the_loop_has_not_made_is_left_alone(tmp_path, commands, checkpoint, name):
    chosen = config(tmp_path)
    stage = next(stage for stage in plan(chosen) if stage.name == name)
    if checkpoint:
        begun(chosen, stage)
    mine = chosen.output_dir / name / "mine.txt"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.touch()
    for _ in range(2):
        with pytest.raises(UserError, match=f"{name} exists, but this loop has not made it"):
            run_loop(chosen)
    assert mine.exists()
    assert commands == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sft": {"policy": {"type": "depi_pi0"}, "steps": 30}}, r"other flags \(now --steps=30\)"),
        ({"demonstrations": [DEMOS[0] | {"episodes": [1, 2]}]}, "other data than .*sft_mixture.json"),
        ({"demonstrations": [DEMOS[0] | {"root": "elsewhere"}]}, "other data"),
    ],
)
@pytest.mark.parametrize("done", [False, True])
def test_what_was_begun_or_done_otherwise_is_refused(tmp_path, commands, monkeypatch, changes, said, done):
    monkeypatch.setattr("depi.recap.loop.collect_results", lambda _: {"evaluations": []})
    chosen = config(tmp_path)
    stage = plan(chosen)[0]
    if done:
        run_loop(chosen)
    else:
        run_stage(chosen, stage, 0)
        begun(chosen, stage)
    run = len(commands)
    for flags in (changes, changes | {"dry_run": True}):
        with pytest.raises(UserError, match=said):
            run_loop(config(tmp_path, **flags))
    assert len(commands) == run
    run_loop(chosen)


def test_the_command_prints_what_it_would_run(tmp_path, capsys):
    file = tmp_path / "loop.yaml"
    file.write_text(
        "start_from: sft\nsft: {policy: {type: depi_pi0}}\ndemonstrations: [{repo_id: alice/touch}]\n"
    )
    assert main(["recap", f"--config={file}", f"--output_dir={tmp_path / 'out'}", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "# iteration_2/advantage" in said
    assert "--advantage.mode=use" in said
    assert not (tmp_path / "out").exists()


def test_wrong_files_are_one_sentence(tmp_path, capsys):
    file = tmp_path / "loop.yaml"
    file.write_text("iterations: 2\n")
    for config_flag in ([f"--config={file}"], ["--config", str(file)], [f"--config_path={file}"]):
        assert main(["recap", *config_flag]) == 2
        assert "no demonstrations" in capsys.readouterr().err
    assert main(["recap", "--config", str(tmp_path / "nope.yaml")]) == 2
    assert "nope.yaml" in capsys.readouterr().err
    file.write_text("start_from: sft\ndemonstrations: [{repo: a/b}]\n")
    assert main(["recap", "--config", str(file), "--dry_run"]) == 2
    assert "the stage sft: " in capsys.readouterr().err


SLEEPER = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def stop(*_):
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(folder / "begun").touch()
while not (folder / "go").exists():
    time.sleep(0.02)
"""
LOOP = """
import sys
from pathlib import Path
from depi.cli import run
from depi.recap import loop
from depi.recap.loop_config import RecapConfig
from depi.recap.stages import Stage
stages = [Stage("sft_eval", tuple(sys.argv[2:]))]
loop.plan = lambda _: stages
config = RecapConfig(output_dir=Path(sys.argv[1]), demonstrations=[{"repo_id": "a/b"}], start_from="sft")
sys.exit(run(lambda _: loop.run_loop(config) and 0, []))
"""


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"{path} does not come"
        time.sleep(0.02)


def start_loop(tmp_path: Path, *stage: str) -> subprocess.Popen:
    command = [sys.executable, "-c", LOOP, str(tmp_path / "out"), sys.executable, "-c", *stage]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_a_stage_is_told_to_stop_with_its_loop(tmp_path):
    with start_loop(tmp_path, SLEEPER, str(tmp_path)) as loop:
        wait_for(tmp_path / "begun")
        loop.terminate()
        assert loop.wait(60) == 130
    assert (tmp_path / "stopped").exists()
    assert not (tmp_path / "out/stages/sft_eval.json").exists()


def test_a_stage_that_has_outlived_its_loop_is_not_run_twice(tmp_path):
    with start_loop(tmp_path, SLEEPER, str(tmp_path)) as loop:
        wait_for(tmp_path / "begun")
        loop.kill()
        loop.stderr.close()
    try:
        with start_loop(tmp_path, SLEEPER, str(tmp_path)) as second:
            assert second.wait(60) == 2
            assert "is still running" in second.stderr.read()
    finally:
        (tmp_path / "go").touch()
    until = time.monotonic() + 60
    while True:  # the stage sees that it may end
        with start_loop(tmp_path, SLEEPER, str(tmp_path)) as third:
            if third.wait(60) == 0:
                break
        assert time.monotonic() < until
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(137)"])
def test_a_stage_that_is_killed_is_named(tmp_path, end):
    with start_loop(tmp_path, f"import os, sys; {end}") as loop:
        assert loop.wait(60) == 2
        assert "the stage sft_eval was killed by signal 9; maybe for lack of memory" in loop.stderr.read()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 15)", "os.kill(os.getpid(), 2)", "sys.exit(130)"])
def test_a_stage_that_was_stopped_stops_the_loop(tmp_path, end):
    with start_loop(tmp_path, f"import os, sys; {end}") as loop:
        assert loop.wait(60) == 130
        assert "error" not in loop.stderr.read()


@pytest.mark.parametrize("file", ["loop.yaml", "loop_tiny.yaml"])
def test_every_command_of_the_example_loops_has_flags_that_exist(file, tmp_path):
    loop = parse_flags(RecapConfig, [f"--config_path={CONFIGS / file}"], "depi recap")
    check_stages(plan(loop))
    with pytest.raises(UserError, match="unknown flag --nothing"):
        check_stages(plan(replace(loop, policy=loop.policy | {"nothing": 1})))


TINY = """
iterations: 1
start_from: sft
train: {num_workers: 0, log_freq: 10, save_freq: 0, eval_freq: 0, batch_size: 4}
sft:
  policy: {type: depi_pi0, device: cpu, chunk_size: 8, n_action_steps: 8, vision_depth: 1, depth: 1}
  steps: 20
value:
  policy:
    {type: value, size: tiny, init_from: sft, device: cpu, vision_depth: 1, c_fail: 40, reward_normalizer: 80}
  dataset: {assume_success: true}
  steps: 10
policy: {policy: {device: cpu}, steps: 10}
advantage: {look_ahead: 5, policy: {device: cpu}, workers: 1, dataset: {assume_success: true}}
env: {type: so101, task: touch, cameras: [front], episode_length: 8}
rollouts: {eval: {n_episodes: 3, n_videos: 0}}
evaluation: {eval: {n_episodes: 2, n_videos: 1}, seed: 1000}
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_whole_loop_goes_on_after_a_kill(tmp_path, module_hub):
    demos = tmp_path / "demos"
    setup = Setup(cameras=(Camera("front", "front"),), width=80, height=60, fps=10)
    record_dataset("touch", setup, "alice/touch", demos, episodes=3)
    file = tmp_path / "loop.yaml"
    file.write_text(f"{TINY}demonstrations: [{{repo_id: alice/touch, root: {demos}}}]\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "depi.cli", "recap", f"--config={file}", f"--output_dir={out}"]
    first = subprocess.Popen(command, start_new_session=True)
    while not (out / "stages" / "sft.json").exists():
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    trained = (out / "sft/checkpoints/last/pretrained_model/model.safetensors").stat().st_mtime_ns
    subprocess.run(command, check=True, timeout=1700)
    assert (out / "sft/checkpoints/last/pretrained_model/model.safetensors").stat().st_mtime_ns == trained
    rows = read_json(out / "results.json")["evaluations"]
    assert [row["name"] for row in rows] == ["SFT", "iteration 1", "same data, no advantages"]
    assert all(row["episodes"] == 2 and row["n_errors"] == 0 for row in rows)
    assert (out / "results.png").stat().st_size > 1000
    report = read_json(out / "iteration_1/policy/data_report.json")
    assert [entry["repo_id"] for entry in report["datasets"]] == ["alice/touch", "recap/rollouts_1"]
    assert report["stream"]["advantage"]["frames_missing"] == 0
    again = [*command[:-1], f"--output_dir={tmp_path / 'cloned'}", "--learn_from=successes", "--baselines=[]"]
    subprocess.run([*again, f"--given={{sft: {out / 'sft/checkpoints/last/pretrained_model'}}}"], check=True)
    rows = read_json(tmp_path / "cloned" / "results.json")["evaluations"]
    assert [row["name"] for row in rows] == ["SFT", "iteration 1"]
    report = read_json(tmp_path / "cloned" / "iteration_1/policy/data_report.json")
    assert report["datasets"][0]["repo_id"] == "alice/touch"
