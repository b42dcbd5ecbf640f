"""Training with advantage indicators: who is told what, runs and their checkpoints, what a policy learns."""

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from recordings import Recording, write_v2
from runs import losses, replaced, weights
from small_pi0 import CAMERAS, make_small

from depi.datasets.samples.advantages import write_advantages, write_summary
from depi.datasets.union.multi import DatasetSource, MultiLeRobotDataset
from depi.errors import UserError
from depi.policies import DepiPi0Config, load_processors, make_processors, preprocess
from depi.policies.configuration_value import ValueConfig
from depi.policies.indicator import as_told, indicator_of, is_conditioned, with_indicator
from depi.train import main as train
from depi.training.config import AdvantageConfig, DatasetConfig, TrainConfig
from depi.training.data import Collate, batches, training_stream

SMALL = {"image_resolution": (28, 28), "chunk_size": 4, "n_action_steps": 4}


def write_sidecars(folder, episodes, indicators, run="a"):
    """Advantages of datasets: `episodes` maps repo ids to episode lengths, `indicators` to flags by frame."""
    for repo_id, lengths in episodes.items():
        frames = sum(lengths)
        columns = {
            "episode_index": np.repeat(np.arange(len(lengths)), lengths),
            "frame_index": np.concatenate([np.arange(length) for length in lengths]),
            "value": np.zeros(frames, np.float32),
            "return": np.zeros(frames, np.float32),
            "advantage": np.zeros(frames, np.float32),
            "intervention": np.zeros(frames, bool),
            "indicator": indicators[repo_id],
        }
        write_advantages(folder, repo_id, columns, run=run, revision=None)
    write_summary(folder, {"run": run, "epsilon": 0.05, "datasets": {name: {} for name in episodes}})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    write_v2(folder / "long", Recording(lengths=(9, 6), cameras=("observation.images.top",)))
    write_v2(folder / "short", Recording(lengths=(5,), cameras=("observation.images.top",), seed=1))
    sources = [DatasetSource(f"user/{name}", root=folder / name) for name in ("long", "short")]
    return MultiLeRobotDataset(sources, chunk_size=4, image_size=28)


FLAGS = {
    "user/long": [True] * 4 + [False] * 10 + [None],
    "user/short": [True, None, False, False, True],
}


@pytest.fixture(scope="module")
def sidecars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("advantages")
    write_sidecars(folder, {"user/long": (9, 6), "user/short": (5,)}, FLAGS)
    return folder


def stream(dataset, seed=3, **advantage):
    config = TrainConfig(dataset=DatasetConfig(), seed=seed, advantage=AdvantageConfig(**advantage))
    return training_stream(dataset, config, DepiPi0Config(**SMALL))


def test_a_share_of_the_samples_is_told_nothing(dataset):
    told = [stream(dataset, mode="on").conditioning.indicator(0, position) for position in range(4000)]
    assert set(told) == {True, None}
    assert told.count(None) / 4000 == pytest.approx(0.3, abs=3 * (0.3 * 0.7 / 4000) ** 0.5)
    # Those of a higher share are more, and not others; another seed has others.
    more = stream(dataset, mode="on", dropout=0.6).conditioning
    assert all(more.indicator(0, position) is None for position in range(4000) if told[position] is None)
    other = stream(dataset, mode="on", seed=4).conditioning
    assert [other.indicator(0, position) for position in range(4000)] != told
    for share, only in ((0.0, True), (1.0, None)):
        always = stream(dataset, mode="on", dropout=share).conditioning
        assert {always.indicator(0, position) for position in range(200)} == {only}


def test_samples_are_told_what_the_sidecars_say(dataset, sidecars):
    told = stream(dataset, mode="use", path=sidecars, dropout=0.0)
    flags = FLAGS["user/long"] + FLAGS["user/short"]
    plain = stream(dataset)
    for position in range(30):
        sample, before = told[position], plain[position]
        assert indicator_of(sample["task"]) is flags[int(sample["index"])]
        assert with_indicator(sample["task"], None) == before["task"]
        # Nothing else is drawn differently.
        for key in ("index", "noise", "time", "action"):
            assert torch.equal(sample[key], before[key])
    report = told.report()["advantage"]
    counts = [report[f"frames_{name}"] for name in ("positive", "negative", "missing")]
    assert counts == [6, 12, 2]
    assert (report["mode"], report["dropout"], report["epsilon"]) == ("use", 0.0, 0.05)
    assert plain.report()["advantage"] is None


