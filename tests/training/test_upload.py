"""Publishing checkpoints on the embedded Hub, during training and after, and going on from there."""

import logging
import re
import threading

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from markdown_it import MarkdownIt
from runs import losses, replaced, weights
from small_run import REPORT, SmallRun

from depi import cli
from depi.files import write_json
from depi.hub.client.api import HubUnreachable
from depi.train import main as train
from depi.training import pushing
from depi.training.card import model_card
from depi.training.saving import Saver


@pytest.fixture
def api(module_hub) -> HfApi:
    return HfApi(endpoint=module_hub.endpoint, token=module_hub.write_token)


@pytest.fixture(scope="module")
def averaged(module_hub, tmp_path_factory):
    """A run of two checkpoints with an average of the weights."""
    run = SmallRun(tmp_path_factory.mktemp("run"), decay=0.9)
    saver = Saver(run)
    for _ in range(2):
        run.take_step()
        saver.save()
    saver.finish(stopped=False)
    saver.close()
    return run


def read(repo_id: str, name: str, revision: str) -> bytes:
    with open(hf_hub_download(repo_id, name, revision=revision), "rb") as file:
        return file.read()


def test_each_step_has_its_tag_and_either_weights_can_be_chosen(averaged, api, capsys):
    checkpoints = averaged.config.checkpoints_dir
    assert cli.main(["upload", str(checkpoints / "000001"), "alice/steps"]) == 0
    assert cli.main(["upload", str(averaged.config.output_dir), "alice/steps", "--weights=ema"]) == 0
    assert {tag.name for tag in api.list_repo_refs("alice/steps").tags} == {"step-000001", "step-000002"}
    raw = checkpoints / "000001/pretrained_model/model.safetensors"
    assert read("alice/steps", "model.safetensors", "step-000001") == raw.read_bytes()
    average = checkpoints / "000002/training_state/ema.safetensors"
    assert read("alice/steps", "model.safetensors", "step-000002") == average.read_bytes()
    assert b"exponential moving average" in read("alice/steps", "README.md", "step-000002")
    assert not [name for name in api.list_repo_files("alice/steps") if name.startswith("training_state")]
    assert cli.main(["upload", str(checkpoints), "alice/steps", "--weights=best"]) == 2
    assert cli.main(["upload", str(checkpoints / "last"), "alice/steps", "--weights=ema", "--all"]) == 2
    capsys.readouterr()


def test_the_card_says_what_it_was_trained_on_and_how_to_run_it(averaged, api, tmp_path, capsys):
    result = {
        "env": {"type": "so101", "task": "touch"},
        "success_rate": 0.8,
        "success_interval_95": [0.6, 0.9],
        "episodes": [{}] * 20,
    }
    write_json(tmp_path / "eval.json", result)
    flags = ["upload", str(averaged.config.output_dir), "alice/card"]
    assert cli.main([*flags, f"--eval={tmp_path / 'eval.json'}"]) == 0
    card = ModelCard(read("alice/card", "README.md", "main").decode())
    assert card.data.datasets == ["alice/pick", "lab/collection"]
    for text in (
        f"| `lab/collection:two` | `{'a' * 40}` | `cc-by-4.0` | 2 | 200 |",
        f"| `lab/collection:one` | `{'a' * 40}` | not stated |",
        "--robot.use_degrees=true",
        "Camera slots: wrist, front",
        "trained from scratch",
        "lerobot-rollout",
        "--robot.type=so101_follower",
        "--fps=30 --task=",
        '"0": {type: opencv',
        "Success rate 80% (95% interval 60% to 90%) over 20",
    ):
        assert text in card.text, text
    write_json(tmp_path / "eval.json", {"success_rate": 1})
    assert cli.main([*flags, f"--eval={tmp_path / 'eval.json'}"]) == 2
    assert "no result of `depi eval`" in capsys.readouterr().err
    write_json(tmp_path / "eval.json", {**result, "success_rate": None, "success_interval_95": None})
    assert cli.main([*flags, f"--eval={tmp_path / 'eval.json'}"]) == 2
    assert "has no success rate: all of its episodes ended in an error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cameras", "named"),
    [
        (["observation.images.front", "observation.images.wrist"], ["wrist", "front"]),
        (["observation.images.wrist'; reboot; '"], ["0", "1"]),
        (["observation.image"], ["0", "1"]),
    ],
)
def test_the_card_names_the_cameras_of_the_recordings_where_a_shell_takes_them(averaged, cameras, named):
    entry = REPORT["datasets"][0] | {"cameras": cameras}
    stream = {"cameras": "name", "annotations": None}
    report = REPORT | {"datasets": [entry], "stream": stream}
    card = model_card(averaged.config, averaged.policy.config, report, 1, {})
    assert re.findall(r'"(\w+)": {type: opencv', card) == named
    assert "reboot" not in card


