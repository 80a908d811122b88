"""What Linux tells of one socket is what its table of all sockets says."""

from __future__ import annotations

import socket

import pytest

from tests.load import unread
from tests.waiting import until


@pytest.mark.parametrize("by_table", [False, True])
def test_what_the_other_end_has_not_read_yet_is_told(monkeypatch: pytest.MonkeyPatch, *, by_table: bool) -> None:
    if by_table:

        def refused(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(unread, "_HEADER", type("Refused", (), {"size": 16, "pack": refused}))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        with server, client:
            assert unread.taken_in(server)
            server.sendall(b"four")
            until(lambda: not unread.taken_in(server))
            assert client.recv(3) == b"fou"
            assert not unread.taken_in(server)
            assert client.recv(3) == b"r"
            assert unread.taken_in(server)
            client.close()
            assert unread.taken_in(server)
