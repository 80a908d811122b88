"""A certificate authority that no system trusts, and a server's TLS with a certificate of it."""

from __future__ import annotations

import ssl
from pathlib import Path

OWN_CA = Path(__file__).parent / "load" / "tls" / "own_ca"


def server_tls(folder: Path = OWN_CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context
