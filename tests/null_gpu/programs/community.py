"""Batches of the community's mix of cameras through the compiled network: how often it is compiled.

python community.py BATCHES takes a step with each of so many; their lists and rows have many lengths. With
`float8` behind it the language model multiplies so.
"""

import sys

from accelerate import Accelerator
from device import report
from full_size import make_batches, make_monitors, make_run, take_step
from torch._dynamo.utils import counters


def main(count: int, float8: bool) -> None:
    """The number of graphs after each step, and the lengths of the lists."""
    run = make_run(Accelerator(), batch_size=8, compile=True, float8=float8)
    batches, monitors = make_batches(run, "community", count), make_monitors(run)
    graphs, waits = [], []
    for _ in batches:
        waits += take_step(run, batches, monitors)
        graphs.append(counters["stats"]["unique_graphs"])
    report(
        {
            "graphs": graphs,
            "tokens": [len(batch["packing"].rows.place) for batch in batches],
            "places": [batch["packing"].rows.source.shape[1] for batch in batches],
            "waits": waits,
            "broken": dict(counters["graph_break"]),
        }
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), "float8" in sys.argv)
