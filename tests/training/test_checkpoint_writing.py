"""Writing checkpoints: in the background, of one step, whole or not at all."""

import logging
import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import SmallRun

from depi.errors import UserError
from depi.policies import load_policy
from depi.training import checkpoint, folders, saving
from depi.training.folders import check_checkpoint, find_damage, last_checkpoint, list_checkpoints
from depi.training.saving import Saver

pytestmark = pytest.mark.usefixtures("module_hub")  # which has the tokenizer
FORK = multiprocessing.get_context("fork")


def names(run) -> list[str]:
    return sorted(os.listdir(run.config.checkpoints_dir))


def test_training_goes_on_while_the_state_of_one_step_is_written(tmp_path, monkeypatch):
    run = SmallRun(tmp_path, decay=0.9, save_freq=1)
    begun, may_go_on = threading.Event(), threading.Event()
    write = saving.write_checkpoint

    def slow_write(*args):
        begun.set()
        assert may_go_on.wait(60)
        return write(*args)

    monkeypatch.setattr(saving, "write_checkpoint", slow_write)
    saver = Saver(run)
    run.take_step()
    saver.after_step()
    expected = {name: value.clone() for name, value in run.policy.state_dict().items()}
    average = {name: value.clone() for name, value in run.average.average.items()}
    moments = [value["exp_avg"].clone() for value in run.optimizer.state_dict()["state"].values()]
    lr = run.scheduler.get_last_lr()
    saver.save()
    assert begun.wait(60)
    for seed in range(3):
        run.take_step(seed)
        saver.after_step()
    assert not list_checkpoints(run.config.checkpoints_dir)
    may_go_on.set()
    saver.finish(stopped=False)
    saver.close()
    folder = last_checkpoint(run.config.checkpoints_dir)
    assert folder.parent.name == "000001"
    saved = load_policy(folder).state_dict()
    assert all(torch.equal(saved[name], value) for name, value in expected.items())
    state = folder.parent / "training_state"
    optimizer = load_file(state / "optimizer_state.safetensors")
    assert all(torch.equal(optimizer[f"state/{n}/exp_avg"], value) for n, value in enumerate(moments))
    other = SmallRun(tmp_path / "other", decay=0.9)
    step = checkpoint.load_training_state(
        folder, other.optimizer, other.scheduler, other.average, other.policy, 4
    )
    assert step == 1
    assert other.scheduler.get_last_lr() == lr
    assert all(torch.equal(other.average.average[name], value) for name, value in average.items())


def test_what_a_write_fails_with_reaches_the_loop(tmp_path, monkeypatch):
    run = SmallRun(tmp_path)

    def fail(*_):
        raise PermissionError(13, "Permission denied", "checkpoints")

    monkeypatch.setattr(saving, "write_checkpoint", fail)
    saver = Saver(run)
    run.take_step()
    saver.save()
    saver.close()
    with pytest.raises(PermissionError):
        saver.after_step()


def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing(tmp_path, monkeypatch, caplog):
    run = SmallRun(tmp_path, keep_last=1)
    run.take_step()
    saver = Saver(run)
    saver.save()
    saver.wait()

    def busy(_):
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(folders, "_remove", busy)
    run.take_step()
    saver.save()
    saver.wait()
    saver.close()
    assert "could not be removed: [Errno 39]" in caplog.text
    assert "000002" in names(run)


def test_undecodable_samples_of_all_processes_are_added_up():
    failures = [{"a/b": {"0": 2, "3": 1}}, {}, {"a/b": {"3": 4}, "c/d": {"1": 1}}]
    assert saving.added_up(failures) == {"a/b": {"0": 2, "3": 5}, "c/d": {"1": 1}}


def write_slowly(run, sync, seed) -> None:
    """Write one checkpoint after the other, until killed."""
    torch.set_num_threads(1)  # a forked process has none of the other threads, and would wait for them
    folders._sync_path = lambda path: (time.sleep(0.002), sync(path))
    checksum = folders._checksum
    folders._checksum = lambda path: (time.sleep(0.002), checksum(path))[1]
    while True:
        run.step += 1
        snapshot = saving.take_snapshot(run, saving.HostMemory(torch.device("cpu"), True))
        folder = saving.write_checkpoint(run.config, snapshot, run.policy, run.processors)
        folders.remove_old(folder, 2, None, set())


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path):
    run = SmallRun(tmp_path)
    run.take_step()
    checkpoints, draw = run.config.checkpoints_dir, np.random.default_rng()
    steps, torn = [], 0
    for attempt in range(12):
        if attempt % 3 == 2:
            run.step = max(run.step - 3, 0)  # back to an earlier one: what is there is written again
        process = FORK.Process(target=write_slowly, args=(run, folders._sync_path, attempt))
        process.start()
        time.sleep(draw.uniform(0.1, 0.6))
        process.kill()
        process.join()
        if not (checkpoints / "last").exists():
            continue
        pretrained = last_checkpoint(checkpoints)
        check_checkpoint(pretrained)
        assert all(find_damage(path / "pretrained_model") is None for path in list_checkpoints(checkpoints))
        run.step = folders.read_training_step(pretrained)["step"]
        assert int(pretrained.parent.name) == run.step
        torn += any(name.endswith(".tmp") for name in names(run))
        folders.remove_leftovers(checkpoints)
        assert not any(name.endswith(".tmp") for name in names(run))
        steps.append(run.step)
    assert len(steps) >= 6
    assert torn, "no write was interrupted"


