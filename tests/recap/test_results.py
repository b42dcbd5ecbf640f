"""What the loop says it has reached, also where rollouts have failed."""

from pathlib import Path

import pytest

from depi.files import write_json
from depi.recap.loop_config import RecapConfig
from depi.recap.results import collect_results, draw, table


def write_evaluation(folder: Path, successes: list[bool], errors: int = 0) -> None:
    """An `eval.json` of episodes with the seeds from 0 on, the last ones of which are errors."""
    counted = len(successes)
    episodes = [
        {"seed": seed, "success": won, "length": 5, "reward": 1.0} for seed, won in enumerate(successes)
    ]
    episodes += [
        {"seed": counted + number, "success": False, "length": 0, "reward": 0.0, "error": "killed"}
        for number in range(errors)
    ]
    rate = sum(successes) / counted if counted else None
    write_json(
        folder / "eval.json",
        {
            "policy": folder.name,
            "env": {"type": "so101", "task": "touch"},
            "episodes": episodes,
            "success_rate": rate,
            "success_interval_95": None if rate is None else [0.0, 1.0],
            "n_errors": errors,
            "mean_length": 5.0 if counted else None,
        },
    )


@pytest.fixture
def config(tmp_path) -> RecapConfig:
    return RecapConfig(
        output_dir=tmp_path, iterations=1, demonstrations=[{"repo_id": "a/b"}], start_from="sft"
    )


def test_evaluations_are_compared_seed_by_seed(config, tmp_path):
    write_evaluation(tmp_path / "sft_eval", [False, False, True, False])
    write_evaluation(tmp_path / "iteration_1/eval", [True, True, True, False])
    write_evaluation(tmp_path / "baseline_no_advantages/eval", [True, False, True, False])
    first, better, same_data = collect_results(config)["evaluations"]
    differences = [
        {name: against["difference"] for name, against in row["against"].items()}
        for row in (first, better, same_data)
    ]
    assert differences == [
        {"same data, no advantages": -0.25},
        {"SFT": 0.5, "same data, no advantages": 0.25},
        {"SFT": 0.25},
    ]


@pytest.mark.parametrize("broken", ["sft_eval", "iteration_1/eval", "baseline_no_advantages/eval"])
def test_an_evaluation_of_errors_alone_is_compared_with_nothing(config, tmp_path, broken):
    folders = ("sft_eval", "iteration_1/eval", "baseline_no_advantages/eval")
    for folder in folders:
        write_evaluation(tmp_path / folder, [] if folder == broken else [True, False], 2)
    results = collect_results(config)
    rows = dict(zip(folders, results["evaluations"], strict=True))
    assert not rows.pop(broken)["against"]
    assert any(row["against"] for row in rows.values())
    assert table(results).row_count == 3
    draw(results, tmp_path / "results.png")
    assert (tmp_path / "results.png").stat().st_size > 1000
