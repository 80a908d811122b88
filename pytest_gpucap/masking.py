"""Secrets: what is one, how it is kept out of sight, and the one masking of every text that the plugin shows or keeps.

Three things are secrets: every `Secret` of this process, the values of environment variables that are named like one
(``HF_TOKEN``, ``AWS_SECRET_ACCESS_KEY``), and whatever looks like one (``ghp_...``, ``Bearer ...``, a password in a
URL). Every pytest run may import this file, so it imports nothing heavy.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Final, Self

MASK: Final = "***"
LEAST_SECRET: Final = 5
"""A shorter secret stands in ordinary words, so it is masked only as a word of its own."""
_LEAST_KNOWN: Final = 8
"""A shorter one is masked only in what its own server says: ``none`` and ``EMPTY`` are keys too."""
_known: set[str] = set()


class Secret(str):
    """A text whose repr and str are ``***``, so that tracebacks and logs do not show it. `masked` masks it too.

    ``f"Bearer {secret}"``, joining, encoding and JSON give the text itself: that is what it is sent with.
    """

    __slots__ = ()

    def __new__(cls, value: str) -> Self:
        """Remember the text, for `masked`."""
        plain = str.__str__(value)  # `str` of another one is its mask
        bare = plain.removeprefix("Bearer ").removeprefix("Basic ")
        if len(bare) >= _LEAST_KNOWN and "\n" not in bare:
            _known.add(bare)
        return super().__new__(cls, plain)

    def __repr__(self) -> str:
        return f"'{MASK}'"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return str.__str__(self).__format__(spec)


_WORDS: Final = (
    r"api[-_]?key|secret(?:[-_]?(?:access[-_]?)?key)?|password|passwd|passphrase|credentials?|private[-_]?key|"
    r"access[-_]?key(?:[-_]?id)?|authorization|"
    r"(?:(?:hf|hub|hugging[-_]?face|auth|access|api|session|bearer|refresh|github|gitlab|client|security|sas)[-_]?)token"
)
_NAMED: Final = re.compile(rf"(?:^|[-_.])(?:{_WORDS})s?$|^-*token$", re.IGNORECASE)
"""Names of arguments and keys. Many other names end in ``token``: ``eos_token``, ``image_token``."""
_VARIABLE: Final = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|PAT)$")
"""Names of environment variables."""
_KINDS: Final[Mapping[str, str]] = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{16,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{20,})",
    "a GitLab token": r"\bgl(?:pat|cbt|dt|rt)-[A-Za-z0-9_-]{16,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{30,}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "an npm token": r"\bnpm_[A-Za-z0-9]{30,}",
    "a PyPI token": r"\bpypi-[A-Za-z0-9_-]{20,}",
    "an API key": r"(?:(?<![\w-])(?:sk|rk|pk)[-_](?=[A-Za-z0-9_-]{0,99}\d)|\b(?:nvapi-|gsk_|r8_))[A-Za-z0-9_-]{16,}",
    "a JSON web token": r"(?<![\w-])(?>(?:[\w-]*?-)??eyJ[A-Za-z0-9_-]{8,}+)\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY-----|$)|"
    r"\bKEY-----\s*[A-Za-z0-9+/=]{12,}",  # of one that pretty printing has broken at its spaces
}
_LEADS: Final[Mapping[str, str]] = {
    "an authorization": r"\b(?:Bearer(?:\s+|%20)(?!token|auth|credential|scheme|realm|error)|"
    r"Basic(?:\s+|%20)(?=[A-Za-z]*[0-9+/=A-Z]))(?=[^\s'\",;]{8})",
    "a password in a URL": r"\b[A-Za-z][A-Za-z0-9+.-]{0,20}://(?=(?:[^\s/@'\"<>]{1,200}|[^\s/@:'\"<>]{1,99}:[^\s@'\"<>]{1,200})@)",
    "a key in a URL": r"[?&;](?:api[-_]?key|key|token|access[-_]token|auth|sig|signature|password|secret|"
    r"X-Amz-(?:Signature|Credential|Security-Token))=(?=[^\s&#'\"])",
}
"""What stands before a secret; and for each, what the secret consists of."""
_RESTS: Final[Mapping[str, str]] = {
    "an authorization": r"[^\s'\",;]+",
    "a password in a URL": r"[^\s@'\"]{1,300}(?=@)",
    "a key in a URL": r"[^\s&#'\"]+",
}
_ANY: Final = re.compile(
    "|".join(
        [
            *(f"(?:{pattern})" for pattern in _KINDS.values()),
            *(f"(?P<lead{number}>{lead}){_RESTS[kind]}" for number, (kind, lead) in enumerate(_LEADS.items())),
        ]
    )
)
_ASSIGNED: Final = re.compile(
    rf"(?P<name>(?:{_WORDS})\\?['\"]?\s{{0,9}}[:=]\s{{0,9}}|(?:(?<![\w.-])|(?<=\\[nrt]))--[\w.-]{{0,40}}(?:{_WORDS}|token)\s+)"
    r"(?P<value>\\?'[^'\n]*'|\\?\"[^\"\n]*\"|[^\s,;'\")}\]]+)",
    re.IGNORECASE,
)
"""``api_key=VALUE``, ``'hf_token': 'VALUE'``, ``--api-key VALUE``."""
_LEAST_IN_PROSE: Final = 16
"""After a colon, a shorter word of letters alone is prose."""
_NO_SECRET: Final = frozenset({"none", "null", "true", "false", MASK, "", "not", "is", "was", "set"})


def is_secret_name(name: str) -> bool:
    """Whether an argument or a key of this name holds a secret."""
    return _NAMED.search(name) is not None


def kind_of_secret(text: str) -> str | None:
    """What kind of secret a text holds: ``a GitHub token``; None if none is seen."""
    for kind, pattern in _KINDS.items():
        if re.search(pattern, text):
            return kind
    for kind, lead in _LEADS.items():
        if re.search(lead + _RESTS[kind], text):
            return kind
    return None


def masked(text: str, secrets: Iterable[str] = ()) -> str:
    """The text with every secret in it replaced by ``***``, also as JSON and HTML write it.

    Args:
        text: of any length.
        secrets: further ones, which only this text may not show; see `LEAST_SECRET`.
    """
    for form in _forms(secrets):
        before, after = ("", "") if len(form) >= LEAST_SECRET else (r"(?<!\w)", r"(?!\w)")
        text = re.sub(f"{before}{re.escape(form)}{after}", MASK, text)
    for form in _forms([*_known, *_of_the_environment()]):
        text = text.replace(form, MASK)
    text = _ANY.sub(_masked_match, text)
    return _ASSIGNED.sub(_masked_value, text)


def _forms(secrets: Iterable[str]) -> list[str]:
    """Every way in which the secrets may be written, the longest first."""
    plain = {str.__str__(each) for each in secrets if each}
    forms = {form for each in plain for form in (each, json.dumps(each)[1:-1], html.escape(each))}
    return sorted(forms, key=len, reverse=True)


def _of_the_environment() -> list[str]:
    return [value for name, value in os.environ.items() if len(value) >= _LEAST_KNOWN and _VARIABLE.search(name)]


def _masked_match(match: re.Match[str]) -> str:
    lead = next((found for found in match.groups() if found), "")
    return f"{lead}{MASK}"


def _masked_value(match: re.Match[str]) -> str:
    value = match["value"]
    bare = value.strip("\\'\"")
    if bare.lower() in _NO_SECRET or bare.startswith("$"):
        return match[0]
    in_prose = match["name"].rstrip().endswith(":") and bare == value
    if in_prose and len(bare) < _LEAST_IN_PROSE and not any(map(str.isdigit, bare)):
        return match[0]  # "a user or password: name the variable"
    quote = value[: len(value) - len(value.lstrip("\\'\""))]
    return f"{match['name']}{quote}{MASK}{quote}"


def secret_in(name: str, value: object) -> tuple[str, str] | None:
    """The first secret in an argument: its place, such as ``config.api_key``, and its kind; None if none is seen.

    Args:
        name: of the argument.
        value: a text, JSON in a text, or what JSON can hold.
    """
    value = _parsed(value)
    if isinstance(value, Mapping):
        return next(filter(None, (secret_in(f"{name}.{key}", each) for key, each in value.items())), None)
    if isinstance(value, list | tuple):
        return next(filter(None, (secret_in(name, each) for each in value)), None)
    if not isinstance(value, str) or value.strip().lower() in _NO_SECRET:
        return None
    named = is_secret_name(name.rpartition(".")[2]) and not value.startswith("$")
    kind = kind_of_secret(value) or ("a secret by its name" if named else None)
    return None if kind is None else (name, kind)


def _parsed(value: object) -> object:
    """The JSON object or list in a text; anything else as it is."""
    if not isinstance(value, str) or not value.strip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


FROM_ENVIRONMENT: Final = "let the server read it from an environment variable or a file"
_INSTEAD: Final[Mapping[str, str]] = {
    "a Hugging Face token": "HF_TOKEN",
    "a GitHub token": "GITHUB_TOKEN",
    "an AWS key": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "a password in a URL": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what else the store of the model reads,",
    "a Google key": "GOOGLE_APPLICATION_CREDENTIALS",
}


def refusal(name: str, value: object) -> str:
    """Why an argument of a server cannot be given, in one line that does not repeat its value; empty if it can be."""
    found = secret_in(name, value)
    if found is None:
        return ""
    place, kind = found
    last = re.split(r"[.]", place)[-1].lower().replace("-", "_")
    variable = "HF_TOKEN" if last in {"hf_token", "hub_token", "huggingface_token"} else _INSTEAD.get(kind)
    if variable is None and last.startswith("aws"):
        variable = _INSTEAD["an AWS key"]
    instead = f"set {variable} in the environment, which the server inherits" if variable else FROM_ENVIRONMENT
    shown = re.sub(r"[^\w. -]", "_", masked(place))
    return f"{shown} holds {kind}, which command lines, logs and reports would show: {instead}"