def small_disk(folder) -> None:
    """Put a file system of 1 MB at a folder, for this process alone."""
    os.unshare(os.CLONE_NEWNS | (0 if os.geteuid() == 0 else os.CLONE_NEWUSER))
    subprocess.run(["mount", "--make-rprivate", "/"], check=False)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)


def small_files(folder) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))


def save_without_room(run, shrink, queue) -> None:
    torch.set_num_threads(1)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("depi").addHandler(handler)
    try:
        shrink(run.config.checkpoints_dir)
    except (OSError, subprocess.CalledProcessError):
        return queue.put(None)
    saver = Saver(run)
    saver.save()
    saver.wait()
    run.step += 1  # training goes on
    left = os.listdir(run.config.checkpoints_dir)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    try:
        saver.finish(stopped=False)
    except UserError as error:
        return queue.put((records, left, str(error)))
    return queue.put((records, left, ""))


@pytest.mark.parametrize("shrink", [small_disk, small_files])
def test_without_room_training_goes_on_and_the_end_says_so(tmp_path, shrink):
    run = SmallRun(tmp_path)
    run.take_step()
    run.config.checkpoints_dir.mkdir()
    queue = FORK.SimpleQueue()
    process = FORK.Process(target=save_without_room, args=(run, shrink, queue))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    result = queue.get()
    if result is None:
        pytest.skip("file systems cannot be mounted here")
    records, left, sentence = result
    assert left == []
    assert len(records) == 1
    reason = "disk is full" if shrink is small_disk else "file size limit"
    for text in (records[0], sentence):
        assert reason in text
        assert "step 1" in text
        assert str(tmp_path) in text
    assert "training goes on" in records[0]


def test_only_the_last_and_every_so_many_are_kept(tmp_path):
    run = SmallRun(tmp_path, keep_last=2, keep_every=4)
    run.take_step()
    saver = Saver(run)
    for step in range(1, 8):
        run.step = step
        saver.save()
        saver.wait()
        assert f"{step:06d}" in names(run)
    assert names(run) == ["000004", "000006", "000007", "last"]
    folders.remove_old(run.config.checkpoints_dir / "000007", 1, None, {tmp_path / "checkpoints" / "000006"})
    assert names(run) == ["000006", "000007", "last"]
    # After going back to 6: what is later than the newest complete one stays until it is written again.
    folders.remove_old(run.config.checkpoints_dir / "000006", 1, None, set())
    assert names(run) == ["000006", "000007", "last"]
    saver.close()


@pytest.fixture(scope="module")
def two_checkpoints(module_hub, tmp_path_factory):
    run = SmallRun(tmp_path_factory.mktemp("run"), decay=0.9)
    run.take_step()
    saver = Saver(run)
    for step in (1, 2):
        run.step = step
        saver.save()
    saver.finish(stopped=False)
    saver.close()
    return run.config.checkpoints_dir


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def tear(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("pretrained_model/model.safetensors", truncate, "bytes of"),
        ("pretrained_model/model.safetensors", flip, "checksum"),
        ("training_state/optimizer_state.safetensors", os.unlink, "missing"),
        ("training_state/ema.safetensors", flip, "checksum"),
        ("training_state/scheduler_state.json", truncate, "bytes of"),
        ("training_state/manifest.json", tear, "cannot be read"),
    ],
)
def test_damage_is_found_and_the_one_before_is_offered(two_checkpoints, name, damage, says):
    path = two_checkpoints / "000002" / name
    content = path.read_bytes()
    check_checkpoint(last_checkpoint(two_checkpoints))
    damage(path)
    with pytest.raises(UserError) as caught:
        check_checkpoint(last_checkpoint(two_checkpoints))
    path.write_bytes(content)
    assert says in str(caught.value)
    assert path.name in str(caught.value)
    assert f"--config_path={two_checkpoints / '000001' / 'pretrained_model'}" in str(caught.value)


def test_what_people_edit_is_no_damage(two_checkpoints):
    pretrained = two_checkpoints / "000002" / "pretrained_model"
    for name in ("README.md", "config.json", "train_config.json"):
        (pretrained / name).write_text((pretrained / name).read_text() + "\n")
    check_checkpoint(pretrained)


def test_a_manifest_may_name_nothing_outside(two_checkpoints, tmp_path):
    pretrained = two_checkpoints / "000001" / "pretrained_model"
    manifest = two_checkpoints / "000001" / "training_state" / "manifest.json"
    content = manifest.read_text()
    manifest.write_text('{"files": {"training_state/../../../etc/passwd": {"bytes": 1, "crc32": 1}}}')
    assert "cannot be read" in find_damage(pretrained)
    manifest.write_text(content)


def test_last_that_leads_nowhere_names_what_is_there(two_checkpoints):
    link = two_checkpoints / "last"
    link.unlink()
    link.symlink_to("000009")
    with pytest.raises(UserError, match=r"000002/pretrained_model"):
        last_checkpoint(two_checkpoints)
    folders.point_last_to(two_checkpoints / "000002")
