"""A small value network with random weights, and datasets that say how their episodes ended."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recordings import Recording, write_v2, write_v3
from small_value import save_small_value


@pytest.fixture(scope="module")
def value_checkpoint(module_hub, tmp_path_factory) -> Path:
    """The Hub that the tokenizer comes from must be there."""
    return save_small_value(tmp_path_factory.mktemp("value") / "pretrained_model")


def add_column(root: Path, name: str, values: dict[int, np.ndarray]) -> None:
    """Add a column to all data files: episode -> one value per frame; declared as LeRobot does."""
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][name] = {"dtype": "bool", "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        episodes = table["episode_index"].to_numpy()
        column = np.concatenate([values[episode] for episode in dict.fromkeys(episodes.tolist())])
        pq.write_table(table.append_column(name, pa.array(column)), path)


def add_metadata(root: Path, flags: dict[int, bool | None]) -> None:
    """Say in the episodes' metadata which of them succeeded; None says nothing."""
    lines = root / "meta/episodes.jsonl"
    if lines.exists():
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        rows = [row | {"success": flags[row["episode_index"]]} for row in rows]
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    for path in root.glob("meta/episodes/*/*.parquet"):
        table = pq.read_table(path)
        column = [flags[episode] for episode in table["episode_index"].to_pylist()]
        pq.write_table(table.append_column("success", pa.array(column, pa.bool_())), path)


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    """Two datasets, one of each layout: three successes, two failures, an intervention."""
    folder = tmp_path_factory.mktemp("recorded")
    first = write_v2(folder / "v21", Recording(lengths=(37, 22, 30)))
    add_metadata(first, {0: True, 1: False, 2: True})
    second = write_v3(
        folder / "v30", Recording(lengths=(19, 45), cameras=("observation.images.top",), seed=1)
    )
    add_column(second, "next.success", {0: np.arange(19) == 18, 1: np.zeros(45, bool)})
    add_column(
        second, "is_intervention", {0: np.zeros(19, bool), 1: (np.arange(45) > 5) & (np.arange(45) < 9)}
    )
    return {"alice/pick": first, "bob/place": second}


@pytest.fixture(scope="module")
def mixture(roots, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("mixture") / "mixture.json"
    file.write_text(json.dumps([{"repo_id": name, "root": str(root)} for name, root in roots.items()]))
    return file
