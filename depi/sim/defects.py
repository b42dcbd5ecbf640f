"""Defects of real recordings, applied to a recorded dataset in place.

Each function takes the dataset's folder, of either format. `DEFECTS` names them all.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from depi.files import read_json, write_json


def nan_in_actions(root: Path, rows: int = 3) -> None:
    """Put NaN into the first joint of the first rows' actions."""

    def spoil(table: pa.Table) -> pa.Table:
        actions = _matrix(table["action"])
        actions[:rows, 0] = np.nan
        return _with_vectors(table, "action", actions)

    _edit_table(_tables(root)[0], spoil)


def wrong_action_size(root: Path, size: int = 5) -> None:
    """Change the size of actions from six joints, both in the tables and in the metadata."""

    def resize(table: pa.Table) -> pa.Table:
        actions = _matrix(table["action"])
        return _with_vectors(table, "action", np.resize(actions.T, (size, len(actions))).T)

    for path in _tables(root):
        _edit_table(path, resize)

    def declare(info: dict[str, Any]) -> None:
        action = info["features"]["action"]
        action["shape"] = [size]
        action["names"] = [*action["names"], *(f"joint_{i}" for i in range(size))][:size]

    _edit_info(root, declare)


def undeclared_action_size(root: Path, size: int = 7) -> None:
    """Declare an action size that the tables do not have."""
    _edit_info(root, lambda info: info["features"]["action"].update(shape=[size], names=None))


def missing_video(root: Path) -> None:
    """Delete one camera's first video file."""
    _videos(root)[0].unlink()


def truncated_video(root: Path) -> None:
    """Cut one video file in the middle, as an interrupted upload does."""
    path = _videos(root)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def missing_table(root: Path) -> None:
    """Delete the first table."""
    _tables(root)[0].unlink()


def truncated_table(root: Path) -> None:
    """Cut the first table in the middle."""
    path = _tables(root)[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def frozen_robot(root: Path) -> None:
    """Make every action and state the same, as of a robot that does not move."""
    for path in _tables(root):
        _edit_table(path, _freeze)


def another_zero(root: Path) -> None:
    """Give radians the zeros of an older model: lift and elbow a quarter turn away, lift reversed."""
    for path in _tables(root):
        _edit_table(path, _shift_zero)


def three_bad_episodes(root: Path) -> None:
    """Spoil three episodes: nothing moves in one, one's state freezes in its middle, one's arm jumps away."""
    _spoil(root, {1: _freeze_columns, 3: _freeze_state, 5: _jump})


def every_fifth_episode_bad(root: Path) -> None:
    """Spoil one in five episodes, by the same three faults in turn."""
    count = read_json(root / "meta" / "info.json")["total_episodes"]
    faults = (_freeze_columns, _freeze_state, _jump)
    _spoil(root, {episode: faults[episode // 5 % 3] for episode in range(2, count, 5)})


def _spoil(root: Path, spoil: Mapping[int, Callable[[np.ndarray, np.ndarray], None]]) -> None:
    """Change action and state of whole episodes."""
    for path in _tables(root):
        table = pq.read_table(path)
        episode = table["episode_index"].to_numpy()
        vectors = {column: _matrix(table[column]) for column in ("action", "observation.state")}
        for number, change in spoil.items():
            rows = np.flatnonzero(episode == number)
            if len(rows):
                change(*(values[rows[0] : rows[-1] + 1] for values in vectors.values()))
        for column, values in vectors.items():
            table = _with_vectors(table, column, values)
        pq.write_table(table, path)


def broken_info(root: Path) -> None:
    """Cut `meta/info.json`, so that it is not valid JSON."""
    path = root / "meta" / "info.json"
    path.write_text(path.read_text(encoding="utf-8")[:-20], encoding="utf-8")


def escaping_paths(root: Path) -> None:
    """Make the metadata's path template point out of the dataset's folder."""
    _edit_info(root, lambda info: info.update(data_path="../../" + info["data_path"]))


def zero_fps(root: Path) -> None:
    """Declare a frame rate of zero."""
    _edit_info(root, lambda info: info.update(fps=0))


DEFECTS: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (
        nan_in_actions,
        wrong_action_size,
        undeclared_action_size,
        missing_video,
        truncated_video,
        missing_table,
        truncated_table,
        frozen_robot,
        another_zero,
        three_bad_episodes,
        every_fifth_episode_bad,
        broken_info,
        escaping_paths,
        zero_fps,
    )
}


def _tables(root: Path) -> list[Path]:
    return sorted((root / "data").rglob("*.parquet"))


def _videos(root: Path) -> list[Path]:
    return sorted((root / "videos").rglob("*.mp4"))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    return np.stack(column.to_numpy()).astype(np.float32)


def _with_vectors(table: pa.Table, column: str, vectors: np.ndarray) -> pa.Table:
    values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    # The old schema's metadata would contradict the new width.
    return table.set_column(table.column_names.index(column), column, values).replace_schema_metadata(None)


def _freeze(table: pa.Table) -> pa.Table:
    for column in ("action", "observation.state"):
        vectors = _matrix(table[column])
        table = _with_vectors(table, column, np.repeat(vectors[:1], len(vectors), axis=0))
    return table


def _shift_zero(table: pa.Table) -> pa.Table:
    sign, zero = np.array([1, -1, 1, 1, 1, 1]), np.array([0, np.pi / 2, np.pi / 2, 0, 0, 0])
    for column in ("action", "observation.state"):
        table = _with_vectors(table, column, (_matrix(table[column]) * sign + zero).astype(np.float32))
    return table


def _freeze_columns(action: np.ndarray, state: np.ndarray) -> None:
    action[:], state[:] = action[0], state[0]


def _freeze_state(action: np.ndarray, state: np.ndarray) -> None:
    """The command goes on while the state stays as it was after a fifth of the episode, for most of it."""
    first, last = len(state) // 5, len(state) * 9 // 10
    state[first:last] = state[first]


def _jump(action: np.ndarray, state: np.ndarray) -> None:
    """In the middle of an episode the arm is suddenly elsewhere, as if frames were lost."""
    middle = len(state) // 2
    for joint in (0, 4):
        far = np.float32(-80 if state[middle, joint] > 0 else 80) - state[middle, joint]
        action[middle:, joint] += far
        state[middle:, joint] += far


def _edit_table(path: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(edit(pq.read_table(path)), path)


def _edit_info(root: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    info = read_json(root / "meta" / "info.json")
    edit(info)
    write_json(root / "meta" / "info.json", info)