def test_an_indicator_in_a_recording_is_not_believed(dataset, monkeypatch):
    liars = tuple(with_indicator(task, False) for task in dataset.tasks)
    monkeypatch.setattr(dataset, "tasks", liars)
    tasks = [stream(dataset, mode="on", dropout=0.5)[position]["task"] for position in range(20)]
    assert {indicator_of(task) for task in tasks} == {True, None}


def test_missing_sidecars_are_an_error(dataset, tmp_path):
    with pytest.raises(UserError, match=r"there are no advantages in .*: compute them with `depi advantage"):
        stream(dataset, mode="use", path=tmp_path)
    write_sidecars(tmp_path, {"user/long": (9, 6)}, FLAGS)
    with pytest.raises(UserError, match=r"1 of 2 datasets cannot be used \(user/short: it has none\)"):
        stream(dataset, mode="use", path=tmp_path)


def test_a_value_function_is_told_nothing(dataset):
    config = TrainConfig(dataset=DatasetConfig(), advantage=AdvantageConfig(mode="on"))
    with pytest.raises(UserError, match="a value function has none"):
        training_stream(dataset, config, ValueConfig(size="tiny"))


@pytest.mark.usefixtures("module_hub")
def test_processes_and_resumption_change_nothing(dataset, sidecars):
    """Prompts by step, as one process reads them, two, and one that goes on from the second step."""
    advantage = AdvantageConfig(mode="use", path=sidecars)
    samples = stream(dataset, mode="use", path=sidecars)
    policy = make_small(tokenizer_max_length=24).config
    stats = {key: {"mean": np.zeros(6), "std": np.ones(6)} for key in ("observation.state", "action")}
    pre, _ = make_processors(policy, stats, indicator=True)

    def read(batch_size, rank=0, world_size=1, start_step=0):
        config = TrainConfig(advantage=advantage, batch_size=batch_size, steps=5, num_workers=0)
        collate = Collate(pre, policy, ragged=False)
        place = {"start_step": start_step, "rank": rank, "world_size": world_size, "pin": False}
        keys = ("index", OBS_LANGUAGE_TOKENS, OBS_LANGUAGE_ATTENTION_MASK)
        return [[each[key] for key in keys] for each in batches(samples, config, collate, **place)]

    def same(ours, theirs):
        return all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))

    whole = read(8)
    tokenizer = next(step.input_tokenizer for step in pre.steps if hasattr(step, "indicator"))
    flags = FLAGS["user/long"] + FLAGS["user/short"]
    said = [
        (indicator_of(tokenizer.decode(tokens[mask])), flags[int(index)])
        for step in whole
        for index, tokens, mask in zip(*step, strict=True)
    ]
    assert all(told in (flag, None) for told, flag in said)
    assert {told for told, _ in said} == {True, False, None}
    pairs = zip(read(4, 0, 2), read(4, 1, 2), strict=True)
    halves = [[torch.cat(both) for both in zip(*step, strict=True)] for step in pairs]
    assert all(same(*steps) for steps in zip(whole, halves, strict=True))
    assert all(same(*steps) for steps in zip(whole[2:], read(8, start_step=2), strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--advantage.mode=maybe"], "--advantage.mode=maybe is none of off, on, use"),
        (["--advantage.mode=use"], "--advantage.mode=use and --advantage.path=FOLDER go together"),
        (["--advantage.path=x"], "--advantage.mode=use and --advantage.path=FOLDER go together"),
        (["--advantage.dropout=1.5"], "--advantage.dropout must be 0 to 1, not 1.5"),
        (["--advantage.mode=on", "--policy.tokenizer_max_length=8"], "has no room for a task and the"),
        (["--policy.guidance=-1"], "guidance must be 0 to 100, not -1"),
    ],
)
def test_wrong_flags(flags, wrong, message, capfd):
    assert train([*flags, *wrong]) == 2
    assert message in capfd.readouterr().err


LENGTHS = {"alice/pick": (9, 7), "bob/place": (8, 6)}


@pytest.fixture
def used(tmp_path):
    """Advantages of the published datasets."""
    indicators = {
        repo_id: [frame % 3 == 0 for frame in range(sum(lengths))] for repo_id, lengths in LENGTHS.items()
    }
    write_sidecars(tmp_path / "advantages", LENGTHS, indicators)
    return tmp_path / "advantages"


