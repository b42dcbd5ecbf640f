"""The names of datasets: repositories, and folders of collections."""

import pytest

from depi.hub.names import DatasetId, is_dataset_id, parse_dataset_id


@pytest.mark.parametrize(
    ("text", "dataset", "file"),
    [
        ("ann/box", DatasetId("ann/box"), "meta/info.json"),
        ("ann/box:bob/lamps", DatasetId("ann/box", "bob/lamps"), "bob/lamps/meta/info.json"),
        ("ann/box:v1.2 (new)", DatasetId("ann/box", "v1.2 (new)"), "v1.2 (new)/meta/info.json"),
        ("ann/box:a:b", DatasetId("ann/box", "a:b"), "a:b/meta/info.json"),
    ],
)
def test_ids_are_read_and_written_the_same(text, dataset, file):
    assert parse_dataset_id(text) == dataset
    assert str(dataset) == text
    assert dataset.inside("meta/info.json") == file


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "box",
            "a/b/c",
            "ann/box:",
            "ann/box:/etc",
            "ann/box:../x",
            "ann/box:a/../../x",
            "ann/box:a//b",
        ),
        *("ann/box:~root", "ann/box:a\\b", "ann/box:a\nb", "ann/box:.git/x", "ann/box:a\u202eb", ":a", "C:x"),
    ],
)
def test_what_could_lead_elsewhere_is_no_id(text):
    assert not is_dataset_id(text)
    with pytest.raises(ValueError, match=r"dataset id|folder in"):
        parse_dataset_id(text)
