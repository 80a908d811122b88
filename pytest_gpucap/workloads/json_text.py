"""JSON text of what a user wants in a request, if every server can read it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pytest_gpucap.errors import GpuCapError

_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*+\\u0000")


class NoJsonText(GpuCapError, ValueError):  # noqa: N818 - it states what there is
    """There is no such text. The message says why, without what the value holds."""


def json_text(fields: Mapping[str, Any], *, sort_keys: bool = False) -> str:
    """JSON text of an object, as short as can be.

    Raises:
        NoJsonText: if JSON has no such value, or servers refuse it.
    """
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))
        text.encode()
    except UnicodeEncodeError:
        raise NoJsonText("holds half a surrogate pair, which is no text") from None
    except (TypeError, ValueError, RecursionError):
        raise NoJsonText("holds what cannot be sent as JSON") from None
    if "\\u0000" in text and _NUL.search(text):
        raise NoJsonText("holds a NUL character, which servers refuse")
    return text
