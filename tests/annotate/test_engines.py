"""Where the work is done: on a Ray cluster, or by a model of this machine."""

import pytest
from image_dataset import write_images
from vlm_server import GOOD, serving

from depi.annotate.annotate import AnnotateConfig, annotate
from depi.datasets.annotations import read_annotations
from depi.engine import RayConfig
from depi.errors import UserError


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
