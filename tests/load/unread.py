"""Whether the other end of a connection within this machine has read what was sent to it.

The kernel is asked for that one socket (sock_diag(7)). The table of all of them, /proc/net/tcp, takes milliseconds for
each look, since Linux walks through all places that it has for sockets.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
from pathlib import Path
from typing import Final

_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, number, sender."""
_ASKED: Final = struct.Struct("=BBBxI")
"""The start of struct inet_diag_req_v2: family, protocol, extensions, states."""
_PORTS: Final = struct.Struct("!HH")
_ANY: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""The rest of struct inet_diag_sockid: any interface, and no cookie."""
_TOLD: Final = struct.Struct("=BBBB48xII")
"""The start of struct inet_diag_msg: family, state, timer, retries; after the ids expiry and bytes to read."""
_ESTABLISHED: Final = 1


def taken_in(sock: socket.socket) -> bool:
    """Whether the other end, a process of this machine, has read all that was sent to it, or is gone."""
    (our_host, ours), (their_host, theirs) = sock.getsockname(), sock.getpeername()
    ends = _PORTS.pack(theirs, ours) + b"".join(
        socket.inet_aton(each).ljust(16, b"\0") for each in (their_host, our_host)
    )
    asked = _ASKED.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + ends + _ANY
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _SOCK_DIAG) as kernel:
            kernel.send(_HEADER.pack(_HEADER.size + len(asked), _SOCK_DIAG_BY_FAMILY, _REQUEST, 1, 0) + asked)
            told = kernel.recv(8192)
    except OSError:
        return _taken_in_by_table(ours, theirs)
    if _HEADER.unpack_from(told)[1] == _NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", told, _HEADER.size)
        return -code == errno.ENOENT or _taken_in_by_table(ours, theirs)
    _, state, _, _, _, unread = _TOLD.unpack_from(told, _HEADER.size)
    return bool(state != _ESTABLISHED or unread == 0)


def _taken_in_by_table(ours: int, theirs: int) -> bool:
    """The same where the kernel takes no such questions."""
    # Of its socket: addresses and ports, state, bytes to send and bytes to read (proc(5)).
    row = rf" [0-9A-F]{{8}}:{theirs:04X} [0-9A-F]{{8}}:{ours:04X} 01 [0-9A-F]{{8}}:([0-9A-F]{{8}}) "
    end = re.search(row, Path("/proc/net/tcp").read_text())
    return end is None or int(end[1], 16) == 0
