"""The results of the RECAP loop: success by iteration, as a table, JSON and a plot."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from depi.evaluation.compare import Evaluation, compare, read_evaluation
from depi.files import atomic_write, read_json
from depi.recap.loop_config import RecapConfig
from depi.recap.stages import baseline_folder

SFT = "SFT"
# How the results call the baselines.
NAMES = {"no_advantages": "same data, no advantages", "successes": "successes alone, no advantages"}


def collect_results(config: RecapConfig) -> dict[str, Any]:
    """The finished evaluations, in order, each compared with the first and with the baselines.

    Returns:
        `evaluations`: rows of name, folder, success_rate, success_interval_95, episodes, errors, mean_length,
        and `against`: by the name of each other of these that is finished, where both have played a seed
        without an error, difference, difference_interval_95 and p_value over paired seeds, see `compare`.
    """
    folders = {SFT: config.output_dir / "sft_eval"}
    for iteration in range(1, config.iterations + 1):
        folders[f"iteration {iteration}"] = config.output_dir / f"iteration_{iteration}" / "eval"
    references = [SFT]
    for baseline in config.baselines:
        folders[NAMES[baseline]] = config.output_dir / baseline_folder(baseline) / "eval"
        references.append(NAMES[baseline])
    there = {name: folder for name, folder in folders.items() if (folder / "eval.json").exists()}
    evaluations = {name: read_evaluation(folder) for name, folder in there.items()}
    rows = []
    for name, folder in there.items():
        result = read_json(folder / "eval.json")
        kept = ("success_rate", "success_interval_95", "n_errors", "mean_length")
        row = {"name": name, "folder": str(folder), "episodes": len(result["episodes"])}
        row |= {key: result[key] for key in kept}
        others = [other for other in references if other in evaluations and other != name]
        against = {other: _difference_from(evaluations[other], evaluations[name]) for other in others}
        rows.append({**row, "against": {other: found for other, found in against.items() if found}})
    return {"evaluations": rows}


def _difference_from(other: Evaluation, one: Evaluation) -> dict[str, Any] | None:
    """What `compare` says of two evaluations, None where there is no seed to compare."""
    if one.counted.keys().isdisjoint(other.counted):
        return None
    comparison = asdict(compare(other, one))
    return {key: comparison[key] for key in ("difference", "difference_interval_95", "p_value")}


def table(results: dict[str, Any]) -> Table:
    """The results for the terminal."""
    shown = Table(title="RECAP: success rate by iteration")
    references = [
        name
        for name in (SFT, *NAMES.values())
        if any(name in row["against"] for row in results["evaluations"])
    ]
    for column in ("policy", "success", "95% interval", "episodes", *(f"against {n}" for n in references)):
        shown.add_column(column)
    for row in results["evaluations"]:
        rate, interval = row["success_rate"], row["success_interval_95"]  # None where all were errors
        shown.add_row(
            row["name"],
            "-" if rate is None else f"{rate:.0%}",
            "-" if interval is None else f"{interval[0]:.0%} to {interval[1]:.0%}",
            str(row["episodes"]),
            *(_difference(row["against"].get(name)) for name in references),
        )
    return shown


def _difference(comparison: dict[str, Any] | None) -> str:
    if comparison is None:
        return ""
    return f"{comparison['difference']:+.0%} (p = {comparison['p_value']:.2g})"


def draw(results: dict[str, Any], path: Path) -> None:
    """Plot success rates with their intervals."""
    rows = [row for row in results["evaluations"] if row["success_rate"] is not None]
    if not rows:
        return
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rates = [row["success_rate"] for row in rows]
    below = [rate - row["success_interval_95"][0] for rate, row in zip(rates, rows, strict=True)]
    above = [row["success_interval_95"][1] - rate for rate, row in zip(rates, rows, strict=True)]
    colors = ["C7" if row["name"] in NAMES.values() else "C0" for row in rows]
    axes.bar([row["name"] for row in rows], rates, yerr=[below, above], capsize=5, color=colors)
    axes.set_ylabel("success rate, 95% interval")
    axes.set_ylim(0, 1)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
