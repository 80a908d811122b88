"""The way to a server that somebody else runs: its URL, and the headers and the CA file that requests to it need.

Everything that talks to such a server takes both from here: readiness, calibration, load, questions, metrics, and the
OpenAI clients that tests get. Every pytest run may import this file, so it imports nothing heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, urlsplit

from pytest_gpucap import __version__
from pytest_gpucap.errors import told
from pytest_gpucap.masking import MASK, Secret, masked
from pytest_gpucap.user_files import MOST_CERTIFICATES, UserFileError, read_text, shown_path

if TYPE_CHECKING:
    import ssl

USER_AGENT: Final = f"pytest-gpucap/{__version__}"
AUTHORIZATION: Final = "Authorization"
_AGENT: Final = "User-Agent"
FRAMING: Final = frozenset(
    {
        *("accept", "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect"),
        *("host", "keep-alive", "proxy-authorization", "proxy-connection", "te", "trailer", "transfer-encoding"),
        "upgrade",
    }
)
"""Headers that belong to the transport, in lower case: another value would change what is measured, or break it."""
LOOPBACK: Final = "127.0.0.1"
"""Where a server listens that only this machine asks."""
NO_KEY: Final = "none"
"""Sent to a server that needs no key, because the OpenAI client requires one. It is no secret."""
_PATHS: Final = (
    *("audio", "batches", "chat", "chat/completions", "completions", "embeddings", "files", "load", "messages"),
    *("models", "rerank", "responses", "score"),
)
"""What an OpenAI-compatible server has below ``/v1``."""
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110, section 5.1)."""
_VALUE: Final = re.compile(r"[!-~]([ -~\t]*[!-~])?")
"""A header's value in ASCII (RFC 9110, section 5.5), without the space around it: no line break."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_USUAL_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]*")


_NAMES_VARIABLE: Final = frozenset({"--gpucap-header", "--gpucap-metrics-header", "--gpucap-api-key-env"})
"""Options whose value is the name of an environment variable."""
HeaderSource = tuple[str, str]
"""A header's name, and the environment variable that holds its value."""


@dataclass(frozen=True, slots=True)
class Access:
    """What requests to a server need beside its URL and key.

    Attributes:
        headers: names and values of further headers. One of the same name replaces one of ours.
        ca_file: a PEM file with the certificates to trust instead of the system's; None for the system's.
    """

    headers: tuple[tuple[str, Secret], ...] = ()
    ca_file: str | None = None

    def request_headers(self, api_key: str | None) -> dict[str, str]:
        """The headers of every request: ours, the key as a bearer token, and the further ones."""
        found: dict[str, str] = {_AGENT: USER_AGENT}
        if api_key is not None:
            found[AUTHORIZATION] = Secret(f"Bearer {api_key}")
        ours = {name.lower(): name for name in (_AGENT, AUTHORIZATION)}
        return found | {ours.get(name.lower(), name): value for name, value in self.headers}

    def tls(self) -> ssl.SSLContext | None:
        """A context that trusts the CA file; None without one."""
        return None if self.ca_file is None else tls_context(self.ca_file)

    def masked(self, text: str, api_key: str | None = None) -> str:
        """The text without the key and the headers' values: some servers repeat what they refuse."""
        return masked(text, self.secrets(api_key))

    def secrets(self, api_key: str | None = None) -> list[str]:
        """What must never be shown, although a server may repeat it: the key and the headers' values."""
        return [*([] if api_key in {None, NO_KEY} else [api_key]), *(value for _, value in self.headers)]


OPEN: Final = Access()
"""Nothing but the URL and the key is needed."""


def tls_context(ca_file: str) -> ssl.SSLContext:
    """A context for a client that trusts the certificates in a PEM file, and no others.

    Raises:
        ValueError: one line, if the file cannot be read or holds no certificate.
    """
    import ssl

    try:
        certificates = read_text(ca_file, MOST_CERTIFICATES)
        context = ssl.create_default_context(cadata=certificates or "empty")
    except UserFileError as error:
        raise ValueError(f"{error.path} cannot be read: {error.why}") from None
    except (ssl.SSLError, ValueError, TypeError):  # characters outside ASCII too
        raise ValueError(f"{shown_path(ca_file)} holds no certificates that can be read: give a PEM file") from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError(f"{shown_path(ca_file)} holds no certificate: give a PEM file with the CA's certificate")
    return context


def server_root(url: str) -> str:
    """A server's URL without ``/v1``, from its URL, its base URL, or the URL of one of its endpoints.

    Raises:
        ValueError: one line, the mistake and the fix. It never repeats a user, a password or a query.
    """
    parts = _parts(
        url.strip(),
        user="name the environment variable that holds the key with --gpucap-api-key-env, or give a header with "
        "--gpucap-header NAME=ENV",
        query=", which requests would lose: write http://HOST:PORT/v1; a key belongs into --gpucap-api-key-env or "
        "--gpucap-header",
        other="a server's URL: write http://HOST:PORT/v1",
    )
    segments = [each for each in parts.path.split("/") if each]
    if "v1" in segments:
        last = len(segments) - 1 - segments[::-1].index("v1")
        below = "/".join(segments[last + 1 :])
        if not below or below in _PATHS or below.startswith("models/"):
            segments = segments[:last]
    elif segments[-2:] == ["chat", "completions"]:
        segments = segments[:-2]
    elif segments[-1:] == ["completions"]:
        segments = segments[:-1]
    return "/".join([f"{parts.scheme}://{parts.netloc}", *segments])


