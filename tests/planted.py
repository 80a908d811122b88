"""Secrets of twenty kinds, as tests plant them. None is anybody's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Secrecy:
    """One planted secret.

    Attributes:
        core: what no output may hold.
        argument: how it stands in an argument of a server.
    """

    core: str
    argument: str


def _alone(core: str) -> Secrecy:
    return Secrecy(core, core)


_SOME: Final = "q7Zt2Lk9Xw4Rb8Nc5Vm1"
# In parts, so that no scanner of repositories takes them for real ones.
PLANTED: Final[dict[str, Secrecy]] = {
    "Hugging Face": _alone("hf_" + _SOME),
    "GitHub": _alone("ghp_" + _SOME),
    "GitHub, of an action": _alone("ghs_" + _SOME),
    "GitHub, fine-grained": _alone("github_pat_" + _SOME + "_" + _SOME),
    "GitLab": _alone("glpat-" + _SOME),
    "AWS": _alone("AKIA" + "Q7ZT2LK9XW4RB8NC"),
    "AWS, temporary": _alone("ASIA" + "Q7ZT2LK9XW4RB8ND"),
    "Google": _alone("AIza" + _SOME + _SOME),
    "Slack": _alone("xoxb-" + "123456789012-" + _SOME),
    "npm": _alone("npm_" + _SOME + _SOME),
    "PyPI": _alone("pypi-" + "AgEIcHlwaS5vcmc" + _SOME),
    "OpenAI": _alone("sk-" + "proj-" + _SOME),
    "Anthropic": _alone("sk-" + "ant-api03-" + _SOME),
    "NVIDIA": _alone("nvapi-" + _SOME),
    "JSON web token": _alone("eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxIn0" + ".c2lnbmF0dXJl" + _SOME),
    "bearer": Secrecy("opaque" + _SOME, "Authorization: Bearer opaque" + _SOME),
    "basic": Secrecy("dXNlcjpwYXNzd29yZDE=", "Basic dXNlcjpwYXNzd29yZDE="),
    "password of a bucket": Secrecy("pw/of+" + _SOME, "s3://mykey:pw/of+" + _SOME + "@bucket/model"),
    "user of a URL": Secrecy("user" + _SOME, "https://user" + _SOME + "@hub.example/model"),
    "query": Secrecy("sig" + _SOME, "https://store.example/model?X-Amz-Signature=sig" + _SOME),
    "private key": Secrecy(
        "MIIEvQIBADANBg" + _SOME, f"-----BEGIN PRIVATE KEY-----MIIEvQIBADANBg{_SOME}-----END PRIVATE KEY-----"
    ),
}
