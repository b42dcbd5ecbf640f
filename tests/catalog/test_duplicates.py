"""Duplicates by what was recorded: forks, subsets, merges, and trimmed, rounded or converted copies."""

import copy
import hashlib
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from depi.catalog import duplicates, landmarks
from depi.catalog.catalogue import Row
from depi.catalog.duplicates import pack, unpack
from depi.catalog.facts import Thresholds
from depi.catalog.landmarks import episode_hashes, landmark_hashes
from depi.catalog.order import settle
from depi.catalog.rules import RULES_VERSION
from depi.datasets.recording.joints import from_degrees, to_degrees

START = datetime(2025, 1, 1, tzinfo=UTC)


def hand_moved(seed: int, length: int = 300) -> np.ndarray:
    """An episode as people record it, float32 [length, 6] degrees: pose to pose, at its own pace."""
    random = np.random.default_rng(seed)
    poses = random.uniform((-70, -70, -70, -70, -70, 5), (70, 70, 70, 70, 70, 90), (length // 25 + 3, 6))
    times = np.cumsum(random.uniform(15, 40, len(poses)))
    frames = np.arange(length) + times[0]
    eased = [np.interp(frames, times, pose) for pose in poses.T]
    smooth = [np.convolve(np.pad(values, 5, mode="edge"), np.ones(11) / 11, "valid") for values in eased]
    return np.stack(smooth, axis=1).astype(np.float32)


EPISODES = [hand_moved(seed) for seed in range(12)]


def dataset(name: str, episodes: list[np.ndarray], day: int | None = 1, convention: str = "degrees") -> Row:
    """The row of an accepted dataset with these episodes, recorded in `convention`."""
    action, length = np.concatenate(episodes), np.array([len(episode) for episode in episodes])
    return Row(
        repo_id=name,
        verdict="accepted",
        created_at=None if day is None else START + timedelta(days=day),
        fingerprint=None,
        episode_hashes=pack(episode_hashes(action, length)),
        landmark_hashes=pack(landmark_hashes(to_degrees(action, convention), length)),
    )


def refused(rows: list[Row], **limits) -> dict[str, str]:
    """repo_id -> reason of the rejected ones."""
    return {row.repo_id: row.reasons[0] for row in settle(rows, limits=Thresholds(**limits)) if row.reasons}


ORIGINAL = dataset("a/original", EPISODES[:8])


@pytest.fixture(autouse=True)
def forget():
    """Rows are settled in place."""
    yield
    ORIGINAL.verdict, ORIGINAL.reasons, ORIGINAL.flags = "accepted", [], []
    ORIGINAL.duplicate_of = ORIGINAL.near_duplicate_of = None


def test_a_copy_in_another_order_and_a_part_are_duplicates():
    rows = [dataset("b/shuffled", EPISODES[7::-1], 2), dataset("c/part", EPISODES[2:5], 3), ORIGINAL]
    assert refused(rows) == {
        "b/shuffled": "not_duplicate: 8 of 8 episodes are in a/original, published earlier",
        "c/part": "not_duplicate: 3 of 3 episodes are in a/original, published earlier",
    }
    assert [row.duplicate_of for row in rows] == ["a/original", "a/original", None]


def test_a_merge_is_a_duplicate_of_all_that_it_was_made_of():
    rows = [dataset("z/merged", EPISODES[:12], 9), dataset("b/second", EPISODES[8:], 2), ORIGINAL]
    assert refused(rows) == {
        "z/merged": "not_duplicate: 12 of 12 episodes are in a/original (8), b/second (4), published earlier"
    }
    assert rows[0].duplicate_of == "a/original"


def test_a_merge_that_was_published_first_is_the_original():
    rows = [
        dataset("m/merged", EPISODES, 1),
        dataset("b/one", EPISODES[:8], 2),
        dataset("c/two", EPISODES[8:], 3),
    ]
    assert set(refused(rows)) == {"b/one", "c/two"}


def test_a_grown_dataset_is_kept_with_a_remark():
    grown = dataset("b/grown", EPISODES[5:12], 2)
    assert refused([ORIGINAL, grown]) == {}
    remark = "shared_episodes: 3 of 7 episodes are in a/original, published earlier"
    assert (ORIGINAL.flags, grown.flags) == ([], [remark])
    settle([ORIGINAL, grown])
    assert grown.flags == [remark]
    settle([grown])
    assert grown.flags == []


def test_how_much_may_be_shared_is_a_flag():
    rows = [ORIGINAL, dataset("b/half", EPISODES[4:12], 2)]
    assert refused(rows) == {}
    assert set(refused(rows, max_shared_episodes=0.49)) == {"b/half"}


NEAR = {
    "trimmed": [episode[20:-30] for episode in EPISODES[:8]],
    "rounded": [np.round(episode, 1) for episode in EPISODES[:8]],
    "noisy": [episode + np.float32(1e-4) for episode in EPISODES[:8]],
    "recalibrated": [episode * np.float32([1.02, 0.98, 1.02, 0.99, 1.01, 1.0]) for episode in EPISODES[:8]],
    "trimmed and merged": [episode[10:] for episode in EPISODES],
}


@pytest.mark.parametrize("kind", NEAR)
def test_changed_copies_are_near_duplicates(kind):
    copy = dataset("b/copy", NEAR[kind], 2)
    (reason,) = refused([copy, ORIGINAL]).values()
    assert reason.startswith("not_near_duplicate: same motion as a/original, published earlier (")
    assert (copy.duplicate_of, copy.near_duplicate_of) == (None, "a/original")
    assert settle([copy])[0].verdict == "accepted"


@pytest.mark.parametrize("convention", ["degrees_v1", "normalized", "radians"])
def test_other_joint_conventions_are_seen_through(convention):
    converted = [from_degrees(episode, convention) for episode in EPISODES[:8]]
    copy = dataset("b/converted", converted, 2, convention)
    assert set(refused([ORIGINAL, copy])) == {"b/converted"}
    assert copy.near_duplicate_of == "a/original"


def test_the_same_task_recorded_again_is_no_duplicate():
    random = np.random.default_rng(5)
    again = []
    for episode in EPISODES[:8]:  # the same poses in the same order, each a bit sooner or later
        knots = np.linspace(0, len(episode) - 1, 10)
        paced = knots + np.concatenate([[0], random.uniform(-5, 5, 8), [0]])
        frames = np.interp(np.arange(len(episode)), knots, paced)
        again.append(
            np.stack([np.interp(frames, np.arange(len(episode)), values) for values in episode.T], 1)
        )
    assert refused([ORIGINAL, dataset("b/again", again, 2)]) == {}


def test_of_chains_only_what_is_kept_counts():
    """c has most of b's episodes; b was refused, so without c they would be lost."""
    rows = [
        dataset("a/first", EPISODES[:4], 1),
        dataset("b/second", EPISODES[1:6], 2),  # 3 of 5 in a
        dataset("c/third", EPISODES[3:7], 3),  # 3 of 4 in b, 1 of 4 in a
    ]
    assert set(refused(rows)) == {"b/second"}
    assert set(refused(list(reversed(rows)))) == {"b/second"}


def test_ties_go_to_the_name_and_the_undated_come_last():
    assert set(refused([dataset("b/same", EPISODES[:4]), dataset("a/same", EPISODES[:4])])) == {"b/same"}
    assert set(refused([dataset("a/undated", EPISODES[:4], None), dataset("b/dated", EPISODES[:4])])) == {
        "a/undated"
    }


def test_each_rule_can_be_switched_off_and_exact_copies_are_not_caught_by_the_other():
    exact, near = dataset("b/exact", EPISODES[:8], 2), dataset("c/near", NEAR["trimmed"], 3)
    for disabled, left in (("not_duplicate", {"c/near"}), ("not_near_duplicate", {"b/exact"})):
        settled = settle([ORIGINAL, exact, near], frozenset({disabled}))
        assert {row.repo_id for row in settled if row.verdict == "rejected"} == left


def test_resting_arms_are_no_evidence():
    resting = [np.zeros((100, 6), np.float32), np.ones((100, 6), np.float32)]
    one, two = (dataset(name, [*resting, EPISODES[number]], number) for number, name in enumerate("ab"))
    assert len(unpack(one.episode_hashes, "<u8")) == 1
    assert refused([one, two]) == {}


def test_large_datasets_are_compared_by_a_part_of_their_hashes(monkeypatch):
    for module in (duplicates, landmarks):
        monkeypatch.setattr(module, "MAX_STORED", 6)
    large, part = dataset("a/large", EPISODES, 1), dataset("b/part", EPISODES[:5], 2)
    assert len(unpack(large.episode_hashes, "<u8")) == 6
    assert set(refused([large, part])) == {"b/part"}
    assert refused([large, dataset("c/other", [hand_moved(seed) for seed in range(50, 55)], 2)]) == {}


def test_hashes_depend_on_nothing_but_the_values():
    action, length = np.concatenate(EPISODES[:2]), np.array([300, 300])
    hashes = episode_hashes(action, length)
    assert hashes.dtype == np.uint64
    assert np.array_equal(hashes, episode_hashes(action.astype(np.float64), length))
    assert np.array_equal(unpack(pack(hashes), "<u8"), hashes)
    assert len(unpack(None, "<u4")) == 0
    first, second = (landmark_hashes(episode, np.array([300])) for episode in EPISODES[:2])
    both = landmark_hashes(action, length)
    assert both.dtype == np.uint32
    assert np.array_equal(both, np.union1d(first, second))


@pytest.mark.parametrize("length", [(1,), (1, 1, 1), (5, 1, 2)])
def test_tiny_episodes_have_no_hashes(length):
    action = np.concatenate([EPISODES[0][:n] for n in length])
    assert len(episode_hashes(action, np.array(length))) == 0
    assert len(landmark_hashes(action, np.array(length))) == 0


def crowd(count: int) -> list[Row]:
    """Many datasets of 40 episodes; one in ten is a copy of the one before."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for number in range(count):
        episodes = np.sort(random.integers(0, 2**63, 40, np.uint64))
        runs = np.sort(random.integers(0, 2**32, 400, np.uint32))
        row = Row(f"a/{number:05d}", "accepted", created_at=START + timedelta(minutes=number))
        row.episode_hashes, row.landmark_hashes = pack(episodes), pack(runs)
        if number % 10 == 9:
            row.episode_hashes = rows[-1].episode_hashes
        rows.append(row)
    return rows


def test_effort_grows_with_the_number_of_datasets_not_with_its_square():
    small, large = crowd(400), crowd(3200)
    seconds = []
    for rows in (small, large):
        taken = []
        for _ in range(3):  # the least of them has not the garbage of other tests in it
            again = copy.deepcopy(rows)
            started = time.process_time()
            settled = settle(again)
            taken.append(time.process_time() - started)
        seconds.append(min(taken))
        assert sum(row.verdict == "rejected" for row in settled) == len(rows) // 10
    assert seconds[1] < 24 * max(seconds[0], 0.02)  # 8 times as many; squared it would be 64


def test_hashes_of_one_rules_version_can_be_compared():
    frame = np.arange(600)[:, None]
    degrees = np.round(60 * ((frame * np.array([3, 5, 7, 11, 13, 17]) % 200) / 100 - 1))
    hashes = landmark_hashes(degrees, np.array([350, 250]))
    digest = hashlib.blake2b(pack(hashes), digest_size=8).hexdigest()
    # Where the digest changes, so must the version: catalogues hold hashes of earlier calls.
    assert (RULES_VERSION, digest) == ("6", "43a8e5e01c81a56d")