def page_url(url: str) -> str:
    """The URL of a page of Prometheus metrics; ``/metrics`` is added where it has no path.

    Raises:
        ValueError: one line, the mistake and the fix. It never repeats a user, a password or a query.
    """
    parts = _parts(
        url.strip(),
        user="give the header with --gpucap-metrics-header Authorization=ENV",
        query=": write http://HOST:PORT/metrics",
        other="the URL of a page of metrics: write http://HOST:PORT/metrics",
    )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/') or '/metrics'}"


def receiver_url(url: str) -> str:
    """The URL of a receiver of figures, without a slash at its end.

    Raises:
        ValueError: one line, the mistake and the fix. It never repeats a user, a password or a query.
    """
    _parts(
        url,
        user="leave it out, since the URL is shown",
        query=": leave it out, since the URL is shown",
        other="the URL of a receiver: write http://HOST:PORT",
    )
    return url.rstrip("/")


def _parts(url: str, *, user: str, query: str, other: str) -> SplitResult:
    """The parts of a URL that requests can be sent to and that holds no secret.

    Args:
        url: without white space around it.
        user: what to do instead of a user or password in it.
        query: goes on after "the URL has a query or fragment".
        other: what it is not, where it is no such URL, and what to write.

    Raises:
        ValueError: one line, the mistake and the fix. It never repeats a user, a password or a query.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a bad port, or brackets that are no IPv6 address
        parts, usable = urlsplit(""), False
    if "@" in (parts.netloc or url.partition("?")[0]):
        raise ValueError(f"the URL carries a user or password: {user}")
    if "?" in url or "#" in url:
        raise ValueError(f"the URL has a query or fragment (what follows ? or #){query}")
    if not usable or not re.fullmatch(r"[!-~]+", url):
        raise ValueError(f"{told(url)} is not {other}")
    return parts


def header_sources(given: Sequence[str]) -> tuple[HeaderSource, ...]:
    """Headers from texts of the form ``NAME=ENV``. No message repeats what may be a value.

    Raises:
        ValueError: one line, if a text has another form, or a name is no header's, is the transport's or comes twice.
    """
    found: dict[str, HeaderSource] = {}
    for text in given:
        name, _, variable = (part.strip() for part in text.partition("="))
        if not _NAME.fullmatch(name) or not _VARIABLE.fullmatch(variable):
            shown = f" of {name}" if _NAME.fullmatch(name) else ""
            raise ValueError(
                f"must be NAME=ENV: a header's name, and the environment variable that holds its value; the text"
                f"{shown} is no such pair"
            )
        if name.lower() in FRAMING:
            raise ValueError(f"{name} belongs to the transport and cannot be set")
        if name.lower() in found:
            raise ValueError(f"{name} is given twice")
        found[name.lower()] = name, variable
    return tuple(found.values())


def masked_words(words: Sequence[str]) -> list[str]:
    """A command line without secrets, also without those given by mistake where a variable's name belongs."""
    found: list[str] = []
    option = ""
    for word in words:
        own, equals, value = word.partition("=")
        if option or (equals and own in _NAMES_VARIABLE):
            lead, given = (option, word) if option else (own, value)
            kept = _USUAL_VARIABLE.fullmatch(given.rpartition("=")[2].strip())
            found.append(masked(word) if kept else MASK if option else f"{lead}={MASK}")
        else:
            found.append(masked(word))
        option = word if word in _NAMES_VARIABLE else ""
    return found


def read_headers(sources: Iterable[HeaderSource]) -> tuple[tuple[str, Secret], ...]:
    """The headers with their values from the environment.

    Raises:
        ValueError: one line, if a variable is not set or its value cannot be sent.
    """
    return tuple((name, read_secret(variable, f"{name}: ")) for name, variable in sources)


def read_secret(variable: str, whose: str = "") -> Secret:
    """The value of an environment variable that holds a header's value or a key, without the space around it.

    Raises:
        ValueError: one line, if it is not set or cannot be sent in a header. The line never repeats the value, nor
            the variable's name where that looks like a value.
    """
    value = os.environ.get(variable)
    if value is None:
        usual = _USUAL_VARIABLE.fullmatch(variable)
        named = f"the environment variable {variable} is not set" if usual else "no environment variable has this name"
        raise ValueError(f"{whose}{named}")
    value = value.strip()  # files and secret stores often end them with a line break
    if not _VALUE.fullmatch(value):
        wrong = "is empty" if not value else "has a line break or a character outside ASCII"
        raise ValueError(f"{whose}the value of the environment variable {variable} {wrong}: no header can carry it")
    return Secret(value)
