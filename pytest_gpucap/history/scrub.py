"""Takes out of a result what is nobody's business in a repository: paths of a user, keys, host names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_PATH: Final = re.compile(r"(?<![\w.:/~-])(?:~|/[\w.@+~-]+)(?:/[\w.@+~-]+)+/?")
"""An absolute path of two parts or more, or one under ``~``; a lone ``/v1`` or ``req/s`` is none."""
_URL: Final = re.compile(r"(?P<scheme>\bhttps?://)(?:[^\s/@]*@)?(?P<host>\[[^\]]+\]|[^\s/:?#'\"]+)(?P<port>:\d+)?")
_LOOPBACK: Final = re.compile(r"127\.\d+\.\d+\.\d+|localhost|\[::1\]")
_SECRET_NAME: Final = re.compile(r"(?:^|[-_])(?:api[-_]?key|token|secret|password)$", re.IGNORECASE)
_SECRET_FLAG: Final = re.compile(
    r"(?P<flag>--[A-Za-z0-9_-]*(?:api[-_]?key|token|secret|password))(?P<gap>[= ])(?P<value>'[^']*'|\S+)", re.IGNORECASE
)
_SECRET_VALUE: Final = re.compile(r"\b(?:hf_|sk-)[A-Za-z0-9_-]{16,}")
_MASK: Final = "***"
_DROPPED: Final = frozenset({"log"})
"""Names whose value means nothing on another machine."""


def scrubbed(value: Any) -> Any:
    """A plain value with paths cut to their last part, secrets masked and hosts of URLs named ``HOST``.

    Loopback hosts stay: they name no machine. A text is otherwise left as it is, and the value given is not changed.
    """
    match value:
        case str():
            return _text(value)
        case Mapping():
            return {
                key: _MASK if isinstance(each, str) and each and _SECRET_NAME.search(key) else scrubbed(each)
                for key, each in value.items()
                if key not in _DROPPED
            }
        case list() | tuple():
            return _list(value)
    return value


def _list(values: list[Any] | tuple[Any, ...]) -> list[Any]:
    """A list; in one of words of a command line the word after ``--api-key`` is a secret."""
    found = []
    secret = False
    for value in values:
        found.append(_MASK if secret and isinstance(value, str) else scrubbed(value))
        secret = isinstance(value, str) and value.startswith("--") and _SECRET_NAME.search(value) is not None
    return found


def _text(text: str) -> str:
    text = _SECRET_FLAG.sub(rf"\g<flag>\g<gap>{_MASK}", text)
    text = _SECRET_VALUE.sub(_MASK, text)
    text = _URL.sub(_host, text)
    return _PATH.sub(lambda match: match[0].rstrip("/").rpartition("/")[2], text)


def _host(match: re.Match[str]) -> str:
    if _LOOPBACK.fullmatch(match["host"]):
        return f"{match['scheme']}{match['host']}{match['port'] or ''}"
    return f"{match['scheme']}HOST"
