"""The way to a server: its URL, headers from the environment, and a CA file. No message repeats a secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_gpucap.access import Access, header_sources, read_headers, server_root, tls_context
from pytest_gpucap.masking import Secret, masked

TLS = Path(__file__).parent / "load" / "tls"


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://h:8000", "http://h:8000"),
        (" HTTP://h:8000/v1/ ", "http://h:8000"),
        ("https://h/v1/chat/completions", "https://h"),
        ("https://h/a/b/v1/models/org/m", "https://h/a/b"),
        ("https://h/openai/chat/completions", "https://h/openai"),
        ("https://h/v1/team/v1/completions/", "https://h/v1/team"),
        ("https://h/v1/team", "https://h/v1/team"),
        ("https://h/models", "https://h/models"),
        ("http://[::1]:8000/v1", "http://[::1]:8000"),
    ],
)
def test_a_server_s_root(url: str, root: str) -> None:
    assert server_root(url) == root


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not a server's URL: write http://HOST:PORT/v1"),
        ("h:8000", "is not a server's URL"),
        ("http:/h", "is not a server's URL"),
        ("http://h:port/v1", "is not a server's URL"),
        ("http://h:99999/v1", "is not a server's URL"),
        ("http://[::1/v1", "is not a server's URL"),
        ("http://h/v1 http://i/v1", "is not a server's URL"),
        ("http://h\nX-Evil: 1/v1", "is not a server's URL"),
        ("http://h\u00e4/v1", "is not a server's URL"),
        ("http://user:s3cret@h/v1", "carries a user or password"),
        ("http://:s3cret@h/v1", "carries a user or password"),
        ("user:s3cret@h/v1", "carries a user or password"),
        ("htps://user:s3cret@h", "carries a user or password"),
        ("http://user:s3cret@h:port/v1", "carries a user or password"),
        ("http://h/v1?api-key=s3cret", "has a query or fragment"),
        ("h/v1?api-key=s3cret", "has a query or fragment"),
        ("http://h/v1#s3cret", "has a query or fragment"),
    ],
)
def test_a_url_that_cannot_be_meant(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        server_root(url)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_headers_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEAM", "s3cret value\r\n")  # as files and secret stores have it
    sources = header_sources(["X-Team=TEAM", " x-other = TEAM "])
    assert sources == (("X-Team", "TEAM"), ("x-other", "TEAM"))
    headers = read_headers(sources)
    assert headers == (("X-Team", "s3cret value"), ("x-other", "s3cret value"))
    assert "s3cret" not in repr(Access(headers))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X-Key", "must be NAME=ENV"),
        ("X-Key: s3cret", "must be NAME=ENV"),
        ("X-Key=", "the text of X-Key is no such pair"),
        ("X-Key=s3cret!", "the text of X-Key is no such pair"),
        ("=TEAM", "must be NAME=ENV"),
        ("X Key=TEAM", "must be NAME=ENV"),
        ("X-Key\r\nEvil=TEAM", "must be NAME=ENV"),
        ("content-LENGTH=TEAM", "content-LENGTH belongs to the transport and cannot be set"),
        ("x-TEAM=TEAM", "x-TEAM is given twice"),
        ("X-Key=UNSET_KEY", "X-Key: the environment variable UNSET_KEY is not set"),
        ("X-Key=s3cret", "X-Key: no environment variable has this name"),
        ("X-Key=EMPTY", "X-Key: the value of the environment variable EMPTY is empty"),
        ("X-Key=LINES", "X-Key: the value of the environment variable LINES has a line break"),
        ("X-Key=SPACE", "X-Key: the value of the environment variable SPACE is empty"),
        ("X-Key=UMLAUT", "X-Key: the value of the environment variable UMLAUT has"),
    ],
)
def test_a_header_that_cannot_be_sent(text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"TEAM": "t", "EMPTY": "", "LINES": "s3\ncret", "SPACE": " \n", "UMLAUT": "s3cret\u00e4"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_headers(header_sources(["X-Team=TEAM", text]))
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_masked() -> None:
    assert masked("Bearer abcdef and abcdefgh", ["abcdef", "abcdefgh"]) == "Bearer *** and ***"
    assert masked("the port is closed", ["on", "e", ""]) == "the port is closed"
    access = Access((("X", Secret("value-1")),))
    assert access.masked("key-value value-1", "key-value") == "*** ***"


def test_a_ca_file(tmp_path: Path) -> None:
    assert tls_context(str(TLS / "cert.pem")).cert_store_stats()["x509"] == 1
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ValueError, match=r"none\.pem cannot be read: No such file"):
        tls_context(str(tmp_path / "none.pem"))
    for broken in (tmp_path / "text.pem", TLS / "key.pem"):
        with pytest.raises(ValueError, match=r"holds no certificate.*: give a PEM file"):
            tls_context(str(broken))
    with pytest.raises(ValueError, match="cannot be read: is a folder, not a file"):
        tls_context(str(tmp_path))
