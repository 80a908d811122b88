"""A server that already runs, as an engine: ``--gpucap-url``."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from pytest_gpucap.engines.protocol import Engine, EnginePair, Server, ServerRequest


class UrlEngine(Engine):
    """Measures a server that already runs, whatever the test's own engine is.

    Args:
        request: its model selects one of the server's models.
        url: of ``--gpucap-url``.
        api_key_env: the environment variable that holds the key.
    """

    name = "url"
    leases_devices = False
    restarts = False

    def __init__(self, request: ServerRequest, url: str, api_key_env: str) -> None:
        super().__init__(request)
        self._url, self._api_key_env = url, api_key_env

    @property
    def key(self) -> Hashable:
        """See `Engine.key`."""
        return self._url

    def start(self, devices: Sequence[str], on_wait: Callable[[str], None]) -> Server:  # noqa: ARG002 - it runs
        """Attach to it.

        Raises:
            EndpointError: see `attach`.
        """
        from pytest_gpucap.engines.url import attach

        return attach(self._url, model=self.request.model, api_key_env=self._api_key_env)

    def with_base(self, base_args: str, base_python: str | None) -> EnginePair[Engine]:  # noqa: ARG002 - none is meant
        """See `Engine.with_base`."""
        raise ValueError("--gpucap-base-... needs servers that the plugin starts, but --gpucap-url names a running one")
