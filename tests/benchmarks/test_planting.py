"""Planting: each kind of defect changes what it says, in the episodes that it names, and nothing else."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import clean_sets
    import planting

    KINDS = planting.load_kinds()

LENGTH, SIZE = 80, (48, 64)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(clean_sets, "SIZE", SIZE)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A set of 12 episodes whose joints move and rest away from zero, and whose videos differ."""
    folder, rng = tmp_path_factory.mktemp("clean"), np.random.default_rng(1)
    episodes = []
    for number in range(clean_sets.EPISODES):
        phase = np.linspace(0, 3, LENGTH)[:, None] + rng.uniform(-0.3, 0.3, 6)
        path = np.array([0, -60, 60, 50, 0, 5]) + np.array([40, 40, -40, 30, 8, 60]) * np.sin(phase)
        action = (path + rng.normal(0, 0.1, path.shape)).astype(np.float32)
        action[:, 5] = np.abs(action[:, 5])
        state = np.roll(action, 2, axis=0) + np.float32(0.2)
        videos = {}
        for tone, camera in enumerate((*clean_sets.CAMERAS, clean_sets.SPARE)):
            frames = np.full((LENGTH, *SIZE, 3), 60 + 50 * tone, np.uint8)
            frames += rng.integers(0, 40, frames.shape, np.uint8)
            frames[np.arange(LENGTH), :, np.arange(LENGTH) % SIZE[1]] = 250
            videos[camera] = folder / f"{camera}_{number}.mp4"
            clean_sets.encode(videos[camera], frames, 30, "h264")
        time = np.arange(LENGTH) / 30
        episodes.append(clean_sets.Episode(action, state, time, "Pick up the cube.", videos))
    return lambda form, unit: clean_sets.RecordedSet(form, unit, "so101_follower", 30, "h264", episodes)


def differences(one, other):
    """What differs between two episodes."""
    found = set()
    for name in ("action", "state", "time"):
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            found.add(name)
    if one.task != other.task:
        found.add("task")
    if one.videos != other.videos:
        found.add("videos")
    return found


def hashes(root):
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def written(recorded, root, folder, edits=()):
    clean_sets.write_set(recorded, root, folder)
    for edit in edits:
        edit(root)
    return hashes(root)


@pytest.mark.parametrize("strength", ["weak", "middle", "strong"])
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_changes_what_it_says_and_nothing_else(clean, tmp_path, name, strength):
    form, unit = [("v2.1", "normalized"), ("v3.0", "degrees")][len(name) % 2]
    kind, source = KINDS[name], clean(form, unit)
    copy, spoilt = planting.plant(source, name, strength, tmp_path / "films", 7)
    changed = {
        number: found
        for number, pair in enumerate(zip(source.episodes, copy.set.episodes, strict=True))
        if (found := differences(*pair))
    }
    if kind.changes == {"files"}:
        assert not changed
        assert copy.edits
        before = written(copy.set, tmp_path / "before", tmp_path / "joined")
        after = written(copy.set, tmp_path / "after", tmp_path / "joined", copy.edits)
        touched = {path for path in before | after if before.get(path) != after.get(path)}
        assert touched
        assert not any(path.endswith("README.md") for path in touched)
        return
    assert not copy.edits
    named = set(spoilt) if spoilt else set(range(len(source.episodes)))
    original = {spoilt[0]} if name == "duplicated" else set()
    assert set(changed) == named - original
    assert set().union(*changed.values()) <= kind.changes
    for episode in copy.set.episodes:
        shapes = {episode.action.shape, episode.state.shape, (len(episode.time), 6)}
        assert len(shapes) == 1
