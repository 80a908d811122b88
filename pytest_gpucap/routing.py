"""How requests reach the replicas of a fleet: what ``--gpucap-router`` takes."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple


class RouterKind(StrEnum):
    """What decides which replica a request goes to."""

    CLIENT = "client"
    """The load generator itself."""
    VLLM = "vllm"
    """vLLM's router, from the PyPI package ``vllm-router``."""
    NGINX = "nginx"


POLICIES: Final[Mapping[RouterKind, tuple[str, ...]]] = {
    RouterKind.CLIENT: ("round_robin", "least_outstanding"),
    RouterKind.VLLM: ("cache_aware", "round_robin", "random", "power_of_two", "consistent_hash"),
    RouterKind.NGINX: ("round_robin", "least_conn", "random"),
}
"""By router, its own names; the first is the default, as it is the router's own."""


class Routing(NamedTuple):
    """A router and its policy."""

    kind: RouterKind = RouterKind.CLIENT
    policy: str = POLICIES[RouterKind.CLIENT][0]

    def __str__(self) -> str:
        return f"{self.kind}:{self.policy}"

    @classmethod
    def parse(cls, text: str) -> Routing:
        """From ``vllm`` or ``vllm:power_of_two``.

        Raises:
            ValueError: one line, if the router or its policy is not known.
        """
        name, _, policy = text.strip().partition(":")
        known = {kind.value: kind for kind in RouterKind}
        if name not in known:
            raise ValueError(f"the router must be one of {', '.join(known)}, not {name[:40]!r}")
        kind = known[name]
        policies = POLICIES[kind]
        if policy and policy not in policies:
            raise ValueError(f"{name} has no policy {policy[:40]!r}: it has {', '.join(policies)}")
        return cls(kind, policy or policies[0])