def test_what_strangers_wrote_is_only_text_in_the_card(averaged):
    evil = "<img src=x onerror=a()> | [a](http://evil.example)\n# `b` " * 20
    entry = REPORT["datasets"][0] | {
        "repo_id": "lab/all:<b>x|`y`",
        "licence": evil,
        "offsets_taken_out": {"gripper": 1},
    }
    card = model_card(averaged.config, averaged.policy.config, REPORT | {"datasets": [entry]}, 1, {})
    assert len(card) < 4000
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(ModelCard(card).text)
    assert "&lt;img" in html
    assert "<code>lab/all:&lt;b&gt;x/'y'</code>" in html
    tags = set(re.findall(r"<(\w+)", html))
    assert tags <= {
        "h1",
        "h2",
        "p",
        "ul",
        "li",
        "code",
        "pre",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
    }, tags


def test_a_run_goes_on_from_the_hub(flags, tmp_path, api, capfd):
    whole, other = tmp_path / "run", tmp_path / "other"
    flags = replaced(flags, **{"policy.scheduler_decay_steps": 2})
    assert train(flags) == 0
    publish = {"save_checkpoint_to_hub": True, "policy.repo_id": "alice/run", "policy.private": True}
    assert train(replaced(flags, steps=4, save_freq=0, output_dir=tmp_path / "first", **publish)) == 0
    assert {tag.name for tag in api.list_repo_refs("alice/run").tags} == {"step-000004"}
    assert api.model_info("alice/run").private
    resume = ["--resume=true", "--config_path=alice/run", "--steps=6", "--save_checkpoint_to_hub=false"]
    assert train([*resume, f"--output_dir={whole}"]) == 2
    assert "already exists" in capfd.readouterr().err
    assert train([*resume, f"--output_dir={other}"]) == 0
    assert losses(other) == {step: loss for step, loss in losses(whole).items() if step > 4}
    assert weights(other) == weights(whole)
    assert train(["--resume=true", f"--output_dir={other}", "--steps=7"]) == 0
    assert list(losses(other)) == [5, 6, 7]


def test_weights_alone_are_no_beginning(averaged, capfd):
    assert cli.main(["upload", str(averaged.config.output_dir), "alice/weights"]) == 0
    assert train(["--resume=true", "--config_path=alice/weights"]) == 2
    assert "--policy.path=alice/weights" in capfd.readouterr().err


@pytest.mark.parametrize("wrong", [["--push_to_hub=true"], ["--push_to_hub=true", "--policy.repo_id=me"]])
def test_publishing_needs_a_name(flags, wrong, capfd):
    assert train([*flags, *wrong]) == 2
    assert "--policy.repo_id=USER/NAME" in capfd.readouterr().err


class Uploads:
    """Stands for `publish`: blocks until allowed, fails where told."""

    def __init__(self, failing: set[str]) -> None:
        self.failing, self.begun, self.done = failing, threading.Semaphore(0), []
        self.allowed = threading.Semaphore(0)

    def __call__(self, config):
        self.begun.release()
        assert self.allowed.acquire(timeout=30)
        step = config.folder.parent.name
        if step in self.failing:
            raise HubUnreachable(f"the Hub is away at {step}")
        self.done.append(step)


def pushed(tmp_path, monkeypatch, failing):
    run = SmallRun(tmp_path, save_freq=1, keep_last=1, push_to_hub=True)
    run.config.policy.repo_id = "alice/pushed"
    uploads = Uploads(failing)
    monkeypatch.setattr(pushing, "publish", uploads)
    return run, Saver(run), uploads


def test_pushing_holds_up_nothing_and_skips_to_the_newest(module_hub, tmp_path, monkeypatch):
    run, saver, uploads = pushed(tmp_path, monkeypatch, set())
    for step in range(1, 4):
        run.step = step
        saver.save()
        saver.wait()
        if step == 1:
            assert uploads.begun.acquire(timeout=30)
    # The one that is being read is kept, against --keep_last=1.
    assert {path.name for path in run.config.checkpoints_dir.iterdir()} == {"000001", "000003", "last"}
    assert uploads.done == []
    uploads.allowed.release(5)
    saver.finish(stopped=False)
    assert uploads.done == ["000001", "000003"]
    saver.close()


def test_a_failed_push_stops_nothing_and_the_next_is_tried(module_hub, tmp_path, monkeypatch, caplog):
    run, saver, uploads = pushed(tmp_path, monkeypatch, {"000001", "000003"})
    uploads.allowed.release(5)
    with caplog.at_level(logging.WARNING, "depi"):
        for step in range(1, 4):
            run.step = step
            saver.save()
            saver.wait()
            saver.pusher.wait()
        saver.finish(stopped=False)
    saver.close()
    assert uploads.done == ["000002"]
    assert "the Hub is away at 000001" in caplog.text
    assert f"depi upload {run.config.checkpoints_dir / '000003'} alice/pushed" in caplog.text


def test_a_stopped_run_does_not_wait_for_its_upload(module_hub, tmp_path, monkeypatch):
    _, saver, uploads = pushed(tmp_path, monkeypatch, set())
    saver.save()
    saver.finish(stopped=True)
    saver.close()
    assert uploads.done == []
    uploads.allowed.release(5)
    saver.pusher.wait()


def test_a_damaged_checkpoint_is_not_published_whole(averaged, api):
    checkpoint = averaged.config.checkpoints_dir / "000001"
    path = checkpoint / "training_state" / "optimizer_state.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert cli.main(["upload", str(checkpoint), "alice/damaged", "--all"]) == 2
    path.write_bytes(content)
    assert not api.repo_exists("alice/damaged")
