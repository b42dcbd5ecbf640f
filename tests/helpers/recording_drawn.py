"""`depi/train.py` that also writes down, per process, the frames of each micro-batch it trains on."""

import json
import sys
from pathlib import Path

from depi import train
from depi.training import loop

folder = Path(sys.argv.pop(1))
given = loop.batches


def recorded(stream, config, collate, **place):
    with (folder / f"process_{place['rank']}.jsonl").open("a") as file:
        for batch in given(stream, config, collate, **place):
            keys = ("dataset_index", "episode_index", "frame_index")
            file.write(json.dumps(list(zip(*(batch[key].tolist() for key in keys), strict=True))) + "\n")
            file.flush()
            yield batch


loop.batches = recorded
sys.exit(train.main(sys.argv[1:]))
