"""`depi compare`: pairing, the statistics, what is refused, and videos side by side."""

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from depi.errors import UserError
from depi.evaluation.compare import compare, main, mcnemar, paired_difference, read_evaluation
from depi.evaluation.films import GREEN, RED, write_video
from depi.files import read_json, write_json

ENV = {"type": "so101", "task": "touch", "fps": 10, "cameras": ["front"], "setups": "standard"}


def evaluation(folder: Path, wins: str, first_seed: int = 1000, **env) -> Path:
    """An eval.json with one episode for each character: 1 a success, 0 a failure, x an error."""
    episodes = [
        {
            "index": index,
            "seed": first_seed + index,
            "success": win == "1",
            "length": 10 + index,
            "reward": float(win == "1"),
            "error": "crashed" if win == "x" else None,
        }
        for index, win in enumerate(wins)
    ]
    result = {"policy": f"ann/{folder.name}", "env": {**ENV, **env}, "episodes": episodes}
    write_json(folder / "eval.json", result)
    return folder


def compared(tmp_path: Path, wins_a: str, wins_b: str, **env):
    a, b = evaluation(tmp_path / "a", wins_a), evaluation(tmp_path / "b", wins_b, **env)
    return compare(read_evaluation(a), read_evaluation(b / "eval.json"))


def test_seeds_are_paired_and_errors_left_out(tmp_path):
    result = compared(tmp_path, "1100x110", "11110x01")
    assert (result.paired, result.both, result.neither) == (6, 2, 0)
    assert (result.only_a, result.only_b) == ([1006], [1002, 1003, 1007])
    assert (result.a.errors, result.b.errors, result.a.episodes) == (1, 1, 8)
    assert result.a.success_rate == pytest.approx(3 / 6)
    assert result.difference == pytest.approx(2 / 6)
    assert result.p_value == pytest.approx(2 * 5 / 16)  # 1 of 4 or fewer, both sides
    low, high = result.difference_interval_95
    assert -1 <= low < result.difference < high <= 1


def test_seeds_of_one_evaluation_alone_do_not_count(tmp_path):
    a = read_evaluation(evaluation(tmp_path / "a", "1111", 1000))
    b = read_evaluation(evaluation(tmp_path / "b", "0000", 1002))
    assert compare(a, b).paired == 2
    far = read_evaluation(evaluation(tmp_path / "c", "0000", 2000))
    with pytest.raises(UserError, match="no seed in common"):
        compare(a, far)


def test_errors_alone_are_nothing_to_compare(tmp_path):
    with pytest.raises(UserError, match=r"/b has nothing to compare: every episode ended in an error"):
        compared(tmp_path, "11", "xx")


def test_mcnemar_is_the_sign_test_of_the_discordant_pairs():
    assert mcnemar(0, 0) == 1
    assert mcnemar(0, 6) == mcnemar(6, 0) == pytest.approx(2 / 64)
    assert mcnemar(5, 5) == 1


def test_the_interval_of_the_difference_covers_the_truth():
    rng = np.random.default_rng(0)
    cells = np.array([0.45, 0.1, 0.25, 0.2])  # both, only a, only b, neither
    covered = 0
    for both, only_a, only_b, neither in rng.multinomial(40, cells, size=400).tolist():
        low, high = paired_difference(both, only_a, only_b, neither)[1]
        covered += low <= cells[2] - cells[1] <= high
    assert 0.92 <= covered / 400 <= 0.99
    difference, (low, high) = paired_difference(10, 2, 8, 5)
    mirrored, (other_low, other_high) = paired_difference(10, 8, 2, 5)
    assert (mirrored, other_low, other_high) == pytest.approx((-difference, -high, -low))
    assert paired_difference(7, 0, 0, 0)[0] == 0


@pytest.mark.parametrize(
    ("env", "name"),
    [({"type": "pusht"}, "type"), ({"task": "pick_lift"}, "task"), ({"setups": "unseen"}, "setups")],
)
def test_other_tasks_are_refused(tmp_path, env, name):
    with pytest.raises(UserError, match=f"not of the same task: {name} is"):
        compared(tmp_path, "10", "10", **env)


