"""Read samples through lerobot-lancedb, in an environment that has it; `data_loading.py` starts this.

A line of JSON comes in, [path of a LeRobot dataset, frame numbers, actions per chunk, side of images]; one
goes out, [wall clock, processor time], milliseconds per sample. The dataset is converted when it first comes.
Batches are read and collated as a DataLoader does it; images are uint8, letterboxed by DePi's function.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lerobot_lancedb import LanceDBDataset
from lerobot_lancedb.convert import convert
from one_core import BATCH, hold_to_one_core, measure
from torch.utils.data import default_collate

from depi.datasets.recording.cameras import letterbox


def open_reader(root: Path, chunk: int, size: int) -> Callable[[Sequence[int]], object]:
    """What reads a batch of a LeRobot dataset."""
    folder = root.parent / f"{root.name}-lance"
    convert(folder, root=root)
    fps = json.loads((root / "meta/info.json").read_text())["fps"]
    dataset = LanceDBDataset(
        root=folder,
        delta_timestamps={"action": [step / fps for step in range(chunk)]},
        return_uint8=True,
        image_transforms=partial(letterbox, size=size),
    )
    return lambda numbers: default_collate(dataset.__getitems__(list(numbers)))


def main() -> None:
    """Answer line by line until there is none."""
    hold_to_one_core()
    readers: dict[str, Callable[[Sequence[int]], object]] = {}
    for line in sys.stdin:
        root, order, chunk, size = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            if root not in readers:
                readers = {root: open_reader(Path(root), chunk, size)}
                measure(readers[root], order[:BATCH])
            cost = measure(readers[root], order)
        print(json.dumps([cost.wall, cost.cpu]), flush=True)


if __name__ == "__main__":
    main()
