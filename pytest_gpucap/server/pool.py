"""One running server at a time: shared by tests that want the same one, fully ended before another starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from pytest_gpucap.server.spec import ServerSpec
from pytest_gpucap.server.vllm import VllmServer, start_vllm


class ServerPool:
    """Hands out the server for a spec.

    Args:
        on_wait: told about once a second what a start is doing.
        wait_released: called with the process ids of a server after it has ended, and returns when what they held
            (GPU memory, which a driver gives back a while after the process is gone) is free.
    """

    def __init__(
        self,
        *,
        on_wait: Callable[[str], None] | None = None,
        wait_released: Callable[[set[int]], None] | None = None,
    ) -> None:
        self.on_wait = on_wait
        self.wait_released = wait_released
        self._server: VllmServer | None = None
        self._wanted: tuple[ServerSpec, tuple[str, ...]] | None = None

    @property
    def server(self) -> VllmServer | None:
        """The server that is held now."""
        return self._server

    def get(self, spec: ServerSpec, devices: Sequence[str] = ()) -> VllmServer:
        """The running server for this spec on these devices; started if need be.

        A server that has died since is started again. The one held for another spec is closed first: its processes
        are reaped, its port is closed and `wait_released` has returned before the next one starts.

        Raises:
            ServerStartError: if it does not start.
            ServerStopError: if the previous one could not be ended; then nothing is started.
        """
        wanted = (spec, tuple(devices))
        if self._server is not None and wanted == self._wanted and self._server.running:
            return self._server
        self.close()
        self._server = start_vllm(spec, devices=devices, on_wait=self.on_wait)
        self._wanted = wanted
        return self._server

    def close(self) -> None:
        """End the server that is held, if any. Safe to call twice.

        Raises:
            ServerStopError: if a process of it outlived SIGKILL.
        """
        if self._server is None:
            return
        server, self._server, self._wanted = self._server, None, None
        pids = server.pids()
        server.close()
        if self.wait_released is not None:
            self.wait_released(pids)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