def test_rigs_of_files_are_the_same_if_their_contents_are(tmp_path):
    folders = [evaluation(tmp_path / name, "10", setups=f"{name}.json") for name in ("a", "b", "c")]
    for folder, digest in zip(folders, ("1f", "1f", "2e"), strict=True):
        write_json(folder / "eval.json", {**read_json(folder / "eval.json"), "setups_file": digest})
    a, b, c = map(read_evaluation, folders)
    assert compare(a, b).paired == 2
    with pytest.raises(UserError, match="setups is '1f' there, '2e' here"):
        compare(a, c)


def test_other_cameras_are_compared(tmp_path):
    assert compared(tmp_path, "10", "11", cameras=["front", "wrist"]).paired == 2


@pytest.mark.parametrize("content", [[], {"env": ENV}, {"episodes": []}])
def test_files_of_something_else_are_refused(tmp_path, content):
    write_json(tmp_path / "eval.json", content)
    with pytest.raises(UserError, match="is no result of `depi eval`"):
        read_evaluation(tmp_path / "eval.json")


def film(folder: Path, index: int, frames: int, size: tuple[int, int], fps: int = 10) -> None:
    """A bright square that moves over a dark ground."""
    pictures = np.full((frames, *size, 3), 40, np.uint8)
    for number, picture in enumerate(pictures):
        picture[10:20, 2 * number : 2 * number + 10] = 220
    (folder / "videos").mkdir(exist_ok=True)
    write_video(folder / "videos" / f"episode_{index:03d}.mp4", pictures, fps)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_videos_side_by_side_are_padded_and_bordered(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a", "101x"), evaluation(tmp_path / "b", "0111")
    film(a, 0, 12, (48, 64))
    film(b, 0, 20, (96, 128))
    film(a, 1, 5, (48, 64))  # b has no video of this seed
    film(a, 2, 8, (48, 64))
    (b / "videos" / "episode_002.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    assert main([str(a), str(b), f"--output_dir={out}", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["videos"] == [str(out / "seed_1000.mp4")]
    assert [path.name for path in out.iterdir()] == ["seed_1000.mp4"]
    frames = decoded(out / "seed_1000.mp4").astype(int)
    height, width = 96 + 12, 2 * (128 + 12)
    assert frames.shape == (20, height, width, 3)
    for column, color in ((2, GREEN), (width - 3, RED)):
        assert np.abs(frames[0, height // 2, column] - color).max() < 25
    left, right = frames[:, 6:-6, 6 : width // 2 - 6], frames[:, 6:-6, width // 2 + 6 : -6]
    moved = [[np.abs(y - x).mean() for x, y in pairwise(half)] for half in (left, right)]
    assert min(moved[1]) > 0.2  # the longer one moves to its end
    assert min(moved[0][:11]) > 0.2 > max(moved[0][12:])  # the shorter one stands on its last frame


def test_videos_of_different_rates_take_the_same_time(tmp_path):
    a, b = evaluation(tmp_path / "a", "1"), evaluation(tmp_path / "b", "1")
    film(a, 0, 10, (48, 64), fps=10)
    film(b, 0, 20, (48, 64), fps=20)
    assert main([str(a), str(b), f"--output_dir={tmp_path / 'out'}"]) == 0
    assert len(decoded(tmp_path / "out" / "seed_1000.mp4")) == 20


def test_what_else_than_the_policy_differs_is_said(tmp_path, capsys):
    a, b = evaluation(tmp_path / "a", "10"), evaluation(tmp_path / "b", "01", fps=30, observation_width=96)
    for folder, steps in ((a, 8), (b, None)):
        content = read_json(folder / "eval.json")
        write_json(folder / "eval.json", {**content, "n_action_steps": steps, "versions": {"torch": "2"}})
    assert main([str(a), str(b)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "they differ in more than the policy: env.fps: 10 in A, 30 in B; " in said
    assert "env.observation_width: None in A, 96 in B; n_action_steps: 8 in A, None in B" in said
    assert "torch" not in said
    assert compare(read_evaluation(a), read_evaluation(a)).also_different == []


def test_the_command_prints_a_table_in_a_moment(tmp_path):
    a, b = evaluation(tmp_path / "a", "1100x"), evaluation(tmp_path / "b", "11110")
    command = [sys.executable, "-m", "depi.cli", "compare"]
    done = subprocess.run([*command, str(a), str(b)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "4 paired seeds" in done.stdout
    assert "B - A: +50%" in done.stdout
    assert "p = 0.5" in done.stdout
    assert "1 episodes of B have no partner" in done.stdout
    done = subprocess.run([*command, str(a)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name two evaluations" in done.stderr
