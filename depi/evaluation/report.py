"""The result of an evaluation for people."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_table(result: dict[str, Any]) -> None:
    """Print the content of an `eval.json` as names and values, and the errors by their reasons."""
    env = result["env"]
    title = f"{env['type']} {env['task'] or ''}".strip()
    table = Table(title=escape(title), show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in _rows(result).items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    for reason, count in result["errors"].items():
        episodes = "1 episode" if count == 1 else f"{count} episodes"
        print(f"{episodes} ended in an error: {reason}")


def _rows(result: dict[str, Any]) -> dict[str, str]:
    interval, timing = result["success_interval_95"], result["timing"]
    rows = {"episodes": str(len(result["episodes"])), "errors": str(result["n_errors"])}
    if interval is None:
        return {"success rate": "none: every episode ended in an error", **rows}
    rows = {
        "success rate": f"{result['success_rate']:.0%} ({result['n_successes']} of {result['n_episodes']})",
        "95% interval": f"{interval[0]:.0%} to {interval[1]:.0%}",
        **rows,
        "mean length": f"{result['mean_length']:.1f} steps",
        "mean reward": f"{result['mean_reward']:.2f}",
    }
    if timing.get("latency_ms_median") is not None:
        rows["chunk latency"] = (
            f"{timing['latency_ms_median']:.0f} ms (p95 {timing['latency_ms_p95']:.0f} ms)"
        )
        rows["environment"] = f"{timing['env_steps_per_s']:.0f} steps/s"
        rows["inference"] = f"{timing['inference_share']:.0%} of the time"
    return rows
