"""Passwords in the addresses of servers."""

import pytest

from depi.addresses import credentials, without_credentials
from depi.engine import cluster


@pytest.mark.parametrize("end", ["", "?key=secret", "#secret"])
@pytest.mark.parametrize(
    "password", ["secret", "sec/secret", "sec?secret", "sec#secret", "sec@secret", "a\nb"]
)
def test_an_address_is_shown_without_its_password(password, end):
    assert without_credentials(f"https://me:{password}@host:1/v1{end}") == "https://host:1/v1"
    assert credentials(f"https://me:{password}@host:1/v1{end}") == ("me", password)


def test_what_holds_no_password_stays():
    assert without_credentials("http://host/v1") == "http://host/v1"
    assert credentials("http://host/v1") is None
    assert credentials("https://me:p%40s%3As%2F@host") == ("me", "p@s:s/")
    assert credentials("https://key@host") == ("key", "")


def test_a_password_is_not_sent_to_the_nodes_of_a_cluster(monkeypatch, caplog):
    for name in cluster.FORWARDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret@hub.lab.org")
    assert cluster._forwarded() == {"HF_HOME": "/shared/hf"}
    assert "HF_ENDPOINT holds a password and is not sent to the nodes" in caplog.text
    assert "secret" not in caplog.text
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.lab.org")
    assert cluster._forwarded()["HF_ENDPOINT"] == "https://hub.lab.org"
