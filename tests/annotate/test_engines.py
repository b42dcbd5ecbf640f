"""Where the work is done: on a Ray cluster, or by a model of this machine."""

import threading
import time

import pytest
from image_dataset import write_images
from tiny_vlm import save_tiny_vlm
from vlm_server import GOOD, serving

from depi.annotate.annotate import AnnotateConfig, annotate
from depi.annotate.backend import BackendError, Question, Reply
from depi.annotate.local_model import LocalConfig, LocalModel
from depi.datasets.samples.annotations import read_annotations
from depi.engine import RayConfig
from depi.errors import UserError


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_cluster_writes_the_same_as_this_machine(tmp_path, ray_cluster, monkeypatch):
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    root, found = write_images(tmp_path / "set", 40), {}
    with serving() as server:
        for engine in ("local", "ray"):
            config = AnnotateConfig(
                repo_id="ann/box",
                root=root,
                base_url=server.url,
                annotations=tmp_path / engine,
                engine=engine,
                ray=RayConfig(ray_cluster),
                workers=1,
                concurrency=4,
            )
            summary = annotate(config)
            assert (summary.done, summary.incomplete) == (40, False)
            found[engine] = read_annotations(tmp_path / engine, "ann/box")[0]
            asked = server.number
            assert annotate(config).reused == 40
            assert server.number == asked
    assert found["local"] == found["ray"]
    assert found["ray"][0].task == GOOD


def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    config = AnnotateConfig(
        repo_id="ann/box", root=tmp_path, backend="transformers", model=str(tmp_path / "none")
    )
    with pytest.raises(UserError, match=r"--model=.*none cannot be loaded"):
        annotate(config)
    with pytest.raises(UserError, match="run the model in a server"):
        AnnotateConfig(backend="transformers", engine="ray")


def test_a_model_that_is_stopped_does_not_answer_what_waits(monkeypatch):
    """As on Ctrl-C: the batch at work is the last one."""
    batches, at_work, go_on = [], threading.Event(), threading.Event()

    def generate(self, questions):
        batches.append(len(questions))
        at_work.set()
        go_on.wait(30)
        return [Reply("x")] * len(questions)

    monkeypatch.setattr(LocalModel, "_generate", generate)
    monkeypatch.setattr(LocalModel, "__init__", lambda self, config: self._start(config))
    model, outcomes = LocalModel(LocalConfig(batch_size=2)), []

    def ask():
        try:
            outcomes.append(model.ask(Question("views", "", (), "", {})).text)
        except BackendError as error:
            outcomes.append(str(error))

    askers = [threading.Thread(target=ask, daemon=True) for _ in range(7)]
    for asker in askers:
        asker.start()
    assert at_work.wait(30)
    end = time.monotonic() + 30
    while model._questions.qsize() < 7 - batches[0] and time.monotonic() < end:
        time.sleep(0.01)
    closing = threading.Thread(target=model.close)
    closing.start()
    while len(outcomes) < 7 - batches[0] and time.monotonic() < end:
        time.sleep(0.01)
    go_on.set()
    for thread in (closing, *askers):
        thread.join(30)
    assert batches == [batches[0]]
    assert sorted(outcomes) == ["the model was stopped"] * (7 - batches[0]) + ["x"] * batches[0]
    with pytest.raises(BackendError, match="was stopped"):
        model.ask(Question("views", "", (), "", {}))


@pytest.mark.timeout(200)
def test_a_model_here_answers_in_batches_and_nonsense_is_refused(tmp_path, monkeypatch):
    """Random weights say nothing that can be read: every episode fails with its reason, and is named."""
    monkeypatch.setenv("DEPI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("depi.annotate.stages.MAX_TOKENS", 4)
    config = AnnotateConfig(
        repo_id="ann/box",
        root=write_images(tmp_path / "set", 3),
        backend="transformers",
        model=str(save_tiny_vlm(tmp_path / "vlm")),
        device="cpu",
        batch_size=2,
        annotations=tmp_path / "out",
    )
    batches, generate = [], LocalModel._generate

    def counted(self, questions):
        replies = generate(self, questions)
        batches.append((len(questions), {reply.completion_tokens > 0 for reply in replies}))
        return replies

    monkeypatch.setattr(LocalModel, "_generate", counted)
    summary = annotate(config)
    assert (summary.done, summary.incomplete) == (0, True)
    assert set(summary.failures["ann/box"]) == {0, 1, 2}
    assert all("instruction: the answer is not valid JSON" in x for x in summary.failures["ann/box"].values())
    assert max(size for size, _ in batches) == 2
    assert all(said == {True} for _, said in batches)
