"""The worker processes of pytest-xdist: how many share the tests, and how often one of them starts a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pytest

_DIST: Final = "gpucap_dist"
_WORDS: Final = "gpucap_words"
_FIRST: Final = "gw0"
_EACH: Final = "each"


@dataclass(frozen=True, slots=True)
class Workers:
    """Who shares the tests.

    Attributes:
        count: processes; 1 without xdist.
        dist: how xdist deals out tests, as its option ``--dist`` names it.
    """

    count: int = 1
    dist: str = "no"

    @property
    def times(self) -> int:
        """How often each test runs."""
        return self.count if self.dist == _EACH else 1

    def most_starts(self, items: Sequence[pytest.Item]) -> int:
        """How often tests that share a server start it at most: once in every worker that gets one of them."""
        return self.count if self.dist == _EACH else min(self.count, len({self._unit(item) for item in items}))

    def _unit(self, item: pytest.Item) -> str:
        """Equal for tests that xdist gives to one worker."""
        match self.dist:
            case "loadfile":
                return item.nodeid.partition("::")[0]
            case "loadscope":
                return item.nodeid.rpartition("::")[0]
            case "loadgroup":
                mark = item.get_closest_marker("xdist_group")
                named = [] if mark is None else [*mark.args, mark.kwargs.get("name")]
                return f"@{named[0]}" if named else item.nodeid
        return item.nodeid


def workers_of(config: pytest.Config) -> Workers:
    """The workers of this session, seen from one of them or from the process that only collects."""
    if is_one_of_many(config):
        return Workers(int(told(config)["workercount"]), str(told(config).get(_DIST, "load")))
    count, dist = sum(map(_processes, config.getoption("tx", None) or ())), str(config.getoption("dist", "no"))
    return Workers(count, dist) if count > 1 and dist != "no" else Workers()


def _processes(spec: str) -> int:
    """Of one ``--tx``: ``3*popen`` starts three."""
    times, star, _ = spec.partition("*")
    return int(times) if star and times.isdecimal() else 1


def is_one_of_many(config: pytest.Config) -> bool:
    """Whether this is a worker."""
    return hasattr(config, "workerinput")


def told(config: pytest.Config) -> Mapping[str, Any]:
    """What the process that talks to the user has told this worker; nothing elsewhere."""
    return getattr(config, "workerinput", {})


def speaks(config: pytest.Config) -> bool:
    """Whether this process tells what all of them know: the only one, or the first worker."""
    return not is_one_of_many(config) or told(config)["workerid"] == _FIRST


def words_of(config: pytest.Config) -> Sequence[str]:
    """The words of the command line that the session was started with, seen from whichever process."""
    told = getattr(config, "workerinput", {}).get(_WORDS)
    return tuple(map(str, config.invocation_params.args if told is None else told))


def tell_worker(node: Any) -> None:
    """Tell a worker how tests are dealt out, and the command line: it sees an option and words of its own."""
    node.workerinput[_DIST] = node.config.getoption("dist")
    node.workerinput[_WORDS] = list(map(str, node.config.invocation_params.args))
