"""``--gpucap-reuse``: the last server of a run is kept for a while, and the next run takes it over.

It is the same server if model, arguments and interpreter are equal, the GPU class and the devices, the environment, the
packages and the files that it was started from. If it is, and still answers with its key as it did, the run goes on at
once. If not, it is ended and another one is started, with one line that says why.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Container, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from pytest_gpucap import __version__
from pytest_gpucap.engines.fingerprint import difference, editable_vllm, fingerprint
from pytest_gpucap.engines.vllm_engine import VllmEngine
from pytest_gpucap.gpu import kept
from pytest_gpucap.gpu.classes import GpuClass
from pytest_gpucap.gpu.device import Device
from pytest_gpucap.gpu.lease import CPU, Lease, LeaseError, machine_directory, passed_on
from pytest_gpucap.options.table import Options

if TYPE_CHECKING:
    from pytest_gpucap.engines.vllm import VllmServer
    from pytest_gpucap.session.live_line import LiveLine
    from pytest_gpucap.session.placement import Placement

IN_CI: Final = "CI"
"""The variable that every CI system sets."""
_NO: Final = frozenset({"", "0", "false", "no", "off"})
_DIGEST: Final = 12


class Reused(NamedTuple):
    """A server that an earlier run left, and its lease."""

    server: VllmServer
    lease: Lease


class _Start(NamedTuple):
    """What a server was started from; `salt` is that of the digests."""

    salt: str
    depends_on: Mapping[str, str]


class Reuse:
    """The servers that runs of this user keep for each other.

    Args:
        options: the session's.
        starts_limited: keys of the placements whose tests limit the start-up, so that it must be measured.
    """

    def __init__(self, options: Options, starts_limited: Container[Hashable] = frozenset()) -> None:
        self._seconds, self._idle = options.reuse_s, options.gpu_idle
        self._starts_limited = starts_limited
        self._why_not = _why_not(options)
        self._told = False
        self._seen: set[Hashable] = set()
        """Keys of placements that had a server. Where a run starts the same once more, it wants a fresh one."""
        self._starts: dict[VllmServer, _Start] = {}

    def take(
        self, placement: Placement, gpu_class: GpuClass, devices: Sequence[Device], live: LiveLine
    ) -> Reused | None:
        """The kept server that a test needs, which is this run's from now on; None if there is none.

        A kept server that was the right one and is not any more is ended.

        Args:
            placement: of the test.
            gpu_class: that it is measured on.
            devices: those of the class, the best first; empty on the CPU.
            live: gets one line on what was found.
        """
        if not self._applies(placement, live) or placement.key in self._seen:
            return None
        self._seen.add(placement.key)
        engine = placement.engine
        assert isinstance(engine, VllmEngine)  # noqa: S101 - what `_applies` says
        for found in kept.kept_servers(machine_directory()):
            known = {device.uuid: device for device in devices}
            held = [known[lock] for lock in found.locks if lock in known]
            same_place = found.locks == (CPU,) if gpu_class.is_cpu else len(held) == len(found.locks)
            if not (found.is_mine and found.used_by is None and found.spec == engine.spec.key and same_place):
                continue
            if found.gpu_class != gpu_class.name or (held and len(held) != placement.devices):
                continue
            why = self._unwanted(found, placement)
            if not why:
                reused, why = self._taken(found, engine, held)
                if reused is not None:
                    return reused
            now = kept.KeptServer.read(found.note)
            if now is not None and now.used_by is not None:
                continue  # another run was faster
            live.say(f"the {found.describe()} is not reused, and another one is started: {why}")
            if now is not None:
                kept.end(found)
        return None

    def make_room(self, live: LiveLine, locks: Sequence[str]) -> bool:
        """End a kept server of this user that holds one of these locks; False if there is none."""
        for found in kept.kept_servers(machine_directory()):
            if found.is_mine and found.used_by is None and not set(locks).isdisjoint(found.locks):
                live.say(f"ending the {found.describe()}, since {found.place} is needed")
                kept.end(found)
                return True
        return False

    def started(self, server: object, engine: object) -> None:
        """A server was started here just now: remember what it depends on."""
        from pytest_gpucap.engines.vllm import VllmServer

        if self._seconds is not None and isinstance(server, VllmServer) and isinstance(engine, VllmEngine):
            salt = secrets.token_hex(16)
            self._starts[server] = _Start(salt, fingerprint(engine.spec, salt))

    def keep(self, server: object, placement: Placement, lease: Lease, gpu_class: GpuClass, live: LiveLine) -> bool:
        """Leave a server and its lease to the next run, if the session says so.

        Returns:
            Whether neither is ours any more.
        """
        from pytest_gpucap.engines.keeping import Place, keep
        from pytest_gpucap.engines.vllm import VllmServer
        from pytest_gpucap.report.formatting import seconds

        if not isinstance(server, VllmServer) or not self._applies(placement, live) or server.ended():
            return False
        start = self._starts.get(server)
        if start is None or self._seconds is None:
            return False
        if editable_vllm(server.spec.python):
            live.say("the server is not kept: its vLLM is installed in place, so its code may change")
            return False
        id_ = server.process.token[:8]
        try:
            folder = kept.own_folder(machine_directory())
        except (kept.KeptError, LeaseError) as error:
            live.say(f"the server is not kept: {error}")
            return False
        engine = placement.engine
        assert isinstance(engine, VllmEngine)  # noqa: S101 - what `_applies` says
        keeper = server.process.watchdog_pid
        told = {
            "keeper": keeper,
            "keeper_began": kept.began(keeper) or 0,
            "pid": server.process.pid,
            "engine": f"{server.software} {server.version or ''}".strip(),
            "model": engine.spec.model,
            "gpu_class": gpu_class.name,
            "devices": [device.label for device in lease.devices],
            "locks": list(lease.locks),
            "spec": engine.spec.key,
            "plugin": __version__,
            "port": urlsplit(server.base_url).port or 0,
            "key_digest": _digest(f"{server.api_key}"),
            "started_at": server.started_at,
        }
        held = {"baseline": dict(lease.baseline), "tolerated": sorted(lease.tolerated)}
        extra = {"salt": start.salt, "depends_on": dict(start.depends_on), **held}
        place = Place(folder / f"{id_}{kept.SOCKET}", folder / f"{id_}{kept.NOTE}")
        why = keep(server, place, self._seconds, told=told, extra=extra, descriptors=lease.descriptors)
        if why:
            live.say(f"the server is not kept: {why}")
            return False
        lease.leave()
        live.say(
            f"{told['engine']} is kept for {seconds(self._seconds)} (pid {told['pid']}): "
            f"{kept.END_COMMAND} {id_} ends it now"
        )
        return True

    def _applies(self, placement: Placement, live: LiveLine) -> bool:
        """Whether servers of a placement are kept and reused. The first time that they are not, a line says why."""
        engine = placement.engine
        if self._seconds is None or engine is None or not engine.leases_devices:
            return False
        why = self._why_not
        if not why and not isinstance(engine, VllmEngine):
            why = f"--gpucap-reuse is for one replica of vLLM, and not for {engine.title}"
        if why and not self._told:
            self._told = True
            live.say(why)
        return not why

    def _unwanted(self, found: kept.KeptServer, placement: Placement) -> str:
        if placement.key in self._starts_limited:
            return "a test limits the start-up, which only a start shows"
        if found.plugin != __version__:
            return f"pytest-gpucap {found.plugin} has kept it, and this is {__version__}"
        return ""

    def _taken(
        self, found: kept.KeptServer, engine: VllmEngine, devices: Sequence[Device]
    ) -> tuple[Reused | None, str]:
        """The server; or why it is not what it was, and it has been ended."""
        from pytest_gpucap.engines.keeping import NotTaken, Place, take

        def refuse(key: str, extra: Mapping[str, Any]) -> str:
            if _digest(key) != found.key_digest:
                return "its key is another one"
            return difference(extra["depends_on"], fingerprint(engine.spec, extra["salt"]))

        place = Place(found.socket, found.note)
        try:
            taken = take(place, found.keeper, engine.spec, cpu=not devices, refuse=refuse)
        except NotTaken as error:
            return None, str(error)
        server, extra = taken.server, taken.extra
        try:
            lease = passed_on(
                devices,
                taken.descriptors,
                baseline=extra["baseline"],
                server_pids=server.pids(),
                tolerated=extra["tolerated"],
                idle=self._idle,
            )
        except LeaseError as error:
            server.close()
            return None, str(error)
        self._starts[server] = _Start(extra["salt"], extra["depends_on"])
        return Reused(server, lease), ""


def _why_not(options: Options) -> str:
    """Why this session neither keeps nor reuses a server, though it was asked to; empty if it does."""
    if options.reuse_s is None:
        return ""
    told = os.environ.get(IN_CI, "")
    if told.strip().lower() not in _NO and not options.reuse_in_ci:
        return f"--gpucap-reuse is ignored in CI ({IN_CI}={told[:20]}): --gpucap-reuse-in-ci asks for it there too"
    if options.repeat > 1:
        return "--gpucap-reuse is ignored with --gpucap-repeat, whose starts must be independent"
    if options.names_base:
        return "--gpucap-reuse is ignored with a base: base and head both start afresh"
    return ""


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:_DIGEST]