def test_a_run_remembers_and_resumes_exactly(flags, used, tmp_path, capfd, caplog):
    told = [*flags, "--advantage.mode=use", f"--advantage.path={used}"]
    run, whole, plain = (tmp_path / name for name in ("run", "whole", "plain"))
    assert train(replaced(told, output_dir=whole)) == 0
    assert train(replaced(told, steps=4)) == 0
    assert train(["--resume=true", f"--output_dir={run}", "--steps=6"]) == 0
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)
    assert train(replaced(flags, output_dir=plain)) == 0
    assert losses(plain)[1] != losses(whole)[1]

    folder = run / "checkpoints" / "last" / "pretrained_model"
    saved = json.loads((folder / "train_config.json").read_text())["advantage"]
    assert saved == {"mode": "use", "path": str(used), "dropout": 0.3}
    for where in (run, folder):
        report = json.loads((where / "data_report.json").read_text())["stream"]["advantage"]
        assert (report["frames_positive"], report["frames_negative"]) == (11, 19)
    pre, _ = load_processors(run)
    assert is_conditioned(pre)
    assert next(step.indicator for step in pre.steps if hasattr(step, "indicator")) == "positive"
    assert not is_conditioned(load_processors(plain)[0])
    said = [
        "Advantage: positive" in (each / "checkpoints/last/pretrained_model/README.md").read_text()
        for each in (run, plain)
    ]
    assert said == [True, False]

    # Fine-tuned without indicators, the policy forgets them, and is told so.
    finetuned = tmp_path / "finetuned"
    rest = [flag for flag in flags if not flag.startswith("--policy.")]
    onwards = [*rest, f"--policy.path={run}", "--policy.device=cpu", "--steps=1", f"--output_dir={finetuned}"]
    assert train(onwards) == 0
    assert "the new one will not know it" in caplog.text
    assert not is_conditioned(load_processors(finetuned)[0])

    # Advantages that were computed anew are others.
    shutil.rmtree(used)
    indicators = {repo_id: [True] * sum(lengths) for repo_id, lengths in LENGTHS.items()}
    write_sidecars(used, LENGTHS, indicators, run="b")
    capfd.readouterr()
    assert train(["--resume=true", f"--output_dir={run}", "--steps=8"]) == 2
    assert "are not those that the run began with" in capfd.readouterr().err


@pytest.mark.usefixtures("module_hub")
def test_a_policy_learns_to_follow_the_indicator():
    """Images and state say nothing; the recorded actions are +1 where they are good and -1 where not."""
    policy = make_small(tokenizer_max_length=24, depth=2)
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    pre, _ = make_processors(policy.config, stats, indicator=True)
    told = as_told(pre)
    draw = torch.Generator().manual_seed(0)

    def scene(size):
        images = {key: torch.zeros(size, 3, 28, 28) for key in CAMERAS}
        return {**images, "observation.state": torch.zeros(size, 6)}

    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    policy.train()
    torch.manual_seed(0)
    for _ in range(80):
        good = torch.rand(16, generator=draw) < 0.5
        silent = torch.rand(16, generator=draw) < 0.3
        pairs = zip(good.tolist(), silent.tolist(), strict=True)
        tasks = [with_indicator("push", None if quiet else positive) for positive, quiet in pairs]
        noisy = 0.3 * torch.randn(16, 6, 6, generator=draw)
        action = (2.0 * good - 1)[:, None, None] + noisy
        loss, _ = policy(preprocess({**scene(16), "action": action, "task": tasks}, told))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    noise = torch.randn(8, 6, 32, generator=draw)

    def mean_action(task, strength):
        policy.set_guidance(strength)
        batch = preprocess({**scene(8), "task": [task] * 8}, pre)
        return policy.predict_action_chunk(batch, noise=noise).mean().item()

    def difference(strength):
        negative = mean_action(with_indicator("push", False), strength)
        return mean_action(with_indicator("push", True), strength) - negative

    assert mean_action("push", 1.0) > 0.5, "positive by default"
    assert mean_action(with_indicator("push", False), 1.0) < -0.5
    assert difference(0.0) == 0
    assert difference(0.5) < difference(1.0) < difference(2.0) < difference(4.0)
