"""`--dataset.mixture`, from the command line or a file to the stream of samples."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from recordings import Recording, write_v2

from depi.datasets.samples.mixture import make_mixture
from depi.datasets.union.multi import MultiLeRobotDataset
from depi.errors import UserError
from depi.training.command_line import parse_train_config
from depi.training.config import DatasetConfig
from depi.training.data import dataset_sources, resumed_sources, weighted_mixture


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("mixed")
    return {
        "user/long": write_v2(folder / "long", Recording(lengths=(9, 8, 7), fps=20)),
        "user/short": write_v2(folder / "short", Recording(lengths=(5, 4), seed=1)),
    }


def entries(roots: dict[str, Path], **changes) -> list[dict]:
    mixture = [{"repo_id": name, "root": str(root), "weight": 1} for name, root in roots.items()]
    mixture[0] |= {"episodes": [2, 0], "weight": 3} | changes
    return mixture


def parse(tmp_path: Path, mixture: str, *more: str):
    flags = ["--policy.type=depi_pi0", f"--output_dir={tmp_path / 'run'}", f"--dataset.mixture={mixture}"]
    return parse_train_config([*flags, *more])


@pytest.mark.parametrize("name", ["mixture.json", "mixture.yaml", None])
def test_folders_episodes_and_weights_reach_the_stream(roots, tmp_path, name):
    text = json.dumps(entries(roots))
    if name:
        (tmp_path / name).write_text(text)
    config = parse(tmp_path, str(tmp_path / name) if name else text, "--dataset.action_freq=10")
    dataset = MultiLeRobotDataset(
        dataset_sources(config), chunk_size=4, image_size=64, action_freq=config.dataset.action_freq
    )
    assert dataset.repo_ids == ("user/long", "user/short")
    assert dataset.episode_recorded.tolist() == [0, 2, 0, 1]
    assert dataset[0]["action_is_pad"].tolist() == [False] * 4
    assert dataset[7]["action_is_pad"].tolist() == [False, True, True, True]  # 20 fps, every other frame
    mixture = make_mixture(dataset, weights=weighted_mixture(config.dataset), seed=0)
    assert mixture.shares() == pytest.approx({"user/long": 0.75, "user/short": 0.25}, abs=0.01)


def test_the_saved_configuration_holds_the_mixture_itself(roots, tmp_path):
    file = tmp_path / "mixture.json"
    file.write_text(json.dumps(entries(roots)))
    config = parse(tmp_path, str(file))
    saved = tmp_path / "train_config.json"
    saved.write_text(json.dumps(config.to_dict()))
    file.unlink()
    again = parse_train_config([f"--config_path={saved}", f"--output_dir={tmp_path / 'run'}"])
    assert again.dataset.mixture == config.dataset.mixture
    assert dataset_sources(again) == dataset_sources(config)


def test_a_resumed_run_keeps_folders_and_episodes_and_takes_the_revisions_it_began_with(roots):
    config = SimpleNamespace(dataset=DatasetConfig(mixture=parsed(entries(roots))))
    used = [{"repo_id": "user/short", "revision": "abc"}, {"repo_id": "user/long", "revision": None}]
    short, long = resumed_sources(config, used)
    assert (short.revision, short.root) == ("abc", roots["user/short"])
    assert (long.root, long.episodes) == (roots["user/long"], (2, 0))


def parsed(content: list[dict]):
    import draccus

    from depi.training.mixture import MixtureSource

    return draccus.decode(list[MixtureSource], content)


def test_an_episode_that_a_dataset_lacks_is_named(roots, tmp_path):
    config = parse(tmp_path, json.dumps(entries(roots, episodes=[5])))
    with pytest.raises(UserError, match="user/long has no episode 5"):
        MultiLeRobotDataset(dataset_sources(config), image_size=64)


def test_the_same_dataset_with_other_episodes_is_another_set(roots, tmp_path):
    """The cached index of one choice is not taken for another."""
    for episodes, expected in (([2, 0], [0, 2]), ([1], [1]), (None, [0, 1, 2]), ([0, 2], [0, 2])):
        config = parse(tmp_path, json.dumps(entries(roots, episodes=episodes)[:1]))
        dataset = MultiLeRobotDataset(dataset_sources(config), image_size=64)
        assert dataset.episode_recorded.tolist() == expected


@pytest.mark.parametrize(
    ("mixture", "says"),
    [
        ("[]", "is empty"),
        ("[{repo_id: a/b},{repo_id: a/b}]", "names a/b more than once"),
        ("[{repo_id: a/b, weight: 1},{repo_id: c/d}]", "c/d has no weight"),
        ("[{repo_id: a/b, weight: -1}]", "must be 0 or more"),
        ("[{repo_id: a/b, weight: .inf}]", "must be 0 or more"),
        ("[{repo: a/b}]", "`repo` are not valid"),
        ("absent.yaml", "absent.yaml cannot be read: No such file"),
    ],
)
def test_wrong_mixtures_are_one_sentence(tmp_path, mixture, says):
    with pytest.raises(UserError, match=says) as caught:
        parse(tmp_path, mixture)
    assert "\n" not in str(caught.value)


def test_wrong_files_and_flags_beside_are_refused(roots, tmp_path):
    file = tmp_path / "mixture.yaml"
    for content in ("a: b", "- a/b", "- {repo_id: a/b, wait: 1}", "[", "- [1]"):
        file.write_text(content)
        with pytest.raises(UserError, match=r"mixture\.yaml"):
            parse(tmp_path, str(file))
    file.write_text(json.dumps(entries(roots)))
    for flag, says in (
        ("--dataset.weights=uniform", "leave out --dataset.weights"),
        ("--dataset.repo_id=a/b", "not --dataset.mixture and --dataset.repo_id together"),
        ("--dataset.episodes=[0]", "--dataset.episodes goes with --dataset.repo_id"),
    ):
        with pytest.raises(UserError, match=says):
            parse(tmp_path, str(file), flag)
