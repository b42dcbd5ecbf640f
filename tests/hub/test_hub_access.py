"""Tokens, private and gated repositories, upload addresses."""

import hashlib
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from depi.hub.server.serve import LocalHub


@pytest.fixture
def owner(hub: LocalHub) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("ann/pick", repo_type="dataset")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id="ann/pick", repo_type="dataset")
    return api


@pytest.fixture
def reader(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.read_token)


@pytest.fixture
def anyone(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def fetch(api: HfApi, cache: Path, revision: str = "main") -> bytes:
    path = hf_hub_download(
        "ann/pick",
        "x.txt",
        repo_type="dataset",
        revision=revision,
        endpoint=api.endpoint,
        token=api.token,
        cache_dir=cache,
    )
    return Path(path).read_bytes()


def test_tokens(owner: HfApi, reader: HfApi, anyone: HfApi) -> None:
    assert owner.whoami()["auth"]["accessToken"]["role"] == "write"
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert anyone.dataset_info("ann/pick").id == "ann/pick"
    changes = [
        lambda api: api.create_repo("ann/new", repo_type="dataset"),
        lambda api: api.upload_file(
            path_or_fileobj=b"y", path_in_repo="y", repo_id="ann/pick", repo_type="dataset"
        ),
        lambda api: api.create_tag("ann/pick", tag="v1", repo_type="dataset"),
        lambda api: api.create_branch("ann/pick", branch="b", repo_type="dataset"),
        lambda api: api.update_repo_settings("ann/pick", private=True, repo_type="dataset"),
        lambda api: api.delete_repo("ann/pick", repo_type="dataset"),
        lambda api: api.grant_access("ann/pick", "reader", repo_type="dataset"),
    ]
    before = owner.dataset_info("ann/pick").sha
    for change in changes:
        for api, status in ((reader, 403), (anyone, 401)):
            with pytest.raises(HfHubHTTPError) as caught:
                change(api)
            assert caught.value.response.status_code == status
    assert owner.dataset_info("ann/pick").sha == before
    stranger = HfApi(endpoint=owner.endpoint, token="hf_wrong")
    with pytest.raises(HfHubHTTPError) as caught:
        stranger.dataset_info("ann/pick")
    assert caught.value.response.status_code == 401
    assert not isinstance(caught.value, RepositoryNotFoundError)


def test_private_repositories_look_missing(
    owner: HfApi, reader: HfApi, anyone: HfApi, tmp_path: Path
) -> None:
    owner.update_repo_settings("ann/pick", private=True, repo_type="dataset")
    for call in (anyone.repo_info, anyone.list_repo_refs, anyone.auth_check):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            call("ann/pick", repo_type="dataset")
        assert hidden.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError):
        fetch(anyone, tmp_path / "a")
    with pytest.raises(RepositoryNotFoundError) as missing:
        reader.dataset_info("ann/nothing")
    assert missing.value.response.status_code == 404
    assert [info.id for info in anyone.list_datasets()] == []
    assert [info.private for info in reader.list_datasets()] == [True]
    assert fetch(reader, tmp_path / "r") == b"x"


def test_gated_repositories_need_an_accepted_token(
    owner: HfApi, reader: HfApi, anyone: HfApi, tmp_path: Path
) -> None:
    owner.update_repo_settings("ann/pick", gated="manual", repo_type="dataset")
    assert anyone.dataset_info("ann/pick").gated == "manual"
    for api, status in ((anyone, 401), (reader, 403)):
        with pytest.raises(GatedRepoError) as caught:
            fetch(api, tmp_path / "a")
        assert caught.value.response.status_code == status
    assert fetch(owner, tmp_path / "o") == b"x"
    form = f"{reader.endpoint}/datasets/ann/pick/ask-access"
    httpx.post(form, headers={"Authorization": f"Bearer {reader.token}"}).raise_for_status()
    with pytest.raises(GatedRepoError):
        reader.auth_check("ann/pick", repo_type="dataset")
    owner.grant_access("ann/pick", "reader", repo_type="dataset")
    assert fetch(reader, tmp_path / "r") == b"x"
    owner.cancel_access_request("ann/pick", "reader", repo_type="dataset")
    with pytest.raises(GatedRepoError):
        fetch(reader, tmp_path / "again")
    owner.update_repo_settings("ann/pick", gated="auto", repo_type="dataset")
    httpx.post(form, headers={"Authorization": f"Bearer {reader.token}"}).raise_for_status()
    reader.auth_check("ann/pick", repo_type="dataset")


def test_upload_addresses_cannot_be_made_up(hub: LocalHub, owner: HfApi) -> None:
    oid = hashlib.sha256(b"large").hexdigest()
    forged = httpx.put(f"{hub.endpoint}/lfs/{oid}?size=5&signature=00", content=b"large")
    assert forged.status_code == 403
    batch = httpx.post(
        f"{hub.endpoint}/datasets/ann/pick.git/info/lfs/objects/batch",
        json={"operation": "upload", "objects": [{"oid": oid, "size": 5}]},
        headers={"Authorization": f"Bearer {hub.write_token}"},
    ).json()
    address = batch["objects"][0]["actions"]["upload"]["href"]
    assert httpx.put(address, content=b"other").status_code == 400
    assert httpx.put(address, content=b"too large").status_code == 400
    assert not list((hub.root / "incoming").iterdir())
    assert not list((hub.root / "blobs").rglob(oid))
    assert httpx.put(address, content=b"large").status_code == 200
    assert [path.read_bytes() for path in (hub.root / "blobs").rglob(oid)] == [b"large"]


def test_unknown_revision(owner: HfApi) -> None:
    with pytest.raises(RevisionNotFoundError):
        owner.dataset_info("ann/pick", revision="v9")
    with pytest.raises(RevisionNotFoundError):
        owner.dataset_info("ann/pick", revision="0" * 40)
    with pytest.raises(RevisionNotFoundError):
        owner.upload_file(
            path_or_fileobj=b"", path_in_repo="y", repo_id="ann/pick", repo_type="dataset", revision="no"
        )
