"""Where the work is done: on a Ray cluster, or by a model of this machine."""

import pytest
from image_dataset import write_images
from tiny_vlm import save_tiny_vlm
from vlm_server import GOOD, serving

from depi.annotate.annotate import AnnotateConfig, annotate
from depi.annotate.local_model import LocalModel
from depi.datasets.annotations import read_annotations
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
    with pytest.raises(UserError, match="serve the model on its own"):
        AnnotateConfig(backend="transformers", engine="ray")


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
