"""What can go wrong with a server.

```
ServerError
├── ServerStartError      it did not become ready; has the cause and the log
├── ServerStopError       one of its processes did not end
├── NotTaken              a kept server cannot be taken over (`keeping.py`)
├── MetricsUnavailable    it has no /metrics
└── EndpointError         a running endpoint cannot be measured
```
"""

from __future__ import annotations

from pathlib import Path

from pytest_gpucap.errors import GpuCapError
from pytest_gpucap.explained import Subject, pointer
from pytest_gpucap.foreign_text import printable


class ServerError(GpuCapError):
    """Base of all errors about a server."""

    needs_traceback = False


class ServerStartError(ServerError):
    """The server did not become ready.

    Attributes:
        cause: one line, the cause and what to do about it.
        log_tail: the last lines of the log; empty if there are none.
        log_path: the whole log; None if the server never ran.
        known_as: the name of the cause, if it is one of `startup_errors`; else empty.

    Args:
        title: the engine's name, for the message; empty: the message says "the server".
    """

    def __init__(
        self, cause: str, log_tail: str = "", log_path: Path | None = None, *, title: str = "", known_as: str = ""
    ) -> None:
        self.cause = cause
        self.known_as = known_as
        self.log_tail = log_tail
        self.log_path = log_path
        parts = [f"the {title} server did not start: {cause}" if title else f"the server did not start: {cause}"]
        if log_tail:
            parts += ["", f"the last {len(log_tail.splitlines())} lines of its log:", log_tail.rstrip("\n")]
        if log_path is not None:
            parts += ["", f"whole log: {log_path}"]
            parts.append(pointer(Subject.START, known_as) if known_as else pointer(Subject.ERROR, type(self).__name__))
        super().__init__("\n".join(parts))


class ServerStopError(ServerError):
    """Processes of the server outlived SIGKILL; the message names them."""


class MetricsUnavailable(ServerError):  # noqa: N818  (it is a state of the endpoint, not a fault)
    """The endpoint serves no Prometheus metrics."""


class EndpointError(ServerError):
    """A running endpoint does not answer, refuses the key, or does not serve the model.

    Attributes:
        status: the HTTP status of its answer; None if none came.
        loading: it may still be loading: nobody listens yet, or a gateway has nobody behind it.
        untrusted: its TLS certificate is not trusted.
        late: no answer came in the time that there was, and nothing says that none would.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        loading: bool = False,
        untrusted: bool = False,
        late: bool = False,
    ) -> None:
        self.status, self.loading, self.untrusted, self.late = status, loading, untrusted, late
        super().__init__(printable(message))  # it may hold names and words of a server
