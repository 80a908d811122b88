"""Pages of Prometheus metrics beside a server's address: of the engines behind a gateway, of exporters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from pytest_gpucap.access import OPEN, Access
from pytest_gpucap.engines.errors import EndpointError
from pytest_gpucap.load.plain_request import MOST_BYTES, NoAnswer, ask

_ANSWER_S: Final = 10.0
"""For a whole page. One that takes longer is of no use while load is sent."""
_OK: Final = 200
_LINE: Final = re.compile(r"(?m)^([a-zA-Z_:][\w:]*)(\{?)")
"""The name of a sample at the start of its line, and the brace of its labels."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        url: of the page itself, as `access.page_url` gives it.
        access: what requests need beside it.
    """

    url: str
    access: Access = OPEN

    def read(self, timeout_s: float = _ANSWER_S, most_bytes: int = MOST_BYTES) -> str:
        """Its text now.

        Args:
            timeout_s: for the whole answer.
            most_bytes: that it may have.

        Raises:
            EndpointError: one line, if there is no whole answer in time, or another one than 200.
        """
        from pytest_gpucap.load.address import ServerAddress

        parts = urlsplit(self.url)
        address = ServerAddress(f"{parts.scheme}://{parts.netloc}", access=self.access)
        try:
            reply = ask(address, parts.path, timeout_s=timeout_s, most_bytes=most_bytes)
        except NoAnswer as error:
            raise EndpointError(self.access.masked(str(error)), loading=error.loading, late=error.late) from None
        if reply.status != _OK:
            text = f"GET {self.url} answered {reply.status} {reply.reason}".rstrip()
            raise EndpointError(self.access.masked(text), status=reply.status)
        return reply.text


def joined(pages: Sequence[str]) -> str:
    """The pages of several servers as one: each sample says in its label ``replica`` whose it is, counted from 1.

    Otherwise the samples of all would be the same one.
    """
    return "\n".join(labelled(page, number) for number, page in enumerate(pages, 1))


def labelled(page: str, replica: int) -> str:
    """A page with ``replica="NUMBER"`` among the labels of every sample."""
    return _LINE.sub(_with(replica), page)


def read_together(pages: Sequence[Page], timeout_s: float = _ANSWER_S) -> str:
    """All pages, read at the same time and joined; a single one as it is.

    Raises:
        EndpointError: that of the first page that cannot be read.
    """
    if len(pages) == 1:
        return pages[0].read(timeout_s)
    with ThreadPoolExecutor(max_workers=len(pages)) as threads:
        return joined([*threads.map(lambda page: page.read(timeout_s), pages)])


def _with(number: int) -> Callable[[re.Match[str]], str]:
    def labelled(match: re.Match[str]) -> str:
        end = "," if match[2] else "}"
        return f'{match[1]}{{replica="{number}"{end}'

    return labelled
