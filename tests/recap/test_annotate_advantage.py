"""`depi advantage` with a real value network on real datasets."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import draccus
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from depi.cli import main
from depi.datasets.samples.advantages import MISSING, NEGATIVE, POSITIVE, FrameAdvantages
from depi.datasets.samples.outcomes import episode_returns, normalised
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.recap.advantage import episode_advantages
from depi.recap.frames import FrameReader
from depi.recap.judging import as_trained, given_flags
from depi.training.config import DatasetConfig

LENGTHS = (37, 22, 30, 19, 45)
SUCCESS = (True, False, True, True, False)


@pytest.fixture
def flags(value_checkpoint, mixture) -> list[str]:
    return [
        "advantage",
        f"--policy.path={value_checkpoint}",
        "--policy.device=cpu",
        f"--dataset.mixture={mixture}",
        "--look_ahead=8",
    ]


@pytest.fixture(scope="module")
def reference(value_checkpoint, mixture, tmp_path_factory) -> Path:
    """One process, the whole of each dataset at once."""
    folder = tmp_path_factory.mktemp("reference")
    args = ["advantage", f"--policy.path={value_checkpoint}", f"--dataset.mixture={mixture}"]
    args += ["--policy.device=cpu", "--look_ahead=8", "--workers=1", f"--output_dir={folder}"]
    assert main(args) == 0
    return folder


def tables(folder: Path) -> dict[str, dict[str, list]]:
    return {
        str(path.relative_to(folder)): pq.read_table(path).to_pydict()
        for path in folder.glob("*/*.parquet")
        if path.parent.name != "values"
    }


def rows_of(folder: Path) -> list[dict[str, np.ndarray]]:
    """The columns of each episode, in order."""
    episodes = []
    for name in ("alice/pick", "bob/place"):
        table = pq.read_table(folder / f"{name}.parquet").to_pandas()
        episodes += [
            {key: rows[key].to_numpy() for key in rows} for _, rows in table.groupby("episode_index")
        ]
    return episodes


def test_every_frame_has_a_row_that_the_formulas_give(reference):
    episodes = rows_of(reference)
    summary = json.loads((reference / "advantages.json").read_text())
    assert [len(rows["value"]) for rows in episodes] == list(LENGTHS)
    for rows, length, success in zip(episodes, LENGTHS, SUCCESS, strict=True):
        assert rows["frame_index"].tolist() == list(range(length))
        assert ((rows["value"] >= -1) & (rows["value"] <= 0)).all()
        np.testing.assert_allclose(
            rows["return"], normalised(episode_returns(length, success, 50), 100), rtol=1e-6
        )
        expected = episode_advantages(rows["value"], success, look_ahead=8, c_fail=50, reward_normalizer=100)
        np.testing.assert_allclose(rows["advantage"], expected, rtol=1e-5, atol=1e-7)
        positive = (rows["advantage"] > summary["epsilon"]) | rows["intervention"]
        assert rows["indicator"].tolist() == positive.tolist()
    values = np.concatenate([rows["value"] for rows in episodes])
    assert len(np.unique(values)) > 100  # it does look at the frames
    assert episodes[4]["intervention"].nonzero()[0].tolist() == [6, 7, 8]
    assert summary["frames_above_epsilon"] == round(0.3 * 153)
    assert summary["datasets"]["alice/pick"]["successes"] == 2


def test_a_value_is_that_of_its_own_frame(reference, value_checkpoint, roots):
    """Each frame alone, read at random, gives the value in the table."""
    from torch.utils.data import default_collate

    from depi.policies import load_processors, preprocess
    from depi.policies.factory import load_value

    sources = [DatasetSource(name, root=root) for name, root in roots.items()]
    dataset = MultiLeRobotDataset(sources, chunk_size=1, image_size=28)
    policy, (pre, _) = load_value(value_checkpoint, device="cpu"), load_processors(value_checkpoint)
    values = np.concatenate([rows["value"] for rows in rows_of(reference)])
    for index in (0, 36, 37, 90, 107, 108, 152):
        batch = preprocess(default_collate([dataset[index]]), pre)
        np.testing.assert_allclose(policy.predict_value(batch).item(), values[index], atol=1e-5)


@pytest.mark.slow
def test_killed_and_resumed_with_other_processes_and_batches_the_numbers_are_the_same(
    flags, reference, tmp_path
):
    folder = tmp_path / "out"
    args = [*flags, f"--output_dir={folder}", "--batch_size=16", "--part_frames=16"]
    with subprocess.Popen(
        [sys.executable, "-m", "depi.cli", *args, "--workers=2"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            until = time.monotonic() + 240
            while not list(folder.glob("values/*/*.parquet")):
                assert process.poll() is None, process.stdout.read().decode()
                assert time.monotonic() < until
                time.sleep(0.002)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    written = {path: path.stat().st_mtime_ns for path in folder.glob("values/*/*.parquet")}
    assert 0 < len(written) < 10
    assert not (folder / "advantages.json").exists()
    assert main([*args, "--workers=1"]) == 0
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    assert len(list(folder.glob("values/*/*.parquet"))) == 6 + 4
    assert tables(folder) == tables(reference)
    assert (folder / "advantages.json").read_bytes() == (reference / "advantages.json").read_bytes()


def test_another_look_ahead_takes_the_values_that_are_there(flags, reference, tmp_path, monkeypatch):
    from depi.recap import values

    folder = tmp_path / "again"
    shutil.copytree(reference, folder)
    monkeypatch.setattr(values, "compute_part", None)  # whoever calls it fails
    before = tables(folder)
    assert main([*flags, f"--output_dir={folder}", "--look_ahead=3", "--share=0.5", "--per_task"]) == 0
    after = tables(folder)
    assert after["alice/pick.parquet"]["value"] == before["alice/pick.parquet"]["value"]
    assert after["alice/pick.parquet"]["advantage"] != before["alice/pick.parquet"]["advantage"]
    summary = json.loads((folder / "advantages.json").read_text())
    assert set(summary["epsilon"]) == {"pick the cube", "drop the cube"}


def test_training_reads_the_indicators(reference, roots, tmp_path):
    sources = [DatasetSource(name, root=root) for name, root in roots.items()]
    dataset = MultiLeRobotDataset(sources, chunk_size=1, image_size=28)
    found = FrameAdvantages(dataset, reference)
    expected = np.concatenate([rows["indicator"] for rows in rows_of(reference)])
    assert found.indicators.tolist() == np.where(expected, POSITIVE, NEGATIVE).tolist()
    assert [found.indicator(index) for index in range(153)] == expected.tolist()
    assert found.report()["frames_positive"] == expected.sum()
    # Some episodes of one dataset, in another place of the training set.
    part = MultiLeRobotDataset(
        [DatasetSource("bob/place", root=roots["bob/place"], episodes=(1,))], chunk_size=1, image_size=28
    )
    assert FrameAdvantages(part, reference).indicators.tolist() == expected[108:].tolist()


def test_a_frame_that_cannot_be_decoded_is_left_out_and_counted(flags, roots, tmp_path, value_checkpoint):
    root = tmp_path / "broken"
    shutil.copytree(roots["alice/pick"], root)
    video = next(root.glob("videos/chunk-000/observation.images.wrist/episode_000001.mp4"))
    data = bytearray(video.read_bytes())
    video.write_bytes(data[: len(data) // 2])
    args = [*flags[:3], "--dataset.repo_id=alice/pick", f"--dataset.root={root}", "--look_ahead=8"]
    args += [f"--output_dir={tmp_path / 'out'}", "--workers=1"]
    with_limit = [*args, "--dataset.max_bad_fraction=0.5"]
    assert main(args) == 2
    assert not (tmp_path / "out/advantages.json").exists()
    assert main(with_limit) == 0
    summary = json.loads((tmp_path / "out/advantages.json").read_text())
    table = pq.read_table(tmp_path / "out/alice/pick.parquet").to_pandas()
    broken = table[table.value.isna()]
    assert len(broken) == summary["frames_left_out"] == summary["datasets"]["alice/pick"]["left_out"] > 0
    assert set(broken.episode_index) == {1}
    assert summary["left_out"][0]["camera"] == "observation.images.wrist"
    assert table.indicator.isna().sum() == summary["frames_without_advantage"] >= len(broken)
    dataset = MultiLeRobotDataset([DatasetSource("alice/pick", root=root)], chunk_size=1, image_size=28)
    found = FrameAdvantages(dataset, tmp_path / "out")
    assert (found.indicators == MISSING).tolist() == table.indicator.isna().tolist()
    assert found.indicator(int(broken.index[0])) is None


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--policy.path="], "--policy.path"),
        (["--dataset.cameras=shuffle"], "none of name, view"),
        (["--dataset.exclude=missing.json"], "--dataset.exclude is for training"),
        (["--dataset.min_episode_frames=9"], "--dataset.min_episode_frames is for training"),
        (["--dataset.trim_idle"], "--dataset.trim_idle is for training"),
        (["--dataset.eval_split=0.5"], "--dataset.eval_split is for training"),
        (["--policy.device=foo"], "--policy.device=foo does not exist"),
        (["--policy.device=meta"], "--policy.device=meta does not exist"),
        (["--policy.device=cuda:99"], "--policy.device=cuda:99 does not exist"),
        (["--batch_size=20"], "multiple of 16"),
        (["--share=30"], "--share must be 0 to 1"),
        (["--look_ahead=0"], "--look_ahead must be at least 1"),
        (["--number=1"], "unknown flag --number"),
    ],
)
def test_wrong_flags_are_one_sentence(flags, extra, says, capsys, tmp_path):
    assert main([*flags, f"--output_dir={tmp_path}", *extra]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_processor(flags, capsys, tmp_path):
    assert main([*flags, "--policy.device=cuda", f"--output_dir={tmp_path}"]) == 2
    assert "--policy.device=cuda does not exist: this machine has cpu and 0 GPUs" in capsys.readouterr().err


def trained_with(checkpoint: Path, folder: Path, **choices) -> Path:
    """A copy of the checkpoint whose training read its data with these choices."""
    shutil.copytree(checkpoint, folder)
    data = draccus.encode(DatasetConfig(**choices))
    (folder / "train_config.json").write_text(json.dumps({"dataset": data, "steps": 1}))
    return folder


def test_frames_are_read_as_in_the_networks_training(value_checkpoint, tmp_path):
    choices = {"cameras": "view", "joint_convention": "native", "max_cameras": 2, "use_annotated_tasks": True}
    checkpoint = trained_with(value_checkpoint, tmp_path / "view", **choices)
    found = as_trained(DatasetConfig(repo_id="a/b", offline=True), checkpoint)
    assert found == DatasetConfig(repo_id="a/b", offline=True, **choices)
    assert as_trained(found, checkpoint, {"dataset.cameras"}) == found
    assert as_trained(found, value_checkpoint) == found  # it says nothing of its training
    with pytest.raises(UserError, match=r"joint_convention=normalized, but .* trained with native"):
        as_trained(DatasetConfig(joint_convention="normalized"), checkpoint)
    with pytest.raises(UserError, match=r"cameras=name, but .* trained with view: leave the flag out"):
        as_trained(DatasetConfig(), checkpoint, {"dataset.cameras"})
    shuffled = trained_with(value_checkpoint, tmp_path / "shuffle", cameras="shuffle")
    assert as_trained(DatasetConfig(cameras="view"), shuffled, {"dataset.cameras"}).cameras == "view"
    (shuffled / "train_config.json").write_text('{"dataset": {"max_cameras": "2"}}')
    with pytest.raises(UserError, match=r"dataset\.max_cameras is '2'"):
        as_trained(DatasetConfig(), shuffled)


def test_flags_are_given_on_the_command_line_or_in_a_file(tmp_path):
    file = tmp_path / "advantage.yaml"
    file.write_text("dataset: {cameras: name}\nlook_ahead: 3\n")
    for named in ([f"--config_path={file}"], ["--config_path", str(file)]):
        found = given_flags([*named, "--dataset.joint-convention=degrees"])
        assert {"dataset.cameras", "dataset.joint_convention"} <= found
        assert "dataset.use_annotated_tasks" not in found


def test_another_reading_of_the_frames_than_in_training_is_refused(value_checkpoint, flags, tmp_path, capsys):
    checkpoint = trained_with(value_checkpoint, tmp_path / "two", max_cameras=2)
    wrong = [*flags, f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'out'}"]
    assert main([*wrong, "--dataset.max_cameras=3"]) == 2
    assert "--dataset.max_cameras=3, but the value network" in capsys.readouterr().err


def test_recorded_numbers_of_another_convention_are_refused(value_checkpoint, flags, tmp_path, capsys):
    checkpoint = trained_with(value_checkpoint, tmp_path / "raw", joint_convention="native")
    advantage = [*flags, f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'out'}"]
    report = checkpoint / "data_report.json"
    report.write_text(json.dumps({"datasets": [{"convention": "normalized"}, {"convention": "degrees_v1"}]}))
    assert main(advantage) == 2
    assert "of the value network's training in degrees_v1, normalized, and with" in capsys.readouterr().err
    report.write_text(json.dumps({"datasets": [{}]}))
    assert main(advantage) == 2
    assert "names no conventions of its datasets" in capsys.readouterr().err


def test_per_task_thresholds_are_of_the_texts_that_the_network_reads(roots):
    sources = [DatasetSource(name, root=root) for name, root in roots.items()]
    dataset = MultiLeRobotDataset(sources, chunk_size=1, image_size=28)
    notes = SimpleNamespace(task={0: "stack", 3: "drop the cube", 4: "stack"}.get)
    numbers, texts = FrameReader(dataset, "name", notes, annotated_tasks=True).task_texts()
    expected = ["stack"] * LENGTHS[0] + [dataset.tasks[task] for task in dataset.task[37:89]]
    expected += ["drop the cube"] * LENGTHS[3] + ["stack"] * LENGTHS[4]
    assert [texts[number] for number in numbers] == expected
    for reader in (FrameReader(dataset, "name", notes), FrameReader(dataset)):
        numbers, texts = reader.task_texts()
        assert [texts[number] for number in numbers] == [dataset.tasks[task] for task in dataset.task]


def test_a_network_that_knows_cameras_by_view_judges_annotated_datasets(value_checkpoint, flags, tmp_path):
    checkpoint = trained_with(value_checkpoint, tmp_path / "view", cameras="view", use_annotated_tasks=True)
    (tmp_path / "notes").mkdir()
    args = [
        *flags,
        f"--policy.path={checkpoint}",
        f"--dataset.annotations={tmp_path / 'notes'}",
        "--workers=1",
    ]
    assert main([*args, f"--output_dir={tmp_path / 'out'}"]) == 0
    assert [len(rows["value"]) for rows in rows_of(tmp_path / "out")] == list(LENGTHS)
